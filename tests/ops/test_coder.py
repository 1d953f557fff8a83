"""Codes undo each other, and say what the papers say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from detkit.ops.coder import (
    GridCode,
    Level,
    Priors,
    decode_deltas,
    decode_fractions,
    decode_grid,
    encode_deltas,
    encode_fractions,
    grid_priors,
    to_fractions,
)

number = st.floats(0.02, 0.98)


def encoded(boxes: torch.Tensor, priors: Priors, kind: GridCode) -> torch.Tensor:
    """The grid code that ``to_fractions`` turns into the boxes' fractions."""
    fractions = encode_fractions(boxes, priors)
    if kind == "textbook":
        return fractions
    ratio = fractions[..., 2:] * priors.strides / priors.sizes
    if kind == "darknet":
        return torch.cat((_logit(fractions[..., :2]), ratio.log()), dim=-1)
    return torch.cat((_logit((fractions[..., :2] - 0.5) / 2 + 0.5), _logit(ratio.sqrt() / 2)), dim=-1)


def _logit(p: torch.Tensor) -> torch.Tensor:
    return p.clamp(1e-6, 1 - 1e-6).logit()


def test_priors_go_row_by_row_cell_by_cell_anchor_by_anchor() -> None:
    level = Level(2, 3, 16.0, torch.tensor([[10.0, 20.0], [30.0, 8.0]]))
    priors = level.priors()
    assert level.total == 12
    assert priors.centres[[0, 1, 2, 6]].tolist() == [[8, 8], [8, 8], [24, 8], [8, 24]]
    assert priors.sizes[:3].tolist() == [[10, 20], [30, 8], [10, 20]]
    assert priors.boxes[1].tolist() == [-7, 4, 23, 12]
    both = grid_priors([level, Level(1, 1, 32.0, torch.tensor([[5.0, 5.0]]))])
    assert both.centres[12].tolist() == [16, 16]
    assert both.strides.flatten().tolist() == [16] * 12 + [32]


def test_the_first_centre_of_an_unpadded_net_moves_the_grid() -> None:
    assert Level(1, 2, 2.0, torch.tensor([[14.0, 14.0]]), first_centre=7.0).priors().boxes.tolist() == [
        [0, 0, 14, 14],
        [2, 0, 16, 14],
    ]


def test_fractions_are_the_textbooks() -> None:
    """A 3 x 3 grid on 300 pixels: midpoint (150, 250), 60 wide, 150 high."""
    priors = Level(3, 3, 100.0, torch.tensor([[50.0, 50.0]])).priors().rows(torch.tensor([7]))
    fractions = encode_fractions(torch.tensor([[120.0, 175, 180, 325]]), priors)
    assert fractions.tolist()[0] == pytest.approx([0.5, 0.5, 0.6, 1.5])
    assert decode_fractions(torch.tensor([[0.5, 0.5, -1.0, 0.0]]), priors).tolist() == [[150, 250, 150, 250]]


def test_darknet_and_bounded_formulas() -> None:
    priors = Priors(torch.tensor([[24.0, 8.0]]), torch.tensor([[10.0, 40.0]]), torch.tensor([[16.0]]))
    code = torch.tensor([[0.0, math.log(3), math.log(2), 0.0]])
    assert to_fractions(code, priors, "darknet").tolist()[0] == pytest.approx([0.5, 0.75, 20 / 16, 40 / 16])
    wanted = [0.5, 2 * 0.75 - 0.5, (2 * 2 / 3) ** 2 * 10 / 16, 40 / 16]
    assert to_fractions(code, priors, "bounded").tolist()[0] == pytest.approx(wanted)
    # YOLOv4: scale_x_y sigmoid(t) - (scale_x_y - 1) / 2
    assert to_fractions(code, priors, "darknet", 1.2)[0, 1].item() == pytest.approx(1.2 * 0.75 - 0.1)
    assert decode_grid(torch.full((1, 4), 1e4), priors, "darknet").isfinite().all()


def test_an_unknown_code_is_named() -> None:
    with pytest.raises(ValueError, match="not 'yolo'"):
        to_fractions(torch.zeros(1, 4), Level(1, 1, 8.0, torch.ones(1, 2)).priors(), "yolo")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["textbook", "darknet", "bounded"])
@settings(max_examples=40)
@given(x=number, y=number, w=st.floats(0.1, 3.9), h=st.floats(0.1, 3.9))
def test_decode_undoes_encode(kind: str, x: float, y: float, w: float, h: float) -> None:
    priors = Priors(torch.tensor([[24.0, 56.0]]), torch.tensor([[10.0, 40.0]]), torch.tensor([[16.0]]))
    centre, size = torch.tensor([16 + 16 * x, 48 + 16 * y]), torch.tensor([10 * w, 40 * h])
    box = torch.cat((centre - size / 2, centre + size / 2))[None]
    code = encoded(box, priors, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(decode_grid(code, priors, kind), box, rtol=0, atol=2e-3)  # type: ignore[arg-type]
    again = encoded(decode_grid(code, priors, kind), priors, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(again, code, rtol=1e-2, atol=1e-2)


def test_bounded_reaches_half_a_cell_beyond_its_own() -> None:
    priors = Level(1, 1, 16.0, torch.tensor([[16.0, 16.0]])).priors()
    box = torch.tensor([[-14.0, 15.0, 0.0, 29.0]])  # midpoint (-7, 22): 0.44 cells to the left, 0.375 below
    torch.testing.assert_close(decode_grid(encoded(box, priors, "bounded"), priors, "bounded"), box)


def test_deltas() -> None:
    prior = torch.tensor([[10.0, 10.0, 30.0, 50.0]])
    box = torch.tensor([[20.0, 20.0, 60.0, 40.0]])
    deltas = encode_deltas(box, prior)
    assert deltas.tolist()[0] == pytest.approx([1.0, 0.0, math.log(2), math.log(0.5)])
    torch.testing.assert_close(decode_deltas(deltas, prior), box)
    weighted = encode_deltas(box, prior, (10, 10, 5, 5))
    torch.testing.assert_close(decode_deltas(weighted, prior, (10, 10, 5, 5)), box)
    wide = decode_deltas(torch.tensor([[0.0, 0.0, 100.0, 0.0]]), prior)
    assert (wide[0, 2] - wide[0, 0]).item() == pytest.approx(20 * 1000 / 16)


def test_deltas_equal_torchvision() -> None:
    from torchvision.models.detection._utils import BoxCoder

    torch.manual_seed(0)
    priors, boxes = (torch.cat((a, a + 1 + 50 * torch.rand(20, 2)), 1) for a in 100 * torch.rand(2, 20, 2))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(encode_deltas(boxes, priors, (10, 10, 5, 5)), coder.encode_single(boxes, priors))
    code = torch.randn(20, 4)
    torch.testing.assert_close(decode_deltas(code, priors, (10, 10, 5, 5)), coder.decode_single(code, priors))


def test_no_rows() -> None:
    priors = Level(0, 3, 8.0, torch.ones(2, 2)).priors()
    assert encoded(torch.zeros(0, 4), priors, "bounded").shape == (0, 4)
