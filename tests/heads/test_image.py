"""Heads that answer for a whole image: classification, localization, landmarks; by hand-worked numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.heads.image import Classify, Localize, chosen_object, localization_target
from detkit.ops.losses import localization_loss
from detkit.structures import Limits, Target

SIZES = torch.tensor([[100, 200]])


def target(*boxes: tuple[float, ...], labels: tuple[int, ...] = (), **more: Any) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), **more)


def number(value: Tensor) -> float:
    return float(value.detach())


def logit(share: float) -> float:
    return math.log(share / (1 - share))


# ---------------------------------------------------------------- classification


def test_the_loss_of_a_label_is_minus_its_log_likelihood() -> None:
    head = Classify([4], [32], 3)
    raw = {"classes": torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1.0, 0, 0]]).add(1e-9).log()}
    labelled = [target(image_label=0), target(image_label=2), target()]
    loss = head.loss(raw, labelled, SIZES.expand(3, 2))["classes"]
    assert loss.sum.item() == pytest.approx(-math.log(0.5) - math.log(0.1), rel=1e-5)
    assert loss.count.item() == 2  # an image without a label teaches nothing


def test_an_answer_is_a_detection_of_the_whole_image() -> None:
    head = Classify([4], [32], 3)
    raw = {"classes": torch.tensor([[0.3, 0.6, 0.1]]).log()}
    found = head.predict(raw, SIZES, Limits(conf=0.25))[0]
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.6, 0.3])
    assert found.boxes.tolist() == [[0, 0, 200, 100]] * 2
    assert head.predict(raw, SIZES, Limits(conf=0.25, max_detections=1))[0].labels.tolist() == [1]
    assert head.predict(raw, SIZES, Limits(conf=0.0, classes=(2,)))[0].labels.tolist() == [2]


def test_every_class_answers_under_the_limits_of_evaluation() -> None:
    raw = {"classes": torch.tensor([[0.0, -30, -40, -50]])}
    found = Classify([4], [32], 4).predict(raw, SIZES, Limits.evaluation())[0]
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_hidden_layers_and_the_backbones_own_trunk() -> None:
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    head = Classify([2, 4], [16, 32], 3, trunk, layers="backbone", hidden=(6, 5))
    assert [layer.out_features for layer in head.hidden if isinstance(layer, nn.Linear)] == [6, 5]
    assert head.hidden[0].in_features == 7
    assert head.backbone_trunk is trunk
    assert head.raw([torch.randn(2, 2, 4, 4), torch.randn(2, 4, 2, 2)])["classes"].shape == (2, 3)
    assert Classify([4], [32], 3, trunk).backbone_trunk is None


def test_the_probe_of_a_trunk_is_as_large_as_its_maps_are() -> None:
    # LeNet-5's C5 looks at 5 x 5 cells of a pooled map: 7 x 7 before pooling would be too few.
    trunk = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 120, 5), nn.AdaptiveAvgPool2d(1))
    assert Classify([16], [2], 3, trunk, layers="backbone").last.in_features == 120


def test_the_branches_losses_are_their_cross_entropies_times_0_3() -> None:
    sides = {k: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(k + 2, 9)) for k in (0, 1)}
    head = Classify([4], [32], 3, None, sides, smoothing=0.1)
    maps = [torch.randn(3, channels, 2, 2) for channels in (2, 3, 4)]
    labels = torch.tensor([2, 0])
    losses = head.loss(head.raw(maps), [target(image_label=2), target(image_label=0), target()], SIZES.expand(3, 2))
    assert list(losses) == ["classes", "side1", "side2"]
    for (place, side), name in zip(enumerate(head.sides), ("side1", "side2"), strict=True):
        wanted = 0.3 * nn.functional.cross_entropy(side(maps[place])[:2], labels, label_smoothing=0.1, reduction="sum")
        torch.testing.assert_close(losses[name].sum, wanted)
        assert losses[name].count.item() == 2
    assert list(head.class_rows) == ["last.", "sides.0.2.", "sides.1.2."]
    assert list(head.eval().raw(maps[2:])) == ["classes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": (0,)}, "hidden must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"layers": "backbone"}, "gives no trunk"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, DetkitError), match=words):
        Classify([4], [32], 3, **arguments)


# ---------------------------------------------------------------- localization


def test_the_textbooks_target() -> None:
    # A car (class 2 of pedestrian, car, motorcycle) in the lower right: 8 numbers.
    found = localization_target(target((80.0, 55, 140, 85), labels=(1,)), (100, 200), 3)
    assert found.tolist() == pytest.approx([1, 0.55, 0.7, 0.3, 0.3, 0, 1, 0])
    assert localization_target(target(), (100, 200), 3).tolist() == [0] * 8


def test_the_largest_object_that_counts_is_the_images() -> None:
    boxes = ((0.0, 0, 10, 10), (0.0, 0, 50, 50), (0.0, 0, 30, 30), (5.0, 0, 35, 30))
    labels = (0, 1, 2, 3)
    assert chosen_object(target(*boxes, labels=labels)) == 1
    assert chosen_object(target(*boxes, labels=labels, difficult=torch.tensor([False, True, False, False]))) == 2
    assert chosen_object(target(boxes[0], labels=(0,), crowd=torch.tensor([True]))) is None
    assert chosen_object(target()) is None


def raw_of(numbers: list[float], classes: int = 3) -> dict[str, Tensor]:
    """Logits that stand for P_c, b_x, b_y, b_h, b_w, c_1 ..."""
    presence = torch.tensor([logit(numbers[0])], requires_grad=True)
    boxes = torch.tensor([[logit(v) for v in numbers[1:5]]], requires_grad=True)
    scores = torch.tensor([numbers[5:]]).log().requires_grad_()
    return {"objectness": presence, "boxes": boxes, "classes": scores}


def test_the_squared_loss_is_the_textbooks() -> None:
    head = Localize([4], [32], 3, box_loss="squared", score_loss="squared")
    predicted = [0.8, 0.5, 0.5, 0.2, 0.4, 0.2, 0.7, 0.1]
    there = target((80.0, 55, 140, 85), labels=(1,))
    losses = head.loss(raw_of(predicted), [there], SIZES)
    wanted = localization_target(there, (100, 200), 3)
    assert sum(number(term.sum) for term in losses.values()) == pytest.approx(
        float(localization_loss(torch.tensor(predicted), wanted)), rel=1e-5
    )
    # (0.2)^2 + (0.05)^2 + (0.2)^2 + (0.1)^2 + (0.1)^2 + (0.2)^2 + (0.3)^2 + (0.1)^2
    assert sum(number(term.sum) for term in losses.values()) == pytest.approx(0.2425, rel=1e-4)
    assert [number(term.count) for term in losses.values()] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["squared", "likelihood"])
def test_without_an_object_only_its_absence_is_learned(kind: Any) -> None:
    head = Localize([4], [32], 3, box_loss="squared" if kind == "squared" else "giou", score_loss=kind)
    raw = raw_of([0.8, 0.5, 0.5, 0.2, 0.4, 0.2, 0.7, 0.1])
    losses = head.loss(raw, [target()], SIZES)
    total = sum(term.sum for term in losses.values())
    assert isinstance(total, Tensor)
    total.backward()
    assert number(total) == pytest.approx(0.64 if kind == "squared" else -math.log(0.2), rel=1e-5)
    assert raw["objectness"].grad.item() > 0  # type: ignore[union-attr]
    for name in ("boxes", "classes"):
        assert raw[name].grad is None or not raw[name].grad.any()  # type: ignore[union-attr]
    assert number(losses["box"].count) == number(losses["classes"].count) == 0


def test_likelihoods_and_iou_by_hand() -> None:
    head = Localize([4], [32], 3, box_loss="iou", box_gain=2.0)
    exact = target((60.0, 40, 140, 60), labels=(1,))  # the prediction below
    raw = raw_of([0.8, 0.5, 0.5, 0.2, 0.4, 0.2, 0.7, 0.1])
    losses = head.loss(raw, [exact], SIZES)
    assert number(losses["objectness"].sum) == pytest.approx(-math.log(0.8), rel=1e-5)
    assert number(losses["classes"].sum) == pytest.approx(-math.log(0.7), rel=1e-5)
    assert number(losses["box"].sum) == pytest.approx(0, abs=1e-5)
    half = target((60.0, 40, 100, 60), labels=(1,))
    assert number(head.loss(raw, [half], SIZES)["box"].sum) == pytest.approx(2 * 0.5, rel=1e-5)
    ignored = target((60.0, 40, 100, 60), labels=(1,), difficult=torch.tensor([True]))
    assert all(number(t.sum) == number(t.count) == 0 for t in head.loss(raw, [ignored], SIZES).values())


def test_an_answer_is_the_box_with_a_score_a_class() -> None:
    found = Localize([4], [32], 3).predict(raw_of([0.8, 0.5, 0.5, 0.2, 0.4, 0.2, 0.7, 0.1]), SIZES, Limits(conf=0.1))[0]
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.56, 0.16]))
    torch.testing.assert_close(found.boxes, torch.tensor([[60.0, 40, 140, 60]] * 2))
    assert not found.extra


# ---------------------------------------------------------------- landmarks


def test_points_are_learned_where_they_are_visible_and_returned_in_pixels() -> None:
    head = Localize([4], [32], 1, points=3, flip_pairs=((0, 1),), point_gain=1.0, beta=0.1)
    assert head.last.out_features == 5 + 6 + 1
    box = (50.0, 20, 90, 60)  # the root of its area is 40
    points = torch.tensor([[[60.0, 30, 1], [80, 30, 2], [10, 10, 0]]])
    raw = raw_of([0.9, 0.35, 0.4, 0.4, 0.2, 1.0])
    # 4 pixels to the right (0.1 of 40), exact, and far off but not visible.
    raw["points"] = torch.tensor([[[64 / 200 - 0.5, 0.3 - 0.5], [0.4 - 0.5, 0.3 - 0.5], [0.5, 0.5]]])
    losses = head.loss(raw, [target(box, labels=(0,), points=points)], SIZES)
    assert number(losses["points"].sum) == pytest.approx(0.05, rel=1e-4)  # smooth L1 at beta: half of the error
    assert number(losses["points"].count) == 4 / 2
    found = head.predict(raw, SIZES, Limits(conf=0.5))[0]
    torch.testing.assert_close(found.extra["points"], torch.tensor([[[64.0, 30], [80, 30], [200, 100]]]))
    losses = head.loss(raw, [target(box, labels=(0,))], SIZES)  # an object without points
    assert number(losses["points"].sum) == number(losses["points"].count) == 0


def test_another_number_of_points_is_an_error() -> None:
    head = Localize([4], [32], 1, points=3)
    wrong = target((0.0, 0, 9, 9), labels=(0,), points=torch.ones(1, 2, 3))
    with pytest.raises(DetkitError, match="2 points an object, the model 3"):
        head.loss(head.raw([torch.randn(1, 4, 2, 2)]), [wrong], SIZES)
    for pairs in (((0, 3),), ((0, 1), (1, 2))):
        with pytest.raises(ValueError, match="flip_pairs"):
            Localize([4], [32], 1, points=3, flip_pairs=pairs)
