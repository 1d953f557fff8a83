"""Three-state assignment: the rules by hand, a slow reference, collisions, ignored regions, chunks."""

from __future__ import annotations

import pytest
import torch

from detkit.ops import assign as module
from detkit.ops.assign import Assignment, Objects, assign_iou, assign_midpoint, assign_ratio
from detkit.ops.coder import Level, grid_priors

ANCHORS = torch.tensor([[20.0, 20.0], [60.0, 30.0]])


def make(
    boxes: list[list[float]],
    image: list[int] | None = None,
    crowd: tuple[int, ...] = (),
    difficult: tuple[int, ...] = (),
) -> Objects:
    n = len(boxes)
    rows = torch.arange(n)
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.zeros(n, dtype=torch.int64),
        torch.tensor(image or [0] * n, dtype=torch.int64),
        torch.ones(n),
        torch.isin(rows, torch.tensor(crowd, dtype=torch.int64)),
        torch.isin(rows, torch.tensor(difficult, dtype=torch.int64)),
    )


def random_objects(count: int, images: int, size: float, seed: int = 0) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.9
    wh = torch.rand(count, 2, generator=generator) * size * 0.5 + 2
    boxes = torch.cat((corner, (corner + wh).clamp(max=size)), 1)
    image = torch.randint(images, (count,), generator=generator).sort().values
    no = torch.zeros(count, dtype=torch.bool)
    return Objects(boxes, torch.zeros_like(image), image, torch.ones(count), no, no)


def positives(assignment: Assignment) -> list[list[int]]:
    return assignment.positive.tolist()


def grid(anchors: torch.Tensor = ANCHORS) -> list[Level]:
    return [Level(3, 3, 32.0, anchors)]


def test_midpoint_takes_the_cell_and_the_best_anchor() -> None:
    # Midpoint (40, 72): column 1, row 2; a wide box fits the second anchor.
    assignment = assign_midpoint(grid(), make([[10, 60, 70, 84]]), 1)
    assert positives(assignment) == [[0, (2 * 3 + 1) * 2 + 1, 0]]
    assert not assignment.ignore.any()
    assert assignment.lost == 0


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        pytest.param([92, 92, 100, 100], 8, id="midpoint on the far corner: the last cell"),
        pytest.param([-10, -10, 10, 10], 0, id="midpoint on the origin"),
        pytest.param([22, 0, 42, 20], 1, id="midpoint on a cell's border: the cell it begins"),
        pytest.param([200, 0, 220, 20], 2, id="midpoint beyond the image: the nearest cell"),
    ],
)
def test_midpoint_on_borders(box: list[float], cell: int) -> None:
    assert positives(assign_midpoint(grid(), make([box]), 1)) == [[0, cell * 2, 0]]


def test_two_objects_in_a_cell_with_different_anchors_both_stay() -> None:
    assignment = assign_midpoint(grid(), make([[38, 38, 58, 58], [18, 33, 78, 63]]), 1)
    assert positives(assignment) == [[0, 8, 0], [0, 9, 1]]
    assert assignment.lost == 0


def test_two_objects_for_one_slot_the_smaller_has_it_then_the_first() -> None:
    big, small = [36, 36, 60, 60], [38, 38, 58, 58]
    for boxes, winner in (([big, small], 1), ([small, big], 0), ([small, small], 0)):
        assignment = assign_midpoint(grid(), make(boxes), 1)
        assert positives(assignment) == [[0, 8, winner]]
        assert assignment.lost == 1
    apart = assign_midpoint(grid(), make([big, small], image=[0, 1]), 2)
    assert positives(apart) == [[0, 8, 0], [1, 8, 1]]
    assert apart.lost == 0


def test_midpoint_over_levels_takes_the_best_anchor_of_all() -> None:
    levels = [Level(4, 4, 8.0, torch.tensor([[8.0, 8.0]])), Level(2, 2, 16.0, torch.tensor([[16.0, 16.0]]))]
    assignment = assign_midpoint(levels, make([[1, 1, 10, 9], [16, 16, 31, 30]]), 1)
    assert positives(assignment) == [[0, 0, 0], [0, 16 + 3, 1]]


def test_ignore_band_compares_predicted_boxes() -> None:
    levels, objects = grid(), make([[38, 38, 58, 58]], image=[1])
    predicted = torch.zeros(2, 18, 4)
    predicted[:, 3] = torch.tensor([38.0, 38, 58, 56])  # IoU 0.9
    predicted[:, 4] = torch.tensor([38.0, 38, 58, 50])  # IoU 0.6
    predicted[:, 8] = torch.tensor([38.0, 38, 58, 58])  # the positive itself
    assignment = assign_midpoint(levels, objects, 2, ignore_above=0.7, pred=predicted)
    assert assignment.ignore.nonzero().tolist() == [[1, 3]]
    with pytest.raises(ValueError, match="pred"):
        assign_midpoint(levels, objects, 2, ignore_above=0.7)


def test_ratio_claims_the_cell_and_two_neighbours_of_every_fitting_anchor() -> None:
    # Midpoint (44, 52): in its cell at (0.375, 0.625), so left and below; 20 x 20 fits both anchors (factor 3).
    assignment = assign_ratio(grid(), make([[34, 42, 54, 62]]), 1)
    cells = sorted({(p // 2 // 3, p // 2 % 3) for _, p, _ in positives(assignment)})
    assert cells == [(1, 0), (1, 1), (2, 1)]
    assert len(positives(assignment)) == 6
    assert len(positives(assign_ratio(grid(), make([[34, 42, 54, 62]]), 1, neighbours=False))) == 2
    assert len(positives(assign_ratio(grid(), make([[34, 42, 54, 62]]), 1, ratio=2.5))) == 3


def test_ratio_keeps_to_the_grid_and_drops_no_object() -> None:
    assert len(positives(assign_ratio(grid(), make([[0, 0, 20, 20]]), 1, ratio=2.5))) == 1
    tiny = assign_ratio(grid(), make([[40, 40, 41, 41]]), 1)
    assert {p % 2 for _, p, _ in positives(tiny)} == {0}
    assert len(positives(tiny)) == 3


def _slow_ratio(levels: list[Level], objects: Objects, ratio: float) -> set[tuple[int, int, int]]:
    """The rule in words, one object and anchor at a time."""
    claims: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for row, box in enumerate(objects.boxes.tolist()):
        w, h = box[2] - box[0], box[3] - box[1]
        fitting, offset = [], 0
        for level in levels:
            for slot, (aw, ah) in enumerate(level.anchors.tolist()):
                shared = min(w, aw) * min(h, ah)
                shape_iou = shared / (w * h + aw * ah - shared)
                fits = max(w / aw, aw / w, h / ah, ah / h) < ratio
                fitting.append((fits, shape_iou, level, offset, slot))
            offset += level.total
        chosen = [f for f in fitting if f[0]] or [max(fitting, key=lambda f: f[1])]
        for _, _, level, offset, slot in chosen:
            x, y = (box[0] + box[2]) / 2 / level.stride, (box[1] + box[3]) / 2 / level.stride
            i, j = min(int(x), level.width - 1), min(int(y), level.height - 1)
            for u, v in ((i, j), (i + (-1 if x - i < 0.5 else 1), j), (i, j + (-1 if y - j < 0.5 else 1))):
                if 0 <= u < level.width and 0 <= v < level.height:
                    prior = offset + (v * level.width + u) * len(level.anchors) + slot
                    claims.setdefault((int(objects.image[row]), prior), []).append((float(objects.areas[row]), row))
    return {(image, prior, min(found)[1]) for (image, prior), found in claims.items()}


@pytest.mark.parametrize("seed", range(3))
def test_ratio_equals_a_slow_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [
        Level(8, 6, 8.0, torch.tensor([[6.0, 8.0], [12.0, 9.0]])),
        Level(4, 3, 16.0, torch.tensor([[20.0, 25.0], [40.0, 30.0]])),
    ]
    objects = random_objects(60, 4, 48, seed)
    whole = assign_ratio(levels, objects, 4)
    assert {tuple(p) for p in positives(whole)} == _slow_ratio(levels, objects, 3.5)
    monkeypatch.setattr(module, "CHUNK_BYTES", 10_000)
    chunked = assign_ratio(levels, objects, 4)
    assert torch.equal(whole.positive, chunked.positive)
    assert whole.lost == chunked.lost


def test_crowds_and_difficult_objects_are_neither_positive_nor_negative() -> None:
    levels = grid()
    boxes = grid_priors(levels).boxes
    assignment = assign_ratio(levels, make([[0, 0, 96, 40], [34, 66, 54, 86]], crowd=(0,), difficult=(1,)), 1)
    assert not len(assignment.positive)
    inside = (boxes[:, 1] >= 0) & (boxes[:, 3] <= 40) & (boxes[:, 0] >= 0) & (boxes[:, 2] <= 96)
    assert inside.any()
    assert assignment.ignore[0, inside].all()
    difficult_slot = (2 * 3 + 1) * 2
    assert assignment.ignore[0, difficult_slot]
    assert not assignment.ignore.all()


def test_an_object_inside_a_crowd_stays_positive() -> None:
    assignment = assign_midpoint(grid(), make([[0, 0, 96, 96], [38, 38, 58, 58]], crowd=(0,)), 1)
    assert positives(assignment) == [[0, 8, 1]]
    assert not assignment.ignore[0, 8]
    assert assignment.ignore.sum() > 9


@pytest.mark.parametrize("rule", [assign_midpoint, assign_ratio])
def test_no_objects_and_objects_without_area(rule: object) -> None:
    for objects in (make([]), make([[5, 5, 5, 9], [float("nan")] * 4])):
        assignment = rule(grid(), objects, 2)  # type: ignore[operator]
        assert assignment.positive.shape == (0, 3)
        assert assignment.ignore.shape == (2, 18)
        assert not assignment.ignore.any()
        assert assignment.lost == 0


def test_five_thousand_objects_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [Level(20, 20, 16.0, torch.tensor([[16.0, 16.0], [40.0, 60.0], [100.0, 80.0]]))]
    objects = random_objects(5000, 1, 320)
    predicted = levels[0].priors().boxes[None]
    one = assign_midpoint(levels, objects, 1, ignore_above=0.6, pred=predicted)
    monkeypatch.setattr(module, "CHUNK_BYTES", 2**22)
    two = assign_midpoint(levels, objects, 1, ignore_above=0.6, pred=predicted)
    assert torch.equal(one.positive, two.positive)
    assert torch.equal(one.ignore, two.ignore)
    assert len(one.positive) + int(one.lost) == 5000


def test_iou_rule_has_three_states_and_leaves_no_object_out() -> None:
    priors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60], [0, 0, 10, 2], [80, 80, 90, 90]]
    )
    objects = make([[0, 0, 10, 10], [55, 55, 65, 65]])
    assignment = assign_iou(priors, objects, 2)
    assert positives(assignment) == [[0, 0, 0], [0, 1, 0], [0, 3, 1]]  # the last at IoU 0.14: its object's best
    assert assignment.ignore.nonzero().tolist() == [[0, 2]]
    assert positives(assign_iou(priors, objects, 1, best=False)) == [[0, 0, 0], [0, 1, 0]]
    none = assign_iou(priors, make([]), 2)
    assert none.positive.shape == (0, 3)
    assert not none.ignore.any()


def test_iou_rule_equals_torchvisions_matcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    objects = random_objects(12, 3, 96)._replace(image=torch.arange(12) // 4)
    priors = grid_priors([Level(12, 12, 8.0, torch.tensor([[12.0, 16.0], [40.0, 30.0]]))]).boxes
    monkeypatch.setattr(module, "CHUNK_BYTES", 100_000)
    assignment = assign_iou(priors, objects, 3, best=False)
    for image in range(3):
        mine = objects.boxes[objects.image == image]
        found = Matcher(0.7, 0.3, allow_low_quality_matches=False)(box_iou(mine, priors))
        rows = assignment.positive[assignment.positive[:, 0] == image]
        assert rows[:, 1].tolist() == (found >= 0).nonzero().flatten().tolist()
        assert assignment.ignore[image].tolist() == (found == Matcher.BETWEEN_THRESHOLDS).tolist()
        torch.testing.assert_close(objects.boxes[rows[:, 2]], mine[found[found >= 0]])
