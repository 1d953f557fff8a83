"""Whether scores mean what they say: of detections with score 0.8, are 80% right?

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, section 2 (reliability diagrams,
expected calibration error), on detections as in Kueppers et al., "Multivariate Confidence Calibration for Object
Detection", 2020: right means a true positive at one IoU threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics.matching import match
from detkit.tables import GroundTruth, Results


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
