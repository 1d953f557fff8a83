"""Our numbers are pycocotools' own, difficult objects included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detkit.metrics import evaluate_results
from detkit.metrics.coco import pycocotools_metrics
from detkit.tables import GroundTruth, Results


def case(seed: int) -> tuple[GroundTruth, Results]:
    rng = np.random.default_rng(seed)
    n, m, images = 40, 120, 9
    xywh = np.concatenate([rng.integers(0, 200, (n, 2)), rng.integers(8, 120, (n, 2))], axis=1).astype(float)
    crowd, difficult = rng.random(n) < 0.1, rng.random(n) < 0.2
    image, label = rng.integers(0, images, n), rng.integers(0, 3, n)
    columns = (image, label, xywh, xywh[:, 2] * xywh[:, 3], crowd, difficult, np.arange(1, n + 1))
    gt = GroundTruth(images, *columns, ("a", "b", "c"), rank=rng.permutation(images))
    near = rng.integers(0, n, m)
    found = np.abs(xywh[near] + rng.normal(0, 4, (m, 4)))
    return gt, Results(image[near], label[near], found, rng.choice(np.linspace(0, 1, 7), m))


@pytest.mark.parametrize("seed", range(8))
def test_both_give_the_same_twelve_numbers(seed: int) -> None:
    gt, dt = case(seed)
    assert evaluate_results(gt, dt).metrics == pycocotools_metrics(gt, dt)


def test_without_detections_or_objects() -> None:
    gt, dt = case(0)
    assert pycocotools_metrics(gt, dt[np.zeros(0, np.int64)])["AP"] == 0
    empty = gt[np.zeros(0, np.int64)]
    assert set(pycocotools_metrics(replace(empty, rank=None), dt).values()) == {-1.0}
