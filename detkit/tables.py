"""Flat, exact float64 tables of objects and detections in the file's own xywh, and what a metric says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(slots=True, frozen=True, eq=False)
class GroundTruth:
    """All labelled boxes of a data set, as the metrics read them; rows in file order.

    Attributes:
        images: Number of images.
        image: (N,) int64, index 0..images-1.
        label: (N,) int64.
        xywh: (N, 4) float64.
        area: (N,) float64, the annotation's.
        crowd: (N,) bool.
        difficult: (N,) bool.
        ids: (N,) int64, the annotations' own, from 1 where the format has none.
        classes: Names.
        rank: (images,) int64, each image's place in ascending order of the image ids, by which pycocotools breaks ties
            between equal scores; None: images are in that order already.
        class_rank: (C,) int64, the same of the classes and their ids, in whose order pycocotools sums; None: in order.
        points: (N, K, 3) float64 x, y in pixels, visible (0: not), or None.
    """

    images: int
    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    rank: np.ndarray | None = None
    points: np.ndarray | None = None
    class_rank: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """(N,) bool: objects that are to be found, neither crowd nor difficult."""
        return np.asarray(~(self.crowd | self.difficult))

    def __getitem__(self, rows: np.ndarray) -> GroundTruth:
        """Some objects: a mask or indices; the images stay."""
        names = ("image", "label", "xywh", "area", "crowd", "difficult", "ids")
        points = None if self.points is None else self.points[rows]
        return replace(self, points=points, **{name: getattr(self, name)[rows] for name in names})


@dataclass(slots=True, frozen=True, eq=False)
class Results:
    """Detections on a data set.

    Attributes:
        image: (M,) int64 index.
        label: (M,) int64.
        xywh: (M, 4) float64.
        score: (M,) float64.
        points: (M, K, 2) float64 x, y in pixels, or None.
    """

    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    score: np.ndarray
    points: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: np.ndarray) -> Results:
        """Some detections: a mask or indices."""
        points = None if self.points is None else self.points[rows]
        return Results(self.image[rows], self.label[rows], self.xywh[rows], self.score[rows], points)


@dataclass(slots=True, frozen=True, eq=False)
class Evaluation:
    """The numbers of one metric.

    Attributes:
        metrics: By name; -1 or NaN where there is nothing to find.
        per_class: By class name, then as ``metrics``, with ``objects``, the number to be found.
        protocol: Name of the metric (``detkit.metrics.METRICS``).
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    protocol: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The form of ``evaluate --json``."""
        return {"protocol": self.protocol, "metrics": self.metrics, "per_class": self.per_class}


def rank_of(ids: Sequence[int | str]) -> np.ndarray:
    """(N,) int64: the place of each image or class in ascending order of their ids, numbers before words."""
    order = sorted(range(len(ids)), key=lambda i: (isinstance(ids[i], str), ids[i]))
    return np.argsort(order)
