"""The reliability table against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from detkit.metrics.curves import calibration

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 10.0, 10.0]


def test_by_hand(ground_truth: Callable, results: Callable) -> None:
    # 0.9 right, 0.8 wrong | 0.35 right, 0.3 wrong, 0.25 wrong
    gt = ground_truth([BOX, BOX], image=[0, 1], images=3)
    dt = results([BOX, FAR, BOX, FAR, FAR], [0.9, 0.8, 0.35, 0.3, 0.25], image=[0, 0, 1, 1, 2])
    got = calibration(gt, dt, bins=2)
    assert got.count.tolist() == [3, 2]
    assert got.score == pytest.approx([0.3, 0.85])
    assert got.precision == pytest.approx([1 / 3, 0.5])
    assert got.error == pytest.approx((3 * (1 / 3 - 0.3) + 2 * 0.35) / 5)
    above = calibration(gt, dt, bins=2, conf=0.8)
    assert above.count.tolist() == [0, 2]
    assert np.isnan(above.score[0])
    assert above.error == pytest.approx(0.35)


def test_edges_and_the_ends(ground_truth: Callable, results: Callable) -> None:
    got = calibration(ground_truth([BOX]), results([BOX, FAR, FAR], [1.0, 0.5, 0.0]), bins=2)
    assert got.count.tolist() == [1, 2]


def test_detections_on_difficult_objects_do_not_count(ground_truth: Callable, results: Callable) -> None:
    got = calibration(ground_truth([BOX], difficult=[1]), results([BOX, FAR], [0.9, 0.7]))
    assert got.count.sum() == 1
    assert got.error == pytest.approx(0.7)


def test_nothing_and_mistakes(ground_truth: Callable, results: Callable) -> None:
    got = calibration(ground_truth([BOX]), results([], []))
    assert got.count.sum() == 0
    assert np.isnan(got.error)
    with pytest.raises(ValueError, match="bin"):
        calibration(ground_truth([BOX]), results([], []), bins=0)
