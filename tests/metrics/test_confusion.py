"""The confusion matrix by hand, and its diagonal against the curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detkit.metrics.confusion import confusion_matrix
from detkit.metrics.curves import class_curves

Make = Callable[..., Any]
CLASSES = ("cat", "dog")


def test_worked_example(ground_truth: Make, results: Make) -> None:
    boxes = [[0, 0, 10, 10], [100, 0, 10, 10], [200, 0, 10, 10]]
    gt = ground_truth(boxes, label=[0, 0, 1], classes=CLASSES)
    dt = results([*boxes[:2], [300, 0, 10, 10], boxes[2]], [0.9, 0.8, 0.7, 0.1], label=[0, 1, 1, 1])
    # a cat found, a cat taken for a dog, a dog on nothing, a dog whose score is too low
    got = confusion_matrix(gt, dt)
    assert got.counts.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert confusion_matrix(gt, dt, conf=0.05).counts[1].tolist() == [0, 1, 0]


def test_the_right_class_wins_over_a_better_score_of_another(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10]], classes=CLASSES)
    got = confusion_matrix(gt, results([[0, 0, 10, 10]] * 2, [0.9, 0.5], label=[1, 0]))
    assert got.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_ignored_objects_are_neither_missed_nor_mistaken(ground_truth: Make, results: Make, kind: str) -> None:
    gt = ground_truth([[0, 0, 10, 10]], classes=CLASSES, **{kind: [1]})
    for label in (0, 1):
        assert confusion_matrix(gt, results([[0, 0, 10, 10]], [0.9], label=[label])).counts.sum() == 0
    assert confusion_matrix(gt, results([], [])).counts.sum() == 0


def test_every_object_and_every_detection_is_counted_once(ground_truth: Make, results: Make) -> None:
    rng = np.random.default_rng(0)
    boxes, labels = rng.integers(0, 60, (40, 4)) + 1, rng.integers(0, 2, 40).tolist()
    images = rng.integers(0, 4, 40).tolist()
    gt = ground_truth(boxes.tolist(), image=images, label=labels, images=4, classes=CLASSES)
    moved = boxes[rng.permutation(40)] + rng.normal(0, 1, (40, 4)).clip(-1, 3)
    dt = results(moved.tolist(), rng.random(40).tolist(), image=images, label=labels[::-1])
    counts = confusion_matrix(gt, dt, conf=0.0).counts
    assert counts[:-1].sum(axis=1).tolist() == np.bincount(labels, minlength=2).tolist()
    assert counts[:, :-1].sum() == 40
    recall = [round(curve.recall[-1] * curve.objects) for curve in class_curves(gt, dt).per_class.values()]
    assert np.diag(counts)[:-1].tolist() == recall


def test_nothing_labelled_and_nothing_found_is_a_table_of_zeros(ground_truth: Make, results: Make) -> None:
    assert not confusion_matrix(ground_truth([], classes=CLASSES), results([], [])).counts.any()
