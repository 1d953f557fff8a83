"""Small tables for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from detkit.tables import GroundTruth, Results


def _ground_truth(
    boxes: list[list[float]],
    image: list[int] | None = None,
    label: list[int] | None = None,
    crowd: list[int] | None = None,
    difficult: list[int] | None = None,
    images: int = 1,
    classes: tuple[str, ...] = ("cat",),
) -> GroundTruth:
    n = len(boxes)
    xywh = np.array(boxes, float).reshape(-1, 4)
    return GroundTruth(
        images=images,
        image=np.array(image or [0] * n, np.int64),
        label=np.array(label or [0] * n, np.int64),
        xywh=xywh,
        area=xywh[:, 2] * xywh[:, 3],
        crowd=np.array(crowd or [0] * n, bool),
        difficult=np.array(difficult or [0] * n, bool),
        ids=np.arange(1, n + 1),
        classes=classes,
    )


def _results(
    boxes: list[list[float]], score: list[float], image: list[int] | None = None, label: list[int] | None = None
) -> Results:
    n = len(boxes)
    ints = [np.array(values or [0] * n, np.int64) for values in (image, label)]
    return Results(*ints, np.array(boxes, float).reshape(-1, 4), np.array(score, float))


@pytest.fixture
def ground_truth() -> Callable[..., GroundTruth]:
    """Makes a table of objects from xywh boxes; every other column has a plain default."""
    return _ground_truth


@pytest.fixture
def results() -> Callable[..., Results]:
    """Makes a table of detections from xywh boxes and scores; image 0 and label 0 by default."""
    return _results
