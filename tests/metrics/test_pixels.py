"""Pixel metrics by hand: Long et al.'s four numbers."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.metrics.bootstrap import draws
from detkit.metrics.pixels import Pixels
from detkit.tables import Results, truth_of

TRUTH = truth_of([{"boxes": np.zeros((1, 4)), "labels": np.array([0])}] * 2, ("cat", "dog", "cow"))
# Labelled cat: 6 right, 2 as dog; dog: 3 right, 1 as background; background: 4 right, 4 as cat; no cow.
COUNTS = np.array([[6, 2, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0], [4, 0, 0, 4]])
NONE = np.zeros(0)


def results(*pixels: np.ndarray) -> Results:
    return Results(NONE.astype(int), NONE.astype(int), np.zeros((0, 4)), NONE, pixels=np.stack(pixels))


def test_by_hand() -> None:
    found = evaluate_results(TRUTH, results(COUNTS, COUNTS * 0), "pixels")
    iou = [6 / 12, 3 / 6, 4 / 9]
    assert found.metrics["mIoU"] == pytest.approx(np.mean(iou))
    assert found.metrics["accuracy"] == pytest.approx(13 / 20)
    assert found.metrics["mean_accuracy"] == pytest.approx((6 / 8 + 3 / 4 + 4 / 8) / 3)
    assert found.metrics["fwIoU"] == pytest.approx((8 * iou[0] + 4 * iou[1] + 8 * iou[2]) / 20)
    assert found.per_class["cat"] == {"IoU": 0.5, "accuracy": 0.75, "objects": 2}
    assert np.isnan(found.per_class["cow"]["IoU"])
    assert found.per_class["background"]["IoU"] == pytest.approx(4 / 9)


def test_without_background_and_without_pixels() -> None:
    only = COUNTS.copy()
    only[-1] = 0
    assert "background" not in evaluate_results(TRUTH, results(only, only), "pixels").per_class
    assert np.isnan(evaluate_results(TRUTH, results(COUNTS * 0), "pixels").metrics["mIoU"])


def test_images_are_drawn_for_intervals() -> None:
    answers = results(COUNTS, COUNTS.T)
    draw = Pixels().resampler(TRUTH, answers, "accuracy")
    assert draw(np.array([2, 0])) == pytest.approx(13 / 20)
    low, high = draws(TRUTH, answers, "mIoU", samples=50, seed=0, protocol="pixels").interval()
    assert 0 < low <= evaluate_results(TRUTH, answers, "pixels").metrics["mIoU"] <= high < 1
    with pytest.raises(ValueError, match="no metric"):
        Pixels().resampler(TRUTH, answers, "AP")


def test_boxes_alone_are_refused() -> None:
    with pytest.raises(DetkitError, match="say nothing of single pixels"):
        evaluate_results(TRUTH, Results(NONE.astype(int), NONE.astype(int), np.zeros((0, 4)), NONE), "pixels")
    with pytest.raises(ValueError, match="no iou"):
        evaluate_results(TRUTH, results(COUNTS), "pixels", iou=0.5)
