"""Kinds of errors and what they cost, against examples worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from detkit.metrics import evaluate_results
from detkit.metrics.errors import KINDS, error_breakdown

A = [0.0, 0.0, 10.0, 10.0]
B = [100.0, 100.0, 10.0, 10.0]
C = [200.0, 200.0, 10.0, 10.0]
FAR = [500.0, 500.0, 10.0, 10.0]
OFF = [0.0, 0.0, 10.0, 4.0]  # IoU 0.4 with A
TWO = ("cat", "dog")
# (objects, their labels, detections, scores, their labels, the counts that are not 0, the gains that are not 0)
CASES = {
    "all right": ([A], [0], [A], [0.9], [0], {}, {}),
    # The cat is found as a dog: AP 0 for cats; dogs have no object. Corrected: 1. (No error but this: not missed.)
    "classification": ([A], [0], [A], [0.9], [1], {"classification": 1}, {"classification": 1.0}),
    "localization": ([A], [0], [OFF], [0.9], [0], {"localization": 1}, {"localization": 1.0}),
    # Near a cat, called a dog, at IoU 0.4: the cat itself is missed. One of two cats is missing, so AP is 51/101.
    "both": (
        [A, B],
        [0, 0],
        [B, OFF],
        [0.9, 0.8],
        [0, 1],
        {"both": 1, "missed": 1},
        {"missed": 50 / 101},
    ),
    # The second of two on the same object comes before the other object: precision 2/3 on the upper half of recall.
    "duplicate": ([A, B], [0, 0], [A, A, B], [0.9, 0.8, 0.7], [0, 0, 0], {"duplicate": 1}, {"duplicate": 50 / 303}),
    "background": ([A, B], [0, 0], [A, FAR, B], [0.9, 0.8, 0.7], [0] * 3, {"background": 1}, {"background": 50 / 303}),
    "missed": ([A, B], [0, 0], [A], [0.9], [0], {"missed": 1}, {"missed": 50 / 101}),
    # Off and on an object that is found: taken away, it lifts the second object from precision 2/3.
    "off, but found": (
        [A, B],
        [0, 0],
        [A, OFF, B],
        [0.9, 0.8, 0.7],
        [0] * 3,
        {"localization": 1},
        {"localization": 50 / 303},
    ),
    # Two are off on the same object: the better one becomes right, the other goes. AP 0 becomes 1.
    "off twice": ([A], [0], [OFF, OFF], [0.9, 0.8], [0, 0], {"localization": 2}, {"localization": 1.0}),
    # A dog at 0.9 and an inexact cat at 0.8 on one cat: only the better correction counts, as in the authors' code.
    "one correction an object": (
        [A],
        [0],
        [A, OFF],
        [0.9, 0.8],
        [1, 0],
        {"classification": 1, "localization": 1},
        {"classification": 1.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(ground_truth: Callable, results: Callable, name: str) -> None:
    objects, labels, boxes, scores, found, counts, gains = CASES[name]
    gt = ground_truth(objects, label=labels, classes=TWO)
    dt = results(boxes, scores, label=found)
    got = error_breakdown(gt, dt)
    assert got.ap == pytest.approx(evaluate_results(gt, dt).metrics["AP50"])
    assert {kind: n for kind, n in got.counts.items() if n} == counts
    assert {kind: v for kind, v in got.gains.items() if abs(v) > 1e-9} == pytest.approx(gains)
    assert list(got.counts) == list(got.gains) == [*KINDS, "missed"]


def test_no_false_positives_and_no_false_negatives(ground_truth: Callable, results: Callable) -> None:
    # FAR 0.9, A 0.8, B missed: precision 1/2 up to recall 1/2.
    got = error_breakdown(ground_truth([A, B]), results([FAR, A], [0.9, 0.8]))
    assert got.ap == pytest.approx(51 / 202)
    assert got.false_positives == pytest.approx(51 / 202)
    assert got.false_negatives == pytest.approx(1 / 2 - 51 / 202)


def test_where_the_errors_are(ground_truth: Callable, results: Callable) -> None:
    gt = ground_truth([A, B, C], label=[0, 1, 0], classes=TWO)
    got = error_breakdown(gt, results([FAR, A, B], [0.5, 0.9, 0.8], label=[0, 0, 0]))
    kinds = {int(row): list(KINDS)[kind] for row, kind in zip(got.row, got.kind, strict=True)}
    assert kinds == {0: "background", 2: "classification"}
    assert got.missed.tolist() == [False, False, True]


def test_ignored_objects_play_no_part(ground_truth: Callable, results: Callable) -> None:
    gt = ground_truth([A, B, C], difficult=[0, 1, 0], crowd=[0, 0, 1])
    got = error_breakdown(gt, results([A, B, B, C, C], [0.9, 0.8, 0.7, 0.6, 0.5]))
    # The second detection on the difficult object is a false positive, on nothing that is asked for.
    assert {kind: n for kind, n in got.counts.items() if n} == {"background": 1}
    assert got.ap == pytest.approx(1.0)


def test_every_false_positive_has_one_kind(ground_truth: Callable, results: Callable) -> None:
    rng = np.random.default_rng(0)
    n = 300
    boxes = np.column_stack([rng.uniform(0, 60, (n, 2)), rng.uniform(10, 40, (n, 2))])
    image, label = rng.integers(0, 20, n), rng.integers(0, 3, n)
    gt = ground_truth(boxes.tolist(), image=image.tolist(), label=label.tolist(), images=20, classes=("a", "b", "c"))
    found = boxes + rng.normal(0, 3, boxes.shape)
    other = np.where(rng.uniform(size=n) < 0.2, (label + 1) % 3, label)
    dt = results(found.tolist(), rng.uniform(size=n).tolist(), image=image.tolist(), label=other.tolist())
    got = error_breakdown(gt, dt, iou=0.6)
    assert got.ap == pytest.approx(evaluate_results(gt, dt, iou=0.6).metrics["AP60"])
    assert len(np.unique(got.row)) == len(got.row) == sum(got.counts[kind] for kind in KINDS)
    assert all(gain > -0.02 for gain in got.gains.values())
    assert got.false_positives >= max(got.gains[kind] for kind in ("duplicate", "background", "both"))


def test_nothing(ground_truth: Callable, results: Callable) -> None:
    got = error_breakdown(ground_truth([]), results([], []))
    assert got.ap == 0
    assert set(got.counts.values()) == {0}
    got = error_breakdown(ground_truth([A]), results([], []))
    assert got.counts["missed"] == 1
    with pytest.raises(ValueError, match="background"):
        error_breakdown(ground_truth([A]), results([], []), background=0.7)
