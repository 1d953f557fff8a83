"""What every head on maps alone must do, over the table of heads, and what DenseHead shares."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.heads import HEADS
from detkit.heads.dense import DenseHead, gather_objects
from detkit.ops.assign import Assignment, Objects, assign_iou
from detkit.ops.coder import Priors
from detkit.structures import Limits, Target

CHANNELS, STRIDES, CLASSES = [8, 16], [16, 32], 3
# The others need proposals, equal maps, pairs or views: they have their own tests.
ALONE = [name for name in HEADS if name not in ("roi", "sliding_window", "embed", "frame_order", "rotation", "simclr")]
# Arguments that have no default a head could be built with.
NEEDED: dict[str, dict[str, Any]] = {"yolo": {"anchors": [(10, 12), (30, 20), (40, 60), (90, 70)]}}


def build(name: str) -> Any:
    module, _, attribute = HEADS[name].partition(":")
    torch.manual_seed(0)
    return getattr(importlib.import_module(module), attribute)(CHANNELS, STRIDES, CLASSES, **NEEDED.get(name, {}))


def features(images: int = 2, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = zip(CHANNELS, STRIDES, strict=True)
    return [torch.randn(images, c, size // s, size // s, generator=generator) for c, s in maps]


def targets() -> list[Target]:
    """One image with two objects, one without any."""
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    found = Target(torch.tensor([[5.0, 5, 40, 30], [30, 20, 60, 64]]), torch.tensor([0, 2]), mask=mask, image_label=2)
    return [found, Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]


SIZES = torch.tensor([[64, 64], [48, 64]])


@pytest.mark.parametrize("name", ALONE)
def test_losses_are_finite_and_reach_every_parameter(name: str) -> None:
    head = build(name)
    losses = head.loss(head.raw(features()), targets(), SIZES)
    assert losses
    for term in losses.values():
        assert term.sum.ndim == term.count.ndim == 0
        assert term.sum.isfinite()
        assert term.sum >= 0
        assert term.count > 0
    sum(term.sum / term.count for term in losses.values()).backward()  # type: ignore[union-attr]
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_without_objects_keeps_every_term_in_the_graph(name: str) -> None:
    head = build(name)
    losses = head.loss(head.raw(features()), [targets()[1]] * 2, SIZES)
    for term in losses.values():
        assert term.sum.isfinite()
        assert term.sum.requires_grad
    sum(term.sum for term in losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", ALONE)
def test_predictions_lie_in_the_image_best_first(name: str) -> None:
    head = build(name).eval()
    with torch.inference_mode():
        raw = head.raw(features())
        found = head.predict(raw, SIZES, Limits(conf=0.0, max_detections=7))
    assert len(found) == 2
    for detections, (height, width) in zip(found, SIZES.tolist(), strict=True):
        assert 0 < len(detections) <= 7
        assert (detections.scores[:-1] >= detections.scores[1:]).all()
        assert ((detections.labels >= 0) & (detections.labels < CLASSES)).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= torch.tensor([width, height, width, height])).all()
        assert (detections.boxes[:, 2:] > detections.boxes[:, :2]).all()
    with torch.inference_mode():
        assert [len(d) for d in head.predict(raw, SIZES, Limits(conf=1.0))] == [0, 0]
        only = head.predict(raw, SIZES, Limits(conf=0.0, classes=(1,)))
    assert all(len(d) and (d.labels == 1).all() for d in only)


@pytest.mark.parametrize("name", ALONE)
def test_an_image_is_predicted_alike_alone_and_in_a_batch(name: str) -> None:
    head = build(name).eval()
    with torch.inference_mode():
        together = head.predict(head.raw(features()), SIZES, Limits.evaluation())
        alone = head.predict(head.raw([f[1:] for f in features()]), SIZES[1:], Limits.evaluation())[0]
    torch.testing.assert_close(together[1].boxes, alone.boxes)
    torch.testing.assert_close(together[1].scores, alone.scores)


@pytest.mark.parametrize("name", ALONE)
def test_mixed_precision_ends_before_boxes_and_scores(name: str) -> None:
    head = build(name)
    maps = [f.to(memory_format=torch.channels_last) for f in features()]
    with torch.autocast("cpu", torch.bfloat16):
        raw = head.raw([f.bfloat16() for f in maps])
        losses = head.loss(raw, targets(), SIZES)
    assert all(value.dtype == torch.float32 for value in raw.values() if value.is_floating_point())
    assert all(term.sum.dtype == torch.float32 for term in losses.values())


class Proposer(DenseHead):
    """The smallest region proposal network: objectness only, R-CNN's deltas, assignment by IoU."""

    class_scores = False

    def __init__(self) -> None:
        super().__init__(
            CHANNELS,
            STRIDES,
            1,
            anchors=[[(16, 16)], [(40, 40)]],
            objectness="one",
            box_loss="giou",
        )

    def assign(self, priors: Priors, objects: Objects, raw: dict[str, Tensor]) -> Assignment:
        return assign_iou(priors.boxes, objects, len(raw["boxes"]))


def test_a_proposal_network_is_a_small_subclass() -> None:
    head = Proposer()
    raw = head.raw(features())
    assert set(raw) == {"boxes", "objectness", "grid"}
    losses = head.loss(raw, [Target(t.boxes, torch.zeros_like(t.labels)) for t in targets()], SIZES)
    assert set(losses) == {"box", "objectness"}
    sum(term.sum for term in losses.values()).backward()
    assert all(p.grad is not None for p in head.parameters())
    found = head.predict(raw, SIZES, Limits(conf=0.0))
    assert (found[0].labels == 0).all()
    boxes, scores = head.decoded(raw)
    assert boxes.shape == (2, 20, 4)
    assert scores.shape == (2, 20, 1)


def test_object_weights_scale_the_losses() -> None:
    head = Proposer()
    raw = head.raw(features())
    target = targets()[0]

    def total(weight: float, name: str) -> float:
        weighted = Target(target.boxes, target.labels * 0, weight=torch.full((2,), weight))
        return head.loss(raw, [weighted, targets()[1]], SIZES)[name].sum.item()

    assert total(0.5, "box") == pytest.approx(total(1.0, "box") / 2)
    assert total(0.0, "box") == 0
    presence = [total(w, "objectness") for w in (0.0, 1.0, 2.0)]
    assert presence[2] - presence[1] == pytest.approx(presence[1] - presence[0], rel=1e-4)


def test_level_gains_weigh_the_objectness() -> None:
    head = Proposer()
    raw = head.raw(features())
    empty = [targets()[1]] * 2
    each = []
    for gains in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        head.options.level_gains = gains
        each.append(head.loss(raw, empty, SIZES)["objectness"].sum.item())
    assert each[2] == pytest.approx(2 * each[0] + 3 * each[1], rel=1e-5)


def test_at_most_candidates_enter_suppression() -> None:
    head = Proposer()
    head.options.candidates = 5
    found = head.predict(head.raw(features()), SIZES, Limits(conf=0.0, iou=1.0))
    assert [len(d) for d in found] == [5, 5]


@pytest.mark.parametrize("conf", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("candidates", [3, 7, 3000])
@pytest.mark.parametrize("ties", [False, True])
def test_candidates_are_the_best_of_all_scores(conf: float, candidates: int, ties: bool) -> None:
    """As from a full stable sort of an image's pairs of prior and class; of equal scores the first."""
    head = build("yolo")
    head.options.candidates = candidates
    raw = head.raw(features())
    generator = torch.Generator().manual_seed(0)
    for name in ("objectness", "classes"):
        # Logits that differ by half an ulp in the scores would make the two ways disagree about what is equal.
        raw[name] = torch.randint(-2, 3, raw[name].shape, generator=generator).float() if ties else raw[name] * 200
    raw["objectness"][0, ::3] = float("nan")
    found = head.predict(raw, SIZES, Limits(conf=conf, iou=1.0, max_detections=10_000, classes=(0, 2)))
    scores = head.scores(raw)
    boxes = head.decode(raw["boxes"], head.priors(raw)).clamp(min=0).minimum(SIZES.flip(1).repeat(1, 2)[:, None])
    for i, detections in enumerate(found):
        pairs = [(p, c) for p in range(scores.shape[1]) for c in (0, 2) if scores[i, p, c] >= conf]
        pairs = sorted(sorted(pairs, key=lambda pair: -scores[i][pair].item())[:candidates])
        pairs = [(p, c) for p, c in pairs if (boxes[i, p, 2:] > boxes[i, p, :2]).all()]
        pairs.sort(key=lambda pair: -scores[i][pair].item())
        assert detections.labels.tolist() == [c for _, c in pairs]
        torch.testing.assert_close(detections.scores, torch.tensor([scores[i][pair].item() for pair in pairs]))
        torch.testing.assert_close(detections.boxes, boxes[i, [p for p, _ in pairs]].reshape(-1, 4))


def test_not_a_number_is_never_a_detection() -> None:
    head = Proposer()
    raw = head.raw(features())
    raw["objectness"] = torch.full_like(raw["objectness"], float("nan"))
    assert [len(d) for d in head.predict(raw, SIZES, Limits(conf=0.0))] == [0, 0]


def test_objectness_starts_at_its_prior() -> None:
    head = build("yolo")
    nn.init.zeros_(head.layers[0].weight)
    raw = head.raw([torch.zeros_like(f) for f in features()])
    torch.testing.assert_close(raw["objectness"].sigmoid(), torch.full_like(raw["objectness"], 0.01))
    assert head.scores(raw).max().item() == pytest.approx(0.01 / CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"anchors": [[(1, 1)]]}, "anchors for 1 levels", id="a level without anchors"),
        pytest.param({"level_gains": [1.0]}, "one number per level", id="too few gains"),
        pytest.param({"share_stem": True}, "equal channels", id="levels of unlike width share a stem"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseHead(CHANNELS, STRIDES, 2, **{"anchors": [[(1, 1)], [(2, 2)]], **arguments})


def test_a_shared_stem_is_one_module() -> None:
    head = DenseHead([8, 8], STRIDES, 2, anchors=[[(1, 1)], [(2, 2)]], stem=2, share_stem=True)
    assert len(head.stems) == 1  # so that a file holds it once
    maps = [f[:, :8] for f in features()]
    assert head.raw(maps)["objectness"].shape == (2, 16 + 4)


def test_gathered_objects_know_their_image() -> None:
    first, second = targets()
    objects = gather_objects([second, first, second, first], "cpu")
    assert objects.image.tolist() == [1, 1, 3, 3]
    assert objects.labels.tolist() == [0, 2, 0, 2]
    assert gather_objects([second], "cpu").boxes.shape == (0, 4)


def test_classes_that_the_labels_do_not_tell_of_do_not_count() -> None:
    head = build("yolo")
    raw = head.raw(features())
    raw["classes"] = raw["classes"].detach().requires_grad_()
    known = Target(targets()[0].boxes, targets()[0].labels, known=(0,))
    head.loss(raw, [known, targets()[1]], SIZES)["classes"].sum.backward()
    gradient = raw["classes"].grad[0]
    assert gradient[:, 0].any()
    assert not gradient[:, 1].any()
    assert gradient[:, 2].any()
    assert (gradient[:, 2] <= 0).all()  # up, where class 2 is labelled
