"""YOLO: the textbook's targets and loss, its options, and a toy head that learns to find boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.errors import DetkitError
from detkit.heads.yolo import YOLO, split_anchors, textbook_boxes, textbook_target
from detkit.ops.boxes import iou
from detkit.ops.losses import localization_loss
from detkit.structures import Limits, Target

ANCHORS = [(20.0, 40.0), (60.0, 30.0)]
NONE = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
# The textbook's head: linear boxes, squared errors, sums over the image.
TEXTBOOK: dict[str, Any] = {
    "assign": "midpoint",
    "coder": "textbook",
    "box_loss": "squared",
    "classes": "softmax",
    "score_loss": "squared",
    "objectness": "one",
    "normalise": "images",
    "box_gain": 1.0,
}


def target(*rows: tuple[float, float, float, float, int]) -> Target:
    table = torch.tensor(rows)
    return Target(table[:, :4], table[:, 4].long())


@pytest.mark.parametrize(
    ("grid", "anchors", "shape"),
    [(3, [(1, 1)], (3, 3, 1, 8)), (3, ANCHORS, (3, 3, 2, 8)), (19, [(i, i) for i in range(1, 6)], (19, 19, 5, 8))],
)
def test_textbook_target_shapes(grid: int, anchors: list[tuple[float, float]], shape: tuple[int, ...]) -> None:
    y, lost = textbook_target(NONE, grid, anchors, 3, (96, 96))
    assert y.shape == shape
    assert not y.any()
    assert lost == 0


def test_textbook_target_by_hand() -> None:
    """A wide car (class 1), midpoint (48, 72), 60 x 24 in an image of 96 x 96: row 2, column 1, second anchor."""
    y, lost = textbook_target(target((18, 60, 78, 84, 1)), 3, ANCHORS, 3, (96, 96))
    assert y[2, 1, 1].tolist() == pytest.approx([1, 0.5, 0.25, 0.75, 1.875, 0, 1, 0])
    assert y.count_nonzero() == 6
    assert lost == 0


def test_textbook_target_of_an_image_that_is_not_square() -> None:
    y, _ = textbook_target(target((30, 10, 50, 50, 0)), 2, [(20, 40)], 2, (100, 60))
    assert y[0, 1, 0].tolist() == pytest.approx([1, (40 - 30) / 30, 30 / 50, 40 / 50, 20 / 30, 1, 0])


def test_two_objects_of_a_cell_survive_with_different_anchors_only() -> None:
    tall, wide = (38.0, 28.0, 58.0, 68.0, 0), (18.0, 33.0, 78.0, 63.0, 2)
    y, lost = textbook_target(target(tall, wide), 3, ANCHORS, 3, (96, 96))
    assert lost == 0
    found = textbook_boxes(y, (96, 96))
    torch.testing.assert_close(found.boxes, torch.tensor([tall[:4], wide[:4]]))
    assert found.labels.tolist() == [0, 2]
    narrow = (39.0, 28.0, 57.0, 68.0, 1)
    y, lost = textbook_target(target(tall, narrow), 3, ANCHORS, 3, (96, 96))
    assert lost == 1
    assert textbook_boxes(y, (96, 96)).labels.tolist() == [1]  # the smaller one


def test_textbook_boxes_discard_up_to_the_threshold() -> None:
    y = torch.zeros(3, 3, 1, 8)
    y[0, 0, 0, 0], y[1, 1, 0, 0] = 0.6, 0.61
    assert textbook_boxes(y, (96, 96), threshold=0.6).scores.tolist() == pytest.approx([0.61])


def textbook_head(**changes: Any) -> YOLO:
    torch.manual_seed(0)
    return YOLO([6], [32], 3, anchors=ANCHORS, **(TEXTBOOK | changes))


def test_the_textbook_heads_loss_is_the_squared_distance_to_the_textbook_target() -> None:
    head = textbook_head()
    raw = head.raw([20 * torch.randn(2, 6, 3, 3)])
    targets_ = [target((18, 60, 78, 84, 1), (0, 0, 25, 50, 0), (66, 4, 90, 40, 2)), NONE]
    losses = head.loss(raw, targets_, torch.tensor([[96, 96]] * 2))
    boxes = raw["boxes"][..., [0, 1, 3, 2]]
    output = torch.cat((raw["objectness"].sigmoid()[..., None], boxes, raw["classes"].softmax(-1)), dim=-1)
    y = torch.stack([textbook_target(t, 3, ANCHORS, 3, (96, 96))[0] for t in targets_]).flatten(1, 3)
    total = sum(term.sum for term in losses.values())
    torch.testing.assert_close(total, localization_loss(output, y).sum())
    assert all(term.count == 2 for term in losses.values())


def test_the_likelihood_variant_differs_in_presence_and_classes_only() -> None:
    features, sizes = [torch.randn(1, 6, 3, 3)], torch.tensor([[96, 96]])
    squared, likelihood = textbook_head(), textbook_head(score_loss="likelihood")
    found = [h.loss(h.raw(features), [target((18, 60, 78, 84, 1))], sizes) for h in (squared, likelihood)]
    assert found[0]["box"].sum == found[1]["box"].sum
    assert found[0]["classes"].sum != found[1]["classes"].sum


def test_anchors_are_dealt_by_area_to_the_finest_stride_first() -> None:
    anchors = [(50, 60), (4, 5), (9, 9), (20, 30)]
    assert split_anchors(anchors, [8, 16]) == [[(4, 5), (9, 9)], [(20, 30), (50, 60)]]
    assert split_anchors(anchors, [32, 8]) == [[(20, 30), (50, 60)], [(4, 5), (9, 9)]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"anchors": "auto"}, ValueError, "must be replaced", id="auto is the builder's business"),
        pytest.param({"anchors": [(1, 2)]}, DetkitError, "cannot be dealt evenly", id="one anchor, two levels"),
        pytest.param({"anchors": [(1, 2), (0, 3)]}, DetkitError, "positive", id="an anchor without width"),
        pytest.param({"ignore_above": 0.7}, DetkitError, "assign: midpoint", id="the band is Darknet's"),
        pytest.param({"coder": "darknet"}, DetkitError, "neighbouring", id="a sigmoid cannot leave its cell"),
    ],
)
def test_options_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        YOLO([4, 4], [8, 16], 2, **{"anchors": ANCHORS, **arguments})


OPTIONS = [
    {},
    {"box_loss": "giou", "classes": "softmax", "smoothing": 0.1, "level_gains": [1.0]},
    {"assign": "midpoint", "ignore_above": 0.7, "coder": "darknet", "objectness": "one", "stem": 1},
    {"coder": "darknet", "neighbours": False, "xy_scale": 1.2, "objectness_gain": 2.0},
    TEXTBOOK,
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_every_option_trains(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = YOLO([6], [32], 3, anchors=ANCHORS, **options)
    features, sizes = [torch.randn(2, 6, 3, 3)], torch.tensor([[96, 96]] * 2)
    targets_ = [target((18, 60, 78, 84, 1), (0, 0, 25, 50, 0)), NONE]
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    seen = []
    for _ in range(25):
        losses = head.loss(head.raw(features), targets_, sizes)
        total = sum(term.sum / term.count for term in losses.values())
        assert isinstance(total, Tensor)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(total.item())
    assert seen[-1] < 0.6 * seen[0]


def drawn(generator: torch.Generator, images: int) -> tuple[list[Tensor], list[Target]]:
    """Synthetic features that hold, at every cell that an object's middle half covers, its class and its four sides."""
    targets, maps = [], []
    for _ in range(images):
        rows, planes = [], torch.zeros(2, 7, 16, 16)
        for column in range(2):
            w, h = (24 + 56 * torch.rand(2, generator=generator)).tolist()
            x = (64 * column + (64 - w) * torch.rand(1, generator=generator).clamp(0.2, 0.8)).clamp(0, 128 - w).item()
            y = ((128 - h) * torch.rand(1, generator=generator)).item()
            label = int(torch.randint(2, (1,), generator=generator))
            rows.append((x, y, x + w, y + h, label))
            for level, stride in enumerate((8, 16)):
                centres = (torch.arange(128 // stride) + 0.5) * stride
                inside_x = (centres > x + w / 4) & (centres < x + 3 * w / 4)
                inside_y = (centres > y + h / 4) & (centres < y + 3 * h / 4)
                for i in inside_x.nonzero().flatten().tolist():
                    for j in inside_y.nonzero().flatten().tolist():
                        u, v = centres[i].item(), centres[j].item()
                        planes[level, :, j, i] = torch.tensor(
                            [label, 1 - label, (u - x) / 40, (x + w - u) / 40, (v - y) / 40, (y + h - v) / 40, 1]
                        )
        targets.append(target(*rows))
        maps.append(planes)
    stack = torch.stack(maps)
    return [stack[:, 0], stack[:, 1, :, :8, :8].contiguous()], targets


def test_a_toy_head_learns_to_find_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    lift = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Conv2d(7, 32, 1), torch.nn.SiLU(), torch.nn.Conv2d(32, 32, 1), torch.nn.SiLU())
        for _ in range(2)
    )
    head = YOLO([32, 32], [8, 16], 2, anchors=[(30, 30), (30, 60), (60, 30), (70, 70)])
    optimizer = torch.optim.Adam([*lift.parameters(), *head.parameters()], 0.01)
    sizes = torch.tensor([[128, 128]] * 16)

    def raw(features: list[Tensor]) -> dict[str, Tensor]:
        return head.raw([layer(f) for layer, f in zip(lift, features, strict=True)])

    for _ in range(120):
        features, targets = drawn(generator, 16)
        losses = head.loss(raw(features), targets, sizes)
        optimizer.zero_grad()
        sum(term.sum / term.count for term in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    features, targets = drawn(generator, 16)
    with torch.inference_mode():
        found = head.predict(raw(features), sizes, Limits(conf=0.4))
    hits, extra = 0, 0
    for detections, wanted in zip(found, targets, strict=True):
        overlap = iou(wanted.boxes, detections.boxes)
        right = (overlap > 0.6) & (wanted.labels[:, None] == detections.labels[None])
        hits += int(right.any(1).sum())
        extra += len(detections) - int(right.any(0).sum())
    assert hits >= 29, f"{hits} of 32 objects found"
    assert extra <= 4, f"{extra} detections of nothing"
