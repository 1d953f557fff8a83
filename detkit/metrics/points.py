"""Errors of landmarks, in units of their object's size, beside COCO's numbers of the boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from detkit.metrics.coco import Coco, CocoResult
from detkit.metrics.matching import match
from detkit.tables import GroundTruth, Results

NEAR = 0.1  # of the square root of the box's area


class Points(Coco):
    """COCO's box metrics, and of the points that are labelled as visible:

    NME, the mean distance over the square root of the object's box area, of objects found at an IoU of 0.5 (NaN where
    none is), Zhu et al., "Face Alignment Across Large Poses", 2016, section 5.2; PCK, the share within a tenth of it,
    objects that were not found counting as wrong (Yang and Ramanan, "Articulated Human Detection", 2013, section 8.1).
    """

    answers = "points"
    scores = ("AP", "AP50", "PCK")
    shown = ("AP", "AP50", "NME", "PCK")
    rules = "COCO's boxes; points: NME over the root of the box's area, PCK within a tenth of it (boxes at IoU 0.50)"
    takes_max_detections = False

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> CocoResult:
        """COCO's numbers, NME and PCK, of all objects and of each class."""
        boxes = super().evaluate(gt, dt, iou=iou)
        error, visible = point_errors(gt, dt)
        wanted = gt.wanted
        numbers = _numbers(error[wanted], visible[wanted])
        per_class = {}
        for k, name in enumerate(gt.classes):
            rows = wanted & (gt.label == k)
            per_class[name] = {**boxes.per_class[name], **_numbers(error[rows], visible[rows])}
        return replace(boxes, metrics={**boxes.metrics, **numbers}, per_class=per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "PCK", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to a number on that many copies of each image."""
        if score not in ("NME", "PCK"):
            return super().resampler(gt, dt, score, iou=iou)
        error, visible = point_errors(gt, dt)
        wanted = gt.wanted
        return lambda weights: _numbers(error[wanted], visible[wanted], weights[gt.image[wanted]])[score]


def point_errors(gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
    """How far off the points of each object are.

    Returns:
        (N, K) float64, distances over the square root of the object's box area, infinite where the object is not found
        at an IoU of 0.5; and (N, K) bool, which are labelled as visible. K is 0 where either table has no points.

    Raises:
        ValueError: The numbers of points differ.
    """
    if gt.points is None or dt.points is None:
        return np.zeros((len(gt.label), 0)), np.zeros((len(gt.label), 0), bool)
    if gt.points.shape[1] != dt.points.shape[1]:
        raise ValueError(f"the data has {gt.points.shape[1]} points an object, the detections {dt.points.shape[1]}")
    found = match(gt, dt, thresholds=np.array([0.5]))
    row, taken = found.row[found.true], found.taken[found.true]
    distance = np.linalg.norm(dt.points[row] - gt.points[taken, :, :2], axis=2)
    error = np.full(gt.points.shape[:2], np.inf)
    error[taken] = distance / np.sqrt(gt.xywh[taken, 2:].prod(axis=1))[:, None]
    return error, gt.points[..., 2] > 0


def _numbers(error: np.ndarray, visible: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """NME and PCK of objects (n, K); weights (n,): how many times each counts."""
    times = visible * (1.0 if weights is None else weights[:, None])
    found = np.isfinite(error)
    measured, total = (times * found).sum(), times.sum()
    distance = (times * np.where(found, error, 0)).sum()
    near = (times * (error <= NEAR)).sum()
    return {"NME": float(distance / measured) if measured else np.nan, "PCK": float(near / total) if total else np.nan}
