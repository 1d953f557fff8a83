"""Precision, recall and F1 against the score threshold, the threshold with the best F1, and calibration.

Calibration asks whether scores mean what they say: of detections with score 0.8, are 80% right? Guo, Pleiss, Sun and
Weinberger, "On Calibration of Modern Neural Networks", 2017, section 2 (reliability diagrams, expected calibration
error), on detections as in Kueppers et al., "Multivariate Confidence Calibration for Object Detection", 2020: right
means a true positive at one IoU threshold.
"""

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


def class_curves(gt: GroundTruth, dt: Results, *, iou: float = 0.5, max_detections: int = 100) -> Curves:
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
    return class_curves(gt, dt, iou=iou, max_detections=max_detections).overall.best()


@dataclass(slots=True, frozen=True, eq=False)
class Calibration:
    """Detections by score, in B bins of equal width over 0..1; a score on an edge belongs to the upper bin, 1 to the
    last.

    Attributes:
        edges: (B + 1,).
        count: (B,) int64.
        score: (B,) the mean score, NaN in an empty bin.
        precision: (B,) the share that is right, NaN in an empty bin.
        error: The expected calibration error, the mean of abs(precision - score) over bins, weighted by count (NaN
            without detections).
        conf: The lowest score that was counted.
    """

    edges: np.ndarray
    count: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    error: float
    conf: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """Plain values."""
        columns = {name: getattr(self, name).tolist() for name in ("edges", "count", "score", "precision")}
        return {"conf": self.conf, "error": self.error, **columns}


def calibration(
    gt: GroundTruth, dt: Results, *, iou: float = 0.5, conf: float = 0.0, bins: int = 10, max_detections: int = 100
) -> Calibration:
    """The reliability table; detections on ignored objects do not count.

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold of matching.
        conf: The lowest score.
        bins: How many.
        max_detections: Per image and class.

    Raises:
        ValueError: Tables that do not fit together, or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least one bin, got {bins}")
    matches = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    kept = matches.counted & (matches.score >= conf)
    score, true = matches.score[kept], matches.true[kept]
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, score, minlength=bins) / count
        precision = np.bincount(place, true, minlength=bins) / count
    gaps = np.abs(precision - mean)[count > 0]
    error = float(np.average(gaps, weights=count[count > 0])) if len(gaps) else float("nan")
    return Calibration(edges, count, mean, precision, error, conf)
