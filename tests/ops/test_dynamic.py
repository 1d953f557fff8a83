from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from detkit.ops import assign, dynamic
from detkit.ops.assign import Objects
from detkit.ops.boxes import iou as box_iou
from detkit.ops.coder import Level, Priors, grid_priors
from detkit.ops.dynamic import Answers, assign_soft, assign_tal, class_mask

RULES = [pytest.param(assign_tal, id="tal"), pytest.param(assign_soft, id="soft")]


def priors(sides: tuple[int, ...] = (4,), strides: tuple[int, ...] = (8,)) -> Priors:
    """Grids of square cells whose points are their centres."""
    return grid_priors([Level(n, n, s, torch.tensor([[s, s]])) for n, s in zip(sides, strides, strict=True)])


def objects(
    boxes: list[list[float]],
    labels: list[int] | None = None,
    image: list[int] | None = None,
    difficult: list[bool] | None = None,
) -> Objects:
    n = len(boxes)
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    columns = [torch.tensor(values or [0] * n, dtype=torch.int64) for values in (labels, image)]
    hard = torch.tensor(difficult or [False] * n, dtype=torch.bool)
    return Objects(table, *columns, torch.ones(n), torch.zeros(n, dtype=torch.bool), hard)


def same_boxes(places: Priors, box: list[float], images: int = 1) -> Tensor:
    return torch.tensor(box, dtype=torch.float32).expand(images, len(places.strides), 4)


def test_tal_by_hand() -> None:
    """Points at 4, 12, 20, 28; the object holds those at 12 and 20 of the second row, whose u are 1 and 1/2."""
    places = priors()
    gt = objects([[8, 8, 24, 16]])
    boxes = same_boxes(places, [0, 0, 1, 1]).clone()
    boxes[0, 5], boxes[0, 6] = torch.tensor([8.0, 8, 24, 16]), torch.tensor([8.0, 8, 16, 16])
    boxes[0, 0] = torch.tensor([8.0, 8, 24, 16])  # as good, but its point lies outside
    scores = torch.full((1, 16, 1), 0.9)
    scores[0, 5], scores[0, 6] = 0.1, 0.8
    found = assign_tal(places, gt, scores, boxes, topk=3, alpha=1.0, beta=2.0)
    assert found.prior.tolist() == [5, 6]
    assert found.row.tolist() == [0, 0]
    # t is 0.1 * 1 and 0.8 / 4: the second prior has the highest, and the object's best u is 1
    torch.testing.assert_close(found.quality, torch.tensor([0.5, 1.0]))
    assert found.lost == 0
    best = assign_tal(places, gt, scores, boxes, topk=1, alpha=1.0, beta=2.0)
    assert best.prior.tolist() == [6]
    torch.testing.assert_close(best.quality, torch.tensor([0.5]))  # t / max(t) * max(u), of its own alone


def test_soft_by_hand() -> None:
    places = priors()
    gt = objects([[8, 8, 24, 16]], [1])
    boxes = same_boxes(places, [0, 0, 1, 1]).clone()
    boxes[0, 5], boxes[0, 6] = torch.tensor([8.0, 8, 24, 16]), torch.tensor([8.0, 8, 16, 16])
    scores = torch.full((1, 16, 2), 0.01)
    scores[0, 5, 1] = scores[0, 6, 1] = 0.5
    found = assign_soft(places, gt, scores, boxes)
    # u adds up to 1.5, so one prior answers; costs: 0.25 log 2 against 0 + 3 log 2
    assert found.prior.tolist() == [5]
    assert found.quality.tolist() == [1.0]
    scores[0, 5, 0] = 1 - 1e-4  # sure of the other class: costs log(10 000), more than 3 log 2
    found = assign_soft(places, gt, scores, boxes)
    assert found.prior.tolist() == [6]
    assert found.quality.tolist() == [0.5]


@pytest.mark.parametrize("rule", RULES)
def test_small_objects_have_the_nearest_point_of_the_finest_level(rule: object) -> None:
    places = priors((4, 2), (8, 16))
    gt = objects([[14, 13, 15, 14], [30, 30, 31, 31]])
    found = rule(places, gt, torch.full((1, 20, 1), 0.1), same_boxes(places, [0, 0, 8, 8]))  # type: ignore[operator]
    assert found.prior.tolist() == [5, 15]
    assert found.row.tolist() == [0, 1]
    assert found.lost == 0


@pytest.mark.parametrize("rule", RULES)
def test_equal_objects_the_first_has_the_prior(rule: object) -> None:
    places = priors()
    gt = objects([[8, 8, 24, 16]] * 2)
    found = rule(places, gt, torch.full((1, 16, 1), 0.1), same_boxes(places, [8, 8, 24, 16]))  # type: ignore[operator]
    assert found.row.tolist() == [0, 0]
    assert found.lost == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("images", [1, 3])
def test_no_objects(rule: object, images: int) -> None:
    places = priors()
    for gt in (objects([]), objects([[8, 8, 8, 16], [0, 0, 9, 9]], difficult=[False, True])):
        found: Answers = rule(places, gt, torch.rand(images, 16, 2), torch.rand(images, 16, 4))  # type: ignore[operator]
        assert [len(column) for column in found[:4]] == [0, 0, 0, 0]
        assert found.lost == 0


def test_ignored_objects_switch_off_their_own_class_inside() -> None:
    places = priors()
    gt = objects([[8, 8, 24, 16], [0, 0, 32, 32], [1, 1, 2, 2]], [1, 0, 2], [1, 1, 0], [True, False, True])
    off = (~class_mask(places, gt, 2, 3)).nonzero()
    # (image, prior, class): a small one has one prior
    assert off.tolist() == [[0, 0, 2], [1, 5, 1], [1, 6, 1]]


def rank_by(rule: str, scores: list[float], label: int, u: float) -> float:
    rank = 3 * math.log(max(u, 1e-9))
    if rule == "tal":
        return math.log(scores[label]) + 2 * rank
    for c, p in enumerate(scores):
        wanted = u if c == label else 0.0
        rank += (wanted * math.log(p) + (1 - wanted) * math.log(1 - p)) * (wanted - p) ** 2
    return rank


def plain(
    rule: str, places: Priors, gt: Objects, scores: Tensor, boxes: Tensor, topk: int
) -> dict[tuple[int, int], tuple[int, float]]:
    """The rules once more, image by image, object by object, prior by prior: (image, prior) to (row, quality)."""
    claims: dict[tuple[int, int], list[tuple[float, int, float, float]]] = {}
    for row in range(len(gt.labels)):
        image, label = int(gt.image[row]), int(gt.labels[row])
        x1, y1, x2, y2 = gt.boxes[row].tolist()
        points = places.centres.tolist()
        inside = [a for a, (x, y) in enumerate(points) if x1 < x < x2 and y1 < y < y2]
        if not inside:
            finest = [a for a, stride in enumerate(places.strides[:, 0].tolist()) if stride == 4]
            middle = (x1 + x2) / 2, (y1 + y2) / 2
            inside = [min(finest, key=lambda a: math.dist(points[a], middle))]
        u = box_iou(gt.boxes[row : row + 1].double(), boxes[image].double())[0].tolist()
        s = scores[image].double().clamp(1e-9, 1 - 1e-9)

        rank = [rank_by(rule, s[a].tolist(), label, u[a]) for a in range(len(points))]
        count = topk if rule == "tal" else max(1, int(sum(sorted((u[a] for a in inside), reverse=True)[:topk]) + 1e-5))
        for a in sorted(inside, key=rank.__getitem__, reverse=True)[:count]:
            strength = u[a] if rule == "tal" else rank[a]
            claims.setdefault((image, a), []).append((strength, row, u[a], rank[a]))
    won = {slot: max(wanting, key=lambda one: (one[0], -one[1])) for slot, wanting in claims.items()}
    answers = {}
    for slot, (_, row, u_here, rank_here) in won.items():
        own = [one for one in won.values() if one[1] == row]
        tal = math.exp(rank_here - max(one[3] for one in own)) * max(one[2] for one in own)
        answers[slot] = row, tal if rule == "tal" else u_here
    return answers


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    rule=st.sampled_from(["tal", "soft"]),
    topk=st.integers(1, 6),
)
def test_as_by_plain_loops(seed: int, counts: list[int], rule: str, topk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    places = priors((8, 4), (4, 8))
    total = len(places.strides)

    def some_boxes(*shape: int) -> Tensor:
        corner = torch.rand(*shape, 2, generator=generator) * 26
        return torch.cat((corner, corner + 1 + torch.rand(*shape, 2, generator=generator) ** 2 * 24), -1)

    gt = objects(some_boxes(sum(counts)).tolist(), None, [i for i, count in enumerate(counts) for _ in range(count)])
    gt = gt._replace(labels=torch.randint(0, 3, (len(gt.labels),), generator=generator))
    scores = torch.rand(len(counts), total, 3, generator=generator) * 0.98 + 0.01
    sizes = 2 + torch.rand(len(counts), total, 4, generator=generator) * 12
    boxes = torch.cat((places.centres - sizes[..., :2], places.centres + sizes[..., 2:]), -1)
    found = (assign_tal if rule == "tal" else assign_soft)(places, gt, scores, boxes, topk=topk)
    wanted = plain(rule, places, gt, scores, boxes, topk)
    slots = list(zip(found.image.tolist(), found.prior.tolist(), strict=True))
    assert slots == sorted(wanted)
    assert found.row.tolist() == [wanted[slot][0] for slot in slots]
    assert found.quality.tolist() == pytest.approx([wanted[slot][1] for slot in slots], abs=1e-4)
    assert found.lost == len(gt.labels) - len(set(found.row.tolist()))


@pytest.mark.parametrize("rule", RULES)
def test_chunks_change_nothing(rule: object, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    places = priors((8, 4), (4, 8))
    corner = torch.rand(40, 2, generator=generator) * 24
    gt = objects(torch.cat((corner, corner + 7), 1).tolist(), image=sorted([0, 1] * 20), difficult=[False, True] * 20)
    scores, sides = torch.rand(2, 80, 1, generator=generator), torch.rand(2, 80, 4, generator=generator) * 9
    boxes = torch.cat((places.centres - sides[..., :2], places.centres + sides[..., 2:]), -1)
    whole = rule(places, gt, scores, boxes), class_mask(places, gt, 2, 1)  # type: ignore[operator]
    monkeypatch.setattr(assign, "CHUNK_BYTES", 1)  # one object each
    parts = rule(places, gt, scores, boxes), dynamic.class_mask(places, gt, 2, 1)  # type: ignore[operator]
    for a, b in zip((*whole[0], whole[1]), (*parts[0], parts[1]), strict=True):
        assert torch.equal(a, b)
