"""Top-1 and top-5 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.metrics.bootstrap import draws
from detkit.metrics.classification import Classification, ranks
from detkit.tables import GroundTruth, Results


def truth(labels: list[int], classes: int = 7, image: list[int] | None = None) -> GroundTruth:
    n = len(labels)
    no = np.zeros(n, bool)
    box = np.tile([0.0, 0, 10, 10], (n, 1))
    at = np.arange(n) if image is None else np.array(image)
    names = tuple("abcdefghij"[:classes])
    return GroundTruth(n, at, np.array(labels), box, np.full(n, 100.0), no, no, np.arange(n) + 1, names)


def answers(*ranked: list[int]) -> Results:
    """Of each image the labels, best first."""
    rows = [(i, label, 1 - 0.1 * k) for i, labels in enumerate(ranked) for k, label in enumerate(labels)]
    image, label, score = (np.array(column) for column in zip(*rows, strict=True))
    return Results(image, label, np.tile([0.0, 0, 10, 10], (len(rows), 1)), score)


def test_shares_by_hand() -> None:
    gt = truth([0, 0, 1, 2])
    dt = answers([0, 1], [1, 2, 3, 4, 0, 5], [2, 3, 4, 5, 6, 1])  # nothing for the last
    assert ranks(gt, dt)[0].tolist() == [0, 4, 5, 14 + 5]
    found = evaluate_results(gt, dt, "classify")
    assert found.metrics == {"top1": 0.25, "top5": 0.5}
    assert found.per_class["a"] == {"top1": 0.5, "top5": 1.0, "objects": 2}
    assert found.per_class["b"] == {"top1": 0.0, "top5": 0.0, "objects": 1}
    assert math.isnan(found.per_class["g"]["top1"])
    assert found.to_dict()["protocol"] == "classify"


def test_the_order_of_the_rows_does_not_count_but_for_equal_scores() -> None:
    gt, dt = truth([0, 1]), answers([0, 1], [0, 1])
    turned = dt[np.arange(len(dt))[::-1]]
    assert ranks(gt, dt)[0].tolist() == ranks(gt, turned)[0].tolist() == [0, 1]
    even = Results(dt.image, dt.label, dt.xywh, np.full(len(dt), 0.5))
    assert ranks(gt, even)[0].tolist() == [0, 1]


def test_images_need_exactly_one_label() -> None:
    with pytest.raises(DetkitError, match="2 of 3 images do not have exactly one label"):
        evaluate_results(truth([0, 1, 2], image=[0, 0, 2]), answers([0], [1], [2]), "classify")
    with pytest.raises(ValueError, match="iou"):
        evaluate_results(truth([0]), answers([0]), "classify", iou=0.6)


def test_copies_of_images_are_as_good_as_weights() -> None:
    gt, dt = truth([0, 1, 2]), answers([0], [0, 1], [2])
    value = Classification().resampler(gt, dt, "top1")
    assert value(np.array([1, 1, 1])) == pytest.approx(2 / 3)
    assert value(np.array([0, 3, 1])) == pytest.approx(1 / 4)
    low, high = draws(gt, dt, "top1", samples=50, protocol="classify").interval()
    assert 0 <= low <= 2 / 3 <= high <= 1.3
    with pytest.raises(ValueError, match="top1"):
        Classification().resampler(gt, dt, "AP")
