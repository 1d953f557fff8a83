from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.config.transfer import with_rows
from detkit.heads.aligned import Aligned
from detkit.structures import Limits, Target

CHANNELS, STRIDES, CLASSES = [8, 16], [16, 32], 3
SIZES = torch.tensor([[64, 64], [64, 64]])
NANODET: dict[str, Any] = {"decoupled": False, "stem": 2, "act": "leaky", "reg_max": 7, "offset": 0.0, "assign": "soft"}
YOLOX: dict[str, Any] = {
    **{"width": 12, "stem": 2, "kernel": 3, "norm_eps": 0.001, "coder": "deltas", "objectness": True},
    **{"offset": 0.0, "assign": "soft", "box_gain": 5.0},
}
KINDS = [
    pytest.param({}, id="light"),
    pytest.param({"reg_max": 4, "class_loss": "varifocal", "box_loss": "ciou"}, id="distributions and varifocal"),
    pytest.param(NANODET, id="NanoDet-Plus"),
    pytest.param({**YOLOX, "separable": False}, id="YOLOX"),
    pytest.param({**YOLOX, "decoupled": False, "stem": 0, "act": "relu"}, id="one branch with objectness"),
]


def build(**options: Any) -> Aligned:
    torch.manual_seed(0)
    return Aligned(CHANNELS, STRIDES, CLASSES, **options)


def features(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = zip(CHANNELS, STRIDES, strict=True)
    return [torch.randn(images, c, 64 // s, 64 // s, generator=generator) for c, s in maps]


def target(weight: float = 1.0, **flags: Any) -> Target:
    boxes, labels = torch.tensor([[5.0, 5, 40, 30], [30, 20, 60, 64]]), torch.tensor([0, 2])
    return Target(boxes, labels, weight=torch.full((2,), weight), **flags)


EMPTY = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("options", KINDS)
def test_every_kind_learns_and_answers(options: dict[str, Any]) -> None:
    head = build(**options)
    raw = head.raw(features())
    boxes, scores = head.decoded(raw)
    assert boxes.shape == (2, 20, 4)
    assert scores.shape == (2, 20, CLASSES)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    for targets in ([target(), EMPTY], [EMPTY, EMPTY]):
        losses = head.loss(raw, targets, SIZES)
        assert ("dfl" in losses, "objectness" in losses) == (head.reg_max > 0, head.objectness)
        assert all(term.sum.isfinite() and term.sum >= 0 and term.sum.requires_grad for term in losses.values())
        head.zero_grad()
        sum(term.sum for term in losses.values()).backward(retain_graph=True)  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert [len(found) for found in head.predict(raw, SIZES, Limits(conf=0.0, iou=1.0, max_detections=7))] == [7, 7]


@pytest.mark.parametrize("options", KINDS)
def test_it_learns_one_image_by_heart(options: dict[str, Any]) -> None:
    head, maps = build(**options).train(), features(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        losses = head.loss(head.raw(maps), [target()], SIZES[:1])
        sum(term.sum / term.count for term in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    found = head.predict(head.raw(maps), SIZES[:1], Limits(conf=0.3))[0]
    assert sorted(found.labels.tolist()) == [0, 2]
    for box, label in zip(found.boxes, found.labels, strict=True):
        torch.testing.assert_close(box, target().boxes[int(label) // 2], atol=6, rtol=0)


def test_distances_by_hand() -> None:
    """Of the second cell of stride 16, whose point is at (24, 8), or, without offset, at (16, 0)."""
    code = torch.tensor([0.0, 1, 2, 3])
    for offset, x, y in ((0.5, 24.0, 8.0), (0.0, 16.0, 0.0)):
        head = build(offset=offset)
        place = head.priors(head.raw(features())).rows(torch.tensor(1))
        left, top, right, bottom = (16 * math.log1p(math.exp(v)) for v in code.tolist())
        wanted = torch.tensor([x - left, y - top, x + right, y + bottom])
        torch.testing.assert_close(head.decode(code, place), wanted)
    head = build(reg_max=2)
    place = head.priors(head.raw(features())).rows(torch.tensor(1))
    log = math.log(2)
    bins = torch.tensor([[log, 0, 0], [0, log, 0], [0, 0, log], [0, 0, 0]])  # means 3/4, 1, 5/4, 1 strides
    torch.testing.assert_close(head.decode(bins.flatten(), place), torch.tensor([12.0, -8, 44, 24]))


def test_deltas_by_hand() -> None:
    """YOLOX: the centre is (cell + xy) * stride, the size exp(wh) * stride."""
    head = build(coder="deltas", offset=0.0)
    place = head.priors(head.raw(features())).rows(torch.tensor(5))  # column 1, row 1
    code = torch.tensor([0.5, 0.25, math.log(2), 0.0])
    torch.testing.assert_close(head.decode(code, place), torch.tensor([8.0, 12, 40, 28]))


def test_quality_focal_term_by_hand() -> None:
    """One object that one prior answers for with u = 1; every score is 1/2."""
    head = build(topk=1)
    raw = head.raw(features(1))
    raw["classes"] = torch.zeros_like(raw["classes"])
    raw["boxes"] = torch.full_like(raw["boxes"], math.log(math.e - 1))  # softplus: one stride to each side
    gt = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]))
    terms = head.loss(raw, [gt], SIZES[:1])
    # |q - 1/2|^2 * log 2 of all 20 * 3 scores, q = 1 as well as 0; over one answer and one image
    torch.testing.assert_close(terms["classes"].sum, torch.tensor(60 * math.log(2) / 4))
    assert terms["classes"].count == 2
    torch.testing.assert_close(terms["box"].sum, torch.tensor(0.0))
    assert terms["box"].count == 1


def test_ignored_objects_switch_off_their_class_alone() -> None:
    head = build()
    raw = head.raw(features(1))
    raw["classes"] = raw["classes"].detach().requires_grad_()
    ignored = target(difficult=torch.tensor([False, True]))
    head.loss(raw, [ignored], SIZES[:1])["classes"].sum.backward()
    quiet = (raw["classes"].grad[0] == 0).nonzero()  # type: ignore[index]
    # The second object, from (30, 20) to (60, 64), holds the points (40, 24 to 56), (56, ...) and (48, 48) of class 2.
    assert quiet.tolist() == [[prior, 2] for prior in (6, 7, 10, 11, 14, 15, 19)]


@pytest.mark.parametrize("options", KINDS)
def test_object_weights_scale_the_losses(options: dict[str, Any]) -> None:
    head = build(**options)
    raw = head.raw(features(1))
    one, half, none = (head.loss(raw, [target(weight)], SIZES[:1]) for weight in (1.0, 0.5, 0.0))
    for name in {"box", "dfl"} & one.keys():
        assert half[name].sum.item() == pytest.approx(one[name].sum.item() / 2, rel=1e-5)
        assert none[name].sum == none[name].count == 0
    whole, less, least = (terms["classes"].sum for terms in (one, half, none))
    torch.testing.assert_close(whole - less, less - least)


@pytest.mark.parametrize("options", KINDS)
def test_rows_of_known_classes_are_kept(options: dict[str, Any]) -> None:
    """A model of classes a, b, c becomes one of c, d."""
    old, new = build(**options), Aligned(CHANNELS, STRIDES, 2, **options)
    layout = new.class_rows["layers."]
    state = {}
    for name, own in new.state_dict().items():
        other = old.state_dict()[name]
        state[name] = with_rows(own, other, layout, (2, -1), CLASSES) if name.startswith("layers.") else other
    new.load_state_dict(state)
    before, after = (head.eval().raw(features()) for head in (old, new))
    torch.testing.assert_close(after["boxes"], before["boxes"])
    torch.testing.assert_close(after["classes"][..., 0], before["classes"][..., 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"kernel": 4}, "kernel is odd", id="even kernel"),
        pytest.param({"stem": -1}, "stem and reg_max", id="negative stem"),
        pytest.param({"reg_max": 7, "coder": "deltas"}, "coder: distances", id="distributions of deltas"),
        pytest.param({"prior": 1.0}, "prior must lie", id="prior of 1"),
        pytest.param({"offset": 2.0}, "offset must lie", id="point outside its cell"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("options", KINDS)
def test_classes_that_the_labels_do_not_tell_of_count_where_they_are_labelled(options: dict[str, Any]) -> None:
    head = build(**options)
    raw = head.raw(features(2))
    raw["classes"] = raw["classes"].detach().requires_grad_()
    head.loss(raw, [target(known=(0,)), target()], SIZES)["classes"].sum.backward()
    heard = raw["classes"].grad != 0  # type: ignore[union-attr]
    other = head.loss(raw, [target(), target()], SIZES)["classes"].sum
    everywhere = torch.autograd.grad(other, raw["classes"])[0] != 0
    assert torch.equal(heard[1], everywhere[1])
    assert torch.equal(heard[0, :, 0], everywhere[0, :, 0])
    assert not heard[0, :, 1].any()
    assert 0 < heard[0, :, 2].sum() <= 13  # the second object's own answers
