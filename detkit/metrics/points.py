"""Errors of landmarks, in units of their object's size, beside COCO's numbers of the boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detkit.metrics import coco
from detkit.metrics.matching import match
from detkit.metrics.tables import GroundTruth, Results

NEAR = 0.1  # of the square root of the box's area


@dataclass(slots=True, frozen=True, eq=False)
class PointResult:
    """COCO's numbers, and NME and PCK, of all objects and of each class (``per_class``)."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]


def evaluate(gt: GroundTruth, dt: Results, *, iou: float | None = None) -> PointResult:
    """COCO's box metrics, and of the points that are labelled as visible:

    NME, the mean distance over the square root of the object's box area, of objects found at an IoU of 0.5 (NaN where
    none is), Zhu et al., "Face Alignment Across Large Poses", 2016, section 5.2; PCK, the share within a tenth of it,
    objects that were not found counting as wrong (Yang and Ramanan, "Articulated Human Detection", 2013, section 8.1).
    Raises ValueError for tables that do not fit together.
    """
    boxes = coco.evaluate(gt, dt, iou=iou)
    error, visible = errors(gt, dt)
    wanted = ~(gt.crowd | gt.difficult)
    numbers = _numbers(error[wanted], visible[wanted])
    per_class = {}
    for k, name in enumerate(gt.classes):
        rows = wanted & (gt.label == k)
        per_class[name] = {**boxes.per_class[name], **_numbers(error[rows], visible[rows])}
    return PointResult({**boxes.metrics, **numbers}, per_class)


def errors(gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) float64: each object's points' distances over the square root of its box's area, infinite where the object
    is not found at an IoU of 0.5; and (N, K) bool: which are labelled as visible. K is 0 where either has no points.

    Raises ValueError where the numbers of points differ.
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


def resampler(
    gt: GroundTruth, dt: Results, metric: str = "PCK", iou: float | None = None
) -> Callable[[np.ndarray], float]:
    """A function from image weights (images,) int64 to the metric on that many copies of each image.

    Raises ValueError for an unknown metric.
    """
    if metric not in ("NME", "PCK"):
        return coco.resampler(gt, dt, metric, iou)
    error, visible = errors(gt, dt)
    wanted = ~(gt.crowd | gt.difficult)
    return lambda weights: _numbers(error[wanted], visible[wanted], weights[gt.image[wanted]])[metric]
