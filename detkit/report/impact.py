"""What each false positive and each object that is missed or found late costs in AP, so that the worst come first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics.matching import ALL_AREAS, match, positives
from detkit.tables import GroundTruth, Results


@dataclass(slots=True, frozen=True, eq=False)
class Impact:
    """The impact of each error on mean AP at one IoU threshold, before interpolation and one at a time.

    Attributes:
        false_positive: (M,) float64, what AP would gain without this detection, 0 for those that are right.
        object: (N,) float64, what it would gain if this object were found before anything else.
        score: (N,) of the detection that finds the object, NaN where none does and for objects that are not asked for.
        true: (M,) bool, right detections.
    """

    false_positive: np.ndarray
    object: np.ndarray
    score: np.ndarray
    true: np.ndarray


def ap_impact(gt: GroundTruth, dt: Results, *, iou: float = 0.5, max_detections: int = 100) -> Impact:
    """The impact of every detection and object, by COCO's matching.

    AP is the mean, over objects, of the precision at the detection that finds them (0: none does). Without a false
    positive the precision hits / seen at each later true positive would be hits / (seen - 1).

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold.
        max_detections: Per image and class.
    """
    matches = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    objects = positives(gt, ALL_AREAS)[:, 0]
    share = 1 / max(int((objects > 0).sum()), 1)
    false, true = np.zeros(len(dt)), np.zeros(len(dt), bool)
    late = np.where(gt.crowd | gt.difficult, 0.0, share / np.maximum(objects, 1)[gt.label])
    score = np.full(len(gt.image), np.nan)
    true[matches.row[matches.true]] = True
    for k in np.flatnonzero(objects):
        rows = np.arange(matches.starts[k], matches.starts[k + 1])
        rows = rows[matches.counted[rows]]
        right = matches.true[rows]
        hits, seen = np.cumsum(right), np.arange(1.0, len(rows) + 1)
        gain = np.where(right, hits / (seen * np.maximum(seen - 1, 1)), 0.0)
        after = np.cumsum(gain[::-1])[::-1]
        weight = share / objects[k]
        false[matches.row[rows[~right]]] = weight * after[~right]
        taken = matches.taken[rows[right]]
        late[taken] = weight * (1 - hits[right] / seen[right])
        score[taken] = matches.score[rows[right]]
    return Impact(false, late, score, true)
