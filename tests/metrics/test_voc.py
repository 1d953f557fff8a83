"""PASCAL's AP against a plain reading of the devkit's code, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.tables import GroundTruth, Results


def table(boxes: np.ndarray, image: np.ndarray, label: np.ndarray, difficult: np.ndarray, images: int) -> GroundTruth:
    n = len(boxes)
    xywh = np.array(boxes, float).reshape(-1, 4)
    plain = np.zeros(n, bool)
    ids = np.arange(1, n + 1)
    area = xywh[:, 2] * xywh[:, 3]
    return GroundTruth(images, image, label, xywh, area, plain, np.array(difficult, bool), ids, ("a", "b"))


def devkit_curve(objects: list[tuple], found: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """VOCevaldet.m line by line: inclusive corners and all. objects: image, corners, difficult; found: also score."""
    taken = set()
    total = sum(not difficult for _, _, difficult in objects)
    tp, fp = [], []
    for image, box, _ in sorted(found, key=lambda one: -one[2]):
        best, chosen = -np.inf, -1
        for j, (other, truth, _) in enumerate(objects):
            if other != image:
                continue
            width = min(box[2], truth[2]) - max(box[0], truth[0]) + 1
            height = min(box[3], truth[3]) - max(box[1], truth[1]) + 1
            if width > 0 and height > 0:
                union = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                union += (truth[2] - truth[0] + 1) * (truth[3] - truth[1] + 1) - width * height
                if width * height / union > best:
                    best, chosen = width * height / union, j
        hit = best >= 0.5
        skip = hit and objects[chosen][2]
        first = hit and not skip and chosen not in taken
        if first:
            taken.add(chosen)
        tp.append(first)
        fp.append(not skip and not first)
    tp_sum, fp_sum = np.cumsum(tp), np.cumsum(fp)
    with np.errstate(invalid="ignore"):
        return tp_sum / total, np.nan_to_num(tp_sum / (tp_sum + fp_sum))


DEVKIT = [0, 0.1, 0.2, 0.1 * 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]  # what MATLAB's 0:0.1:1 holds: 0.1 * 3 > 0.3


def devkit_ap(recall: np.ndarray, precision: np.ndarray, year: str) -> float:
    if year == "2007":
        points = [max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0) for t in DEVKIT]
        return sum(points) / 11
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in steps)


@pytest.mark.parametrize("year", ["2007", "2010"])
@pytest.mark.parametrize("seed", range(20))
def test_as_the_devkit_on_inclusive_corners(seed: int, year: str) -> None:
    rng = np.random.default_rng(seed)
    n, m, images = int(rng.integers(2, 30)), int(rng.integers(0, 150)), 6
    low = rng.integers(1, 60, (n, 2))
    corners = np.hstack([low, low + rng.integers(0, 30, (n, 2))])  # one-based, inclusive, as in the xml files
    image, label, difficult = rng.integers(0, images, n), rng.integers(0, 2, n), rng.random(n) < 0.2
    label[:2], difficult[:2] = (0, 1), False
    near = rng.integers(0, n, m)
    found = corners[near] + rng.integers(-4, 5, (m, 4))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
    score = rng.permutation(m) / max(m, 1)

    def xywh(boxes: np.ndarray) -> np.ndarray:  # what the reader makes of corners
        return np.hstack([boxes[:, :2] - 1, boxes[:, 2:] - (boxes[:, :2] - 1)]).astype(float)

    gt = table(xywh(corners), image, label, difficult, images)
    got = evaluate_results(gt, Results(image[near], label[near], xywh(found), score), f"voc{year}")
    expected = []
    for k in (0, 1):
        objects = [(image[i], corners[i], difficult[i]) for i in range(n) if label[i] == k]
        mine = [(image[near[i]], found[i], score[i]) for i in range(m) if label[near[i]] == k]
        expected.append(devkit_ap(*devkit_curve(objects, mine), year))
    assert [row["AP"] for row in got.per_class.values()] == pytest.approx(expected, abs=1e-12)
    assert got.metrics["AP"] == got.metrics["AP50"] == pytest.approx(np.mean(expected))


def one_image(found: list[list[float]], score: list[float], difficult: tuple[int, int] = (0, 0)) -> tuple:
    boxes = np.array([[0, 0, 10, 10], [100, 0, 10, 10]])
    gt = table(boxes, np.zeros(2, int), np.zeros(2, int), np.array(difficult), 1)
    zeros = np.zeros(len(found), int)
    return gt, Results(zeros, zeros, np.array(found, float).reshape(-1, 4), np.array(score))


def test_worked_example_of_both_averages() -> None:
    # true, false, true: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    gt, dt = one_image([[0, 0, 10, 10], [50, 50, 10, 10], [100, 0, 10, 10]], [0.9, 0.8, 0.7])
    assert evaluate_results(gt, dt, "voc2007").metrics["AP"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert evaluate_results(gt, dt, "voc2010").metrics["AP"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize(("objects", "devkit", "exact"), [(10, 3 / 11, 4 / 11), (5, 7 / 11, 7 / 11), (1, 1, 1)])
def test_levels_of_recall_are_the_devkits_and_the_exact_ones_have_a_name(
    objects: int, devkit: float, exact: float
) -> None:
    """The first three objects found, nothing false: recall 0.1, 0.2, 0.3 of ten, or 0.2, 0.4, 0.6 of five."""
    count = min(objects, 3)
    boxes = np.array([[20 * i, 0, 10, 10] for i in range(objects)], float)
    image = label = np.zeros(objects, int)
    gt = table(boxes, image, label, np.zeros(objects), 1)
    dt = Results(image[:count], label[:count], boxes[:count], np.linspace(0.9, 0.7, count))
    assert evaluate_results(gt, dt, "voc2007").per_class["a"]["AP"] == pytest.approx(devkit)
    assert evaluate_results(gt, dt, "voc2007_exact").per_class["a"]["AP"] == pytest.approx(exact)


def test_a_second_detection_is_false_and_on_a_difficult_object_none_counts() -> None:
    twice = [[100, 0, 10, 10], [100, 0, 10, 10], [0, 0, 10, 10]]
    gt, dt = one_image(twice, [0.9, 0.8, 0.7])
    assert evaluate_results(gt, dt, "voc2010").metrics["AP"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    gt, dt = one_image(twice, [0.9, 0.8, 0.7], difficult=(0, 1))
    assert evaluate_results(gt, dt, "voc2010").metrics["AP"] == 1.0
    assert evaluate_results(gt, dt, "voc2010").per_class["a"]["objects"] == 1


def test_a_detection_belongs_to_its_best_object_even_if_that_is_taken() -> None:
    boxes = np.array([[0, 0, 10, 10], [3, 0, 10, 10]])
    gt = table(boxes, np.zeros(2, int), np.zeros(2, int), np.zeros(2), 1)
    dt = Results(np.zeros(2, int), np.zeros(2, int), np.array([[0, 0, 10, 10.0], [1, 0, 10, 10]]), np.array([0.9, 0.8]))
    assert evaluate_results(gt, dt, "voc2010").metrics["AP"] == 0.5  # COCO would give the second one the free object
    assert evaluate_results(gt, dt).metrics["AP50"] == pytest.approx(1.0)


def test_classes_without_objects_and_empty_tables() -> None:
    gt, dt = one_image([], [])
    got = evaluate_results(gt, dt, "voc2010")
    assert got.per_class["a"]["AP"] == 0.0
    assert np.isnan(got.per_class["b"]["AP"])
    nothing = evaluate_results(
        table(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int), np.zeros(0), 0), dt, "voc2010"
    )
    assert np.isnan(nothing.metrics["AP"])
    _, found = one_image([[0, 0, 10, 10]], [0.9])
    empty = table(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int), np.zeros(0), 1)
    assert np.isnan(evaluate_results(empty, found, "voc2010").metrics["AP"])


def test_protocols_by_name_and_unknown_ones() -> None:
    gt, dt = one_image([[0, 0, 10, 10], [100, 0, 10, 10]], [0.9, 0.8])
    assert evaluate_results(gt, dt, "voc2007").to_dict()["metrics"] == {"AP": 1.0, "AP50": 1.0}
    assert evaluate_results(gt, dt, "voc2010", iou=0.7).metrics == {"AP": 1.0, "AP70": 1.0}
    with pytest.raises(DetkitError, match="voc2010"):
        evaluate_results(gt, dt, "voc2012")
    with pytest.raises(ValueError, match="threshold"):
        evaluate_results(gt, dt, "voc2010", iou=0)
