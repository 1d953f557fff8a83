"""Precision, recall and F1 against the score threshold, and the threshold with the best F1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics.matching import ALL_AREAS, match, positives
from detkit.tables import GroundTruth, Results

NO_THRESHOLD = 0.25  # where no detection is ever right: what people see by default


@dataclass(slots=True, frozen=True, eq=False)
class Curve:
    """One point per distinct score, best first: what is kept at score >= score[i].

    Attributes:
        score: (P,) float64.
        precision: (P,) float64.
        recall: (P,) float64; 0 without objects.
        f1: (P,) float64; 0 without objects.
        objects: Number to be found.
    """

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    objects: int

    def best(self) -> tuple[float, float]:
        """Threshold with the best F1, and that F1.

        The threshold lies halfway to the next lower score, so that rounding a score does not move it to the other
        side. Of equal F1 the higher threshold. (0.25, 0.0) where no detection is ever right.
        """
        if not len(self.f1) or self.f1.max() == 0:
            return NO_THRESHOLD, 0.0
        i = int(np.argmax(self.f1))
        lower = self.score[i + 1] if i + 1 < len(self.score) else self.score[i]
        return float((self.score[i] + lower) / 2), float(self.f1[i])


@dataclass(slots=True, frozen=True, eq=False)
class Curves:
    """Curves of precision, recall and F1.

    Attributes:
        overall: All detections together.
        per_class: By name.
    """

    overall: Curve
    per_class: dict[str, Curve]


def curves(gt: GroundTruth, dt: Results, *, iou: float = 0.5, max_detections: int = 100) -> Curves:
    """Precision-recall-F1 curves with COCO's matching; ignored objects count neither way.

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold.
        max_detections: Per image and class.
    """
    matches = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    objects = positives(gt, ALL_AREAS)[:, 0]
    true, counted = matches.true, matches.counted
    order = np.argsort(-matches.score, kind="stable")
    order = order[counted[order]]
    per_class = {}
    for k, name in enumerate(gt.classes):
        rows = slice(matches.starts[k], matches.starts[k + 1])
        kept = counted[rows]
        per_class[name] = _curve(matches.score[rows][kept], true[rows][kept], int(objects[k]))
    return Curves(_curve(matches.score[order], true[order], int(objects.sum())), per_class)


def _curve(score: np.ndarray, true: np.ndarray, objects: int) -> Curve:
    """score (n,) descending; a threshold keeps all equal scores, so only the last of them is a point."""
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, np.int64)
    hits, seen = np.cumsum(true)[last], last + 1.0
    recall = hits / objects if objects else np.zeros(len(last))
    return Curve(score[last], hits / seen, recall, 2 * hits / (seen + objects), objects)


def best_threshold(gt: GroundTruth, dt: Results, *, iou: float = 0.5, max_detections: int = 100) -> tuple[float, float]:
    """The one score threshold for all classes with the best F1, and that F1 (see ``Curve.best``).

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold of matching.
        max_detections: Per image and class.
    """
    return curves(gt, dt, iou=iou, max_detections=max_detections).overall.best()
