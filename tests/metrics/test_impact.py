"""The impact of errors against AP computed anew without them."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.metrics.errors import ap_impact
from detkit.tables import GroundTruth, Results


def plain_ap(gt: GroundTruth, dt: Results, iou: float = 0.5) -> float:
    """The mean, over objects, of the precision where they are found; one class, objects far from each other."""
    order = np.argsort(-dt.score, kind="stable")
    seen: set[int] = set()
    total = 0.0
    for rank, d in enumerate(order, 1):
        near = [
            g for g in range(len(gt.image)) if gt.image[g] == dt.image[d] and abs(gt.xywh[g] - dt.xywh[d]).max() < 1
        ]
        if near and near[0] not in seen:
            seen.add(near[0])
            total += len(seen) / rank
    return total / len(gt.image)


def test_what_ap_gains_without_it() -> None:
    rng = np.random.default_rng(1)
    n, no = 12, np.zeros(12, bool)
    boxes = np.array([[40.0 * k, 0, 20, 20] for k in range(n)])
    gt = GroundTruth(
        3, np.arange(n) % 3, np.zeros(n, np.int64), boxes, boxes[:, 2] ** 2, no, no, np.arange(1, n + 1), ("a",)
    )
    wrong = boxes[:8] + np.array([0, 500, 0, 0])
    found = np.concatenate([boxes[:9], wrong])
    dt = Results(np.concatenate([gt.image[:9], gt.image[:8]]), np.zeros(17, np.int64), found, rng.permutation(17) / 17)
    got = ap_impact(gt, dt)
    base = plain_ap(gt, dt)
    for row in range(17):
        rest = np.arange(17) != row
        without = plain_ap(gt, Results(*(column[rest] for column in (dt.image, dt.label, dt.xywh, dt.score))))
        assert got.false_positive[row] == pytest.approx(without - base if row >= 9 else 0.0)
    assert got.true.tolist() == [True] * 9 + [False] * 8
    assert got.object[9:] == pytest.approx([1 / n] * 3)
    assert np.isnan(got.score[9:]).all()
    assert got.score[:9] == pytest.approx(dt.score[:9])
    assert got.object.sum() == pytest.approx(1 - base)


def test_nothing() -> None:
    no, ints = np.zeros(0, bool), np.zeros(0, np.int64)
    gt = GroundTruth(1, ints, ints, np.zeros((0, 4)), np.zeros(0), no, no, ints, ("a",))
    got = ap_impact(gt, Results(np.array([0]), np.array([0]), np.ones((1, 4)), np.array([0.5])))
    assert got.false_positive.tolist() == [0]
