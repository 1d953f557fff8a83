"""Precision, recall, F1 and the best threshold, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detkit.metrics.curves import best_threshold, class_curves

Make = Callable[..., Any]


def test_worked_example(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10], [100, 0, 10, 10]])
    dt = results([[0, 0, 10, 10], [50, 50, 10, 10], [100, 0, 10, 10]], [0.9, 0.6, 0.5])
    curve = class_curves(gt, dt).overall
    assert curve.score.tolist() == [0.9, 0.6, 0.5]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
    assert curve.f1.tolist() == pytest.approx([2 / 3, 1 / 2, 4 / 5])
    assert best_threshold(gt, dt) == pytest.approx((0.5, 0.8))


def test_equal_scores_are_one_point_and_the_threshold_lies_between_scores(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10], [100, 0, 10, 10]])
    dt = results([[0, 0, 10, 10], [100, 0, 10, 10], [50, 50, 10, 10]], [0.8, 0.8, 0.2])
    curve = class_curves(gt, dt).overall
    assert curve.recall.tolist() == [1.0, 1.0]
    assert best_threshold(gt, dt) == pytest.approx((0.5, 1.0))


def test_ignored_objects_count_neither_way(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10], [100, 0, 10, 10]], difficult=[0, 1])
    curve = class_curves(gt, results([[100, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])).overall
    assert (curve.objects, curve.score.tolist(), curve.f1.tolist()) == (1, [0.8], [1.0])


def test_classes_apart(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10], [0, 0, 10, 10]], label=[0, 1], classes=("cat", "dog", "cow"))
    got = class_curves(gt, results([[0, 0, 10, 10], [50, 0, 10, 10]], [0.9, 0.8], label=[0, 2])).per_class
    assert got["cat"].best()[1] == 1.0
    assert got["dog"].recall.tolist() == []
    assert got["cow"].precision.tolist() == [0.0]


@pytest.mark.parametrize(("boxes", "score"), [([], []), ([[50, 50, 5, 5]], [0.9])])
def test_nothing_right_gives_the_default(ground_truth: Make, results: Make, boxes: list, score: list) -> None:
    assert best_threshold(ground_truth([[0, 0, 10, 10]]), results(boxes, score)) == (0.25, 0.0)
    assert not np.isnan(best_threshold(ground_truth([]), results(boxes, score))).any()
