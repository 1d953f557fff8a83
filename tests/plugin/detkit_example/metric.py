"""A metric: the share of the objects that are found at all, whatever else is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import detkit
from detkit.interfaces import Metric
from detkit.tables import Evaluation, GroundTruth, Results


class Recall(Metric):
    """Objects, crowds and difficult ones apart, that a detection of their class overlaps by an IoU of 0.5."""

    scores = ("recall50",)
    rules = "share of the objects found at IoU {iou:g}"

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """``recall50`` of all objects, and of each class with its number of objects."""
        found, counts = self._found(gt, dt, iou)
        per_class = {}
        for label, name in enumerate(gt.classes):
            mine = counts & (gt.label == label)
            share = float(found[mine].mean()) if mine.any() else float("nan")
            per_class[name] = {"recall50": share, "objects": float(mine.sum())}
        return Evaluation({"recall50": float(found[counts].mean()) if counts.any() else -1.0}, per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str, *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """``recall50`` with each image's objects counted as often as its weight says."""
        if score not in self.scores:
            raise ValueError(f"this metric has no {score}")
        found, counts = self._found(gt, dt, iou)

        def drawn(weights: np.ndarray) -> float:
            weight = weights[gt.image] * counts
            return float((weight * found).sum() / weight.sum()) if weight.sum() else -1.0

        return drawn

    def _found(self, gt: GroundTruth, dt: Results, iou: float | None) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool: objects that are found, and those that count."""
        found = np.zeros(len(gt.label), dtype=bool)
        for image in np.unique(gt.image):
            objects, answers = np.flatnonzero(gt.image == image), np.flatnonzero(dt.image == image)
            overlap = detkit.iou(_corners(gt.xywh[objects]), _corners(dt.xywh[answers]))
            same = gt.label[objects][:, None] == dt.label[answers][None]
            found[objects] = ((overlap >= (0.5 if iou is None else iou)) & same).any(axis=1)
        return found, ~(gt.crowd | gt.difficult)


def _corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
