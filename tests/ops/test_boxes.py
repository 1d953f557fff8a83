"""Formats and overlap measures against hand-worked numbers, torchvision and properties."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from detkit.ops import area, boxes, ciou, clip, convert, crowd_iou, diou, giou, iou, paired_iou, valid

MEASURES = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}
PEERS = {
    "iou": torchvision.ops.box_iou,
    "giou": torchvision.ops.generalized_box_iou,
    "diou": torchvision.ops.distance_box_iou,
    "ciou": torchvision.ops.complete_box_iou,
}


def random_boxes(n: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0, 640, (n, 2)), np.exp(rng.normal(4, 1, (n, 2)))
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(dtype)


corners = hnp.arrays(np.float32, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 20))


def upright(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(values[:, :2], values[:, 2:]), np.maximum(values[:, :2], values[:, 2:])], 1)


BOX = np.array([[0, 0, 10, 10]], np.float32)


@pytest.mark.parametrize(
    ("other", "kind", "expected"),
    [
        ([0, 0, 10, 10], "iou", 1),  # equal boxes
        ([0, 0, 10, 20], "iou", 0.5),  # half
        ([5, 5, 15, 15], "iou", 25 / 175),
        ([10, 0, 20, 10], "iou", 0),  # touching: right edges are exclusive
        ([2, 2, 4, 4], "iou", 0.04),  # inside
        ([0, 0, 10, 10], "giou", 1),
        ([10, 0, 20, 10], "giou", 0),  # the hull is full
        ([20, 0, 30, 10], "giou", -1 / 3),
        ([5, 5, 15, 15], "giou", 25 / 175 - 50 / 225),
        ([20, 0, 30, 10], "diou", -400 / (900 + 100)),
        ([0, 0, 10, 10], "ciou", 1),
        ([0, 0, 20, 20], "ciou", 0.25 - 50 / 800),  # the same aspect ratio: no third term
    ],
)
def test_hand_numbers(other: list[float], kind: str, expected: float) -> None:
    b = np.array([other], np.float32)
    assert MEASURES[kind](BOX, b)[0, 0] == pytest.approx(expected, abs=1e-6)
    assert paired_iou(BOX, b, kind)[0] == pytest.approx(expected, abs=1e-6)
    assert MEASURES[kind](torch.from_numpy(BOX), torch.from_numpy(b)).item() == pytest.approx(expected, abs=1e-6)


def test_ciou_aspect_term_by_hand() -> None:
    b = np.array([[0, 0, 20, 10]], np.float64)
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan(1)) ** 2
    expected = 0.5 - 25 / 500 - v * v / (1 - 0.5 + v)
    assert ciou(BOX.astype(np.float64), b)[0, 0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 1), (1, 17), (100, 100), (500, 31), (0, 5), (5, 0), (0, 0)])
def test_iou_equals_torchvision_to_the_last_bit(n: int, m: int, dtype: type) -> None:
    a, b = random_boxes(n, 1, dtype), random_boxes(m, 2, dtype)
    b[: min(n, m) // 2] = a[: min(n, m) // 2]
    ours = iou(a, b)
    theirs = torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b))
    assert ours.shape == (n, m)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert torch.equal(iou(torch.from_numpy(a), torch.from_numpy(b)), theirs)
    with_gradient = iou(torch.from_numpy(a).requires_grad_(), torch.from_numpy(b))
    assert torch.equal(with_gradient, theirs)


def test_large_iou_in_threads_is_bit_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_boxes(301, 3), random_boxes(77, 4)
    serial = iou(a, b)
    monkeypatch.setattr(boxes, "_THREADED", 1)
    for threads in (2, 3, 8):
        monkeypatch.setattr(boxes, "thread_count", lambda n=threads: n)
        np.testing.assert_array_equal(iou(a, b), serial)
    assert iou(a[:0], b).shape == (0, 77)
    assert iou(a[:1], b).shape == (1, 77)


@pytest.mark.parametrize("kind", list(MEASURES))
def test_measures_agree_with_torchvision(kind: str) -> None:
    a, b = random_boxes(40, 5, np.float64), random_boxes(50, 6, np.float64)
    theirs = PEERS[kind](torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(MEASURES[kind](a, b), theirs, atol=1e-6)
    np.testing.assert_allclose(paired_iou(a, b[:40], kind), np.diag(theirs[:, :40]), atol=1e-6)
    np.testing.assert_allclose(
        MEASURES[kind](torch.from_numpy(a), torch.from_numpy(b)), MEASURES[kind](a, b), rtol=1e-12
    )


@given(corners, corners)
@settings(max_examples=60)
def test_measures_are_symmetric_bounded_and_ordered(a: np.ndarray, b: np.ndarray) -> None:
    a, b = upright(a), upright(b)
    before = a.copy(), b.copy()
    found = {kind: measure(a, b) for kind, measure in MEASURES.items()}
    for kind, measure in MEASURES.items():
        np.testing.assert_allclose(found[kind], measure(b, a).T, atol=1e-6, err_msg=kind)
    assert (found["iou"] >= 0).all()
    assert (found["iou"] <= 1).all()
    assert (found["giou"] >= -1).all()
    assert (found["giou"] <= found["iou"] + 1e-6).all()
    assert (found["ciou"] <= found["diou"] + 1e-6).all()
    assert (found["diou"] <= found["iou"] + 1e-6).all()
    solid = a[valid(a)]
    np.testing.assert_array_equal(np.diag(iou(solid, solid)), 1)
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@given(corners)
@settings(max_examples=40)
def test_formats_round_trip(values: np.ndarray) -> None:
    a = upright(values)
    for other in ("xyxy", "xywh", "cxcywh"):
        there = convert(a, "xyxy", other)
        np.testing.assert_array_equal(convert(there, other, "xyxy"), a)
        np.testing.assert_array_equal(there, torchvision.ops.box_convert(torch.from_numpy(a), "xyxy", other).numpy())
        tensor = convert(torch.from_numpy(a), "xyxy", other)
        np.testing.assert_array_equal(tensor.numpy(), there)
    assert not np.shares_memory(convert(a, "xyxy", "xyxy"), a)


def test_boxes_without_area_and_with_nan() -> None:
    point, nan = np.array([[3, 3, 3, 3]], np.float32), np.array([[0, np.nan, 5, 5]], np.float32)
    for measure in (iou, giou, diou, ciou):
        assert np.isfinite(measure(point, point)).all()
        assert np.isfinite(measure(point, BOX)).all()
        assert np.isnan(measure(nan, BOX)).all()
    assert iou(point, point)[0, 0] == 0
    assert iou(torch.from_numpy(point), torch.from_numpy(point)).item() == 0
    np.testing.assert_array_equal(valid(np.concatenate([point, nan, BOX, BOX[:, ::-1]])), [False, False, True, False])


@pytest.mark.parametrize("kind", list(MEASURES))
@pytest.mark.parametrize(
    "pair",
    [
        ([0, 0, 10, 10], [0, 0, 10, 10]),
        ([0, 0, 10, 10], [20, 20, 30, 30]),
        ([0, 0, 10, 10], [10, 0, 20, 10]),
        ([5, 5, 5, 5], [5, 5, 5, 5]),
        ([5, 5, 5, 5], [0, 0, 10, 10]),
        ([5, 5, 5, 9], [5, 5, 5, 9]),
        ([0, 0, 1e-20, 1e-20], [0, 0, 1e-20, 1e-20]),
        ([0, 0, 1e-20, 1e-20], [0, 0, 10, 10]),
        ([0, 0, 1e6, 1e6], [5, 5, 6, 6]),
        ([8, 8, 2, 2], [0, 0, 10, 10]),
    ],
    ids=["equal", "disjoint", "touching", "points", "point inside", "lines", "tiny", "tiny in big", "huge", "inverted"],
)
def test_gradients_are_finite(pair: tuple[list[float], list[float]], kind: str) -> None:
    a, b = (torch.tensor([row], dtype=torch.float32, requires_grad=True) for row in pair)
    paired_iou(a, b, kind).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()
    matrix = MEASURES[kind](a, b)
    assert matrix.requires_grad
    assert torch.isfinite(torch.cat(torch.autograd.grad(matrix.sum(), [a, b]))).all()


@pytest.mark.parametrize("kind", list(MEASURES))
def test_gradient_is_that_of_the_formula(kind: str) -> None:
    a = torch.from_numpy(random_boxes(6, 7, np.float64)).requires_grad_()
    b = (
        a.detach() + torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).requires_grad_()
    if kind == "ciou":  # its trade-off weight is a constant to the gradient, so finite differences differ: ask the peer
        (ours,) = torch.autograd.grad((1 - paired_iou(a, b, "ciou")).sum(), a)
        (theirs,) = torch.autograd.grad(torchvision.ops.complete_box_iou_loss(a, b, reduction="sum"), a)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    else:
        assert torch.autograd.gradcheck(lambda x, y: paired_iou(x, y, kind), (a, b))


def test_crowd_iou_is_float64_share_of_the_detection() -> None:
    detections = np.array([[0, 0, 10, 10], [5, 5, 5, 5], [-5, 0, 5, 10]], np.float32)
    crowds = np.array([[0, 0, 100, 5]], np.float32)
    shares = crowd_iou(detections, crowds)
    assert shares.dtype == np.float64
    np.testing.assert_array_equal(shares, [[0.5], [0], [0.25]])
    np.testing.assert_array_equal(crowd_iou(torch.from_numpy(detections), torch.from_numpy(crowds)).numpy(), shares)


def test_clip_and_area() -> None:
    given_boxes = np.array([[-5, -5, 20, 5], [90, 40, 130, 60], [200, 200, 210, 210]], np.float32)
    expected = [[0, 0, 20, 5], [90, 40, 100, 50], [100, 50, 100, 50]]
    np.testing.assert_array_equal(clip(given_boxes, (50, 100)), expected)
    np.testing.assert_array_equal(clip(torch.from_numpy(given_boxes), (50, 100)).numpy(), expected)
    np.testing.assert_array_equal(area(np.array(expected)), [100, 100, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "int64", "uint8"])
def test_half_precision_and_integers_are_computed_in_float32(dtype: str) -> None:
    tensor = torch.tensor([[0, 0, 200, 200], [100, 100, 200, 200]]).to(getattr(torch, dtype))
    result = iou(tensor, tensor)
    assert result.dtype == torch.float32
    assert result[0, 1].item() == 0.25
    if dtype != "bfloat16":
        assert iou(tensor.numpy(), tensor.numpy()).dtype == np.float32


def test_mixed_float_widths_give_float64() -> None:
    assert iou(BOX, BOX.astype(np.float64)).dtype == np.float64
    assert giou(torch.from_numpy(BOX), torch.from_numpy(BOX).double()).dtype == torch.float64


@pytest.mark.parametrize("measure", [*MEASURES.values(), paired_iou, crowd_iou])
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (np.zeros((2, 4), bool), TypeError, "real numbers"),
        (np.zeros((2, 4), complex), TypeError, "real numbers"),
        (np.array([["a"] * 4]), TypeError, "real numbers"),
        (np.zeros(4), ValueError, r"\(N, 4\)"),
        (np.zeros((2, 5)), ValueError, r"\(N, 4\)"),
        (np.zeros((1, 2, 4)), ValueError, r"\(N, 4\)"),
        (torch.zeros(1, 4), TypeError, "mixed"),
    ],
)
def test_senseless_input_is_a_clear_error(measure: object, wrong: object, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        measure(BOX, wrong)  # type: ignore[operator]


def test_other_clear_errors() -> None:
    with pytest.raises(TypeError, match="real numbers"):
        iou(torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="xyxy, xywh or cxcywh"):
        convert(BOX, "xyxy", "yolo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many"):
        paired_iou(BOX, np.concatenate([BOX, BOX]))
    with pytest.raises(ValueError, match="kind"):
        paired_iou(BOX, BOX, "siou")  # type: ignore[arg-type]
    assert iou([], BOX).shape == (0, 1)


def test_any_memory_layout() -> None:
    wide = random_boxes(20, 8).repeat(2, axis=0)
    frozen = wide[::2].copy()
    frozen.flags.writeable = False
    expected = iou(wide[::2].copy(), wide[::2].copy())
    fortran = np.asfortranarray(wide[::2])
    reversed_bytes = wide[::2].astype(">f4")
    for layout in (wide[::2], frozen, fortran, reversed_bytes):
        np.testing.assert_array_equal(iou(layout, layout), expected)


def test_traced_and_wrapped_tensors_stay_in_torch() -> None:
    a, b = torch.from_numpy(random_boxes(3, 1)), torch.from_numpy(random_boxes(4, 2))
    expected = iou(a, b)
    batched = torch.vmap(lambda x: iou(x, b))(torch.stack([a, a]))
    torch.testing.assert_close(batched[1], expected)
    program = torch.export.export(_Overlap(), (a, b))
    torch.testing.assert_close(program.module()(a, b), expected)
    assert iou(a.to("meta"), b.to("meta")).shape == (3, 4)


class _Overlap(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return iou(a, b)


def test_four_threads_at_once() -> None:
    a, b = random_boxes(400, 1), random_boxes(300, 2)
    expected = iou(a, b)
    results: list[bool] = []

    def work() -> None:
        for _ in range(20):
            results.append(bool(np.array_equal(iou(a, b), expected)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_numpy_users_never_load_torch() -> None:
    code = (
        "import sys, numpy as np; from detkit.ops import iou, nms, kmeans_anchors, weighted_boxes_fusion; "
        "b = np.array([[0, 0, 2, 2.0]]); iou(b, b); nms(b, np.ones(1), 0.5); kmeans_anchors(b[:, 2:], 1); "
        "weighted_boxes_fusion([b], [np.ones(1)], [np.ones(1, int)]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
