"""Errors of landmarks by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from detkit.metrics import evaluate_results
from detkit.metrics.points import Points
from detkit.tables import GroundTruth, Results


@pytest.fixture
def tables() -> tuple[GroundTruth, Results]:
    """Two objects of 20 x 20 pixels with two points each; one is found, 2 pixels off at its first point."""
    box, no = np.array([[0.0, 0, 20, 20], [0, 0, 20, 20]]), np.zeros(2, bool)
    points = np.array([[[5.0, 5, 2], [15, 5, 1]], [[5, 5, 2], [15, 5, 0]]])
    gt = GroundTruth(2, np.arange(2), np.array([0, 0]), box, np.full(2, 400.0), no, no, np.array([1, 2]), ("a", "b"))
    dt = Results(np.array([0]), np.array([0]), box[:1], np.array([0.9]), np.array([[[7.0, 5], [15, 8]]]))
    return replace(gt, points=points), dt


def test_by_hand(tables: tuple[GroundTruth, Results]) -> None:
    # Distances 2 and 3 of 20 pixels: 0.1 and 0.15; the third visible point's object is not found.
    found = evaluate_results(*tables, "points")
    assert found.metrics["NME"] == pytest.approx(0.125)
    assert found.metrics["PCK"] == pytest.approx(1 / 3)
    assert found.metrics["AP50"] == evaluate_results(*tables, "coco").metrics["AP50"]
    assert found.per_class["a"]["PCK"] == pytest.approx(1 / 3)
    assert math.isnan(found.per_class["b"]["NME"])


def test_objects_that_are_not_to_be_found_count_for_nothing(tables: tuple[GroundTruth, Results]) -> None:
    gt, dt = tables
    found = evaluate_results(replace(gt, difficult=np.array([False, True])), dt, "points")
    assert found.metrics["PCK"] == pytest.approx(0.5)
    assert evaluate_results(gt[np.array([True, False])], dt, "points").metrics["PCK"] == pytest.approx(0.5)


def test_without_points_there_is_nothing_to_measure(tables: tuple[GroundTruth, Results]) -> None:
    gt, dt = tables
    for one, other in ((replace(gt, points=None), dt), (gt, replace(dt, points=None))):
        found = evaluate_results(one, other, "points").metrics
        assert math.isnan(found["NME"])
        assert math.isnan(found["PCK"])
    with pytest.raises(ValueError, match="2 points an object, the detections 1"):
        evaluate_results(gt, replace(dt, points=dt.points[:, :1]), "points")  # type: ignore[index]


def test_copies_of_images_are_as_good_as_weights(tables: tuple[GroundTruth, Results]) -> None:
    assert Points().resampler(*tables, "PCK")(np.array([1, 1])) == pytest.approx(1 / 3)
    assert Points().resampler(*tables, "PCK")(np.array([3, 1])) == pytest.approx(3 / 7)
    assert Points().resampler(*tables, "NME")(np.array([1, 5])) == pytest.approx(0.125)
    assert Points().resampler(*tables, "AP50")(np.array([1, 1])) == evaluate_results(*tables, "coco").metrics["AP50"]
