"""PASCAL VOC's average precision, as its devkit computes it: 11 points (2007) or the area under the curve (2010).

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, section 4.2, and the devkit's VOCevaldet.m.

The devkit's corners are inclusive pixels, so it adds 1 to every width and height. detkit's readers have done that
already (a box's right and bottom edges are exclusive, width = xmax - xmin + 1), so the ordinary IoU here *is* the
devkit's; adding 1 again would count it twice. On data with fractional corners the same formula is plain IoU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from detkit.interfaces import Metric
from detkit.metrics.coco import iou_name
from detkit.metrics.matching import check_tables, group_by_class, nearest_objects, positives
from detkit.tables import Evaluation, GroundTruth, Results

ALL_SIZES = np.array([[-np.inf, np.inf]])


class _Matched(NamedTuple):
    """Detections by class, then best first: where each class starts, row in their table, true, counted (not on
    difficult objects)."""

    starts: np.ndarray
    rows: np.ndarray
    true: np.ndarray
    counted: np.ndarray


class Voc2010(Metric):
    """The area under the precision-recall curve, the mean over classes with objects.

    A detection belongs to the object of its class that it overlaps most; at IoU >= the threshold (0.5) the first (by
    score) is true, later ones are false; on a difficult object (crowds count as such) it counts neither way. There is
    no limit on the detections of an image. Per class there are recall (at all detections) and NaN without objects.
    """

    scores = ("AP",)
    rules = "VOC2010 (IoU {iou:g}, area under the curve, all detections, difficult ignored)"

    @classmethod
    def average(cls, recall: np.ndarray, precision: np.ndarray) -> float:
        """AP of one class's curve: the area under precision made monotonous."""
        recall = np.concatenate(([0.0], recall, [1.0]))
        precision = np.concatenate(([0.0], precision, [0.0]))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * envelope[1:]))

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """AP at one IoU, twice: by that name and by the threshold's (AP50)."""
        iou = 0.5 if iou is None else iou
        counts = positives(gt, ALL_SIZES)[:, 0]
        ap, recall = self._scores(_matched(gt, dt, iou), counts, np.ones(len(dt)))
        per_class: dict[str, dict[str, float]] = {}
        for name, value, reached, count in zip(gt.classes, ap, recall, counts.tolist(), strict=True):
            per_class[name] = {"AP": value, iou_name(iou): value, "recall": reached, "objects": count}
        return Evaluation({"AP": _mean(ap), iou_name(iou): _mean(ap)}, per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "AP", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to the mean AP on that many copies of each image, which do not meet."""
        iou = 0.5 if iou is None else iou
        if score not in ("AP", iou_name(iou)):
            raise ValueError(f"no PASCAL metric {score!r}; there are AP, {iou_name(iou)}")
        matched = _matched(gt, dt, iou)
        image = dt.image[matched.rows]

        def value(weights: np.ndarray) -> float:
            counts = positives(gt, ALL_SIZES, weights)[:, 0]
            return _mean(self._scores(matched, counts, weights[image].astype(float))[0])

        return value

    def _scores(self, matched: _Matched, counts: np.ndarray, weight: np.ndarray) -> tuple[list[float], list[float]]:
        """AP and highest recall of each class, NaN without objects; weight (D,): how many times each row counts."""
        ap, reached = [np.nan] * len(counts), [np.nan] * len(counts)
        for k in np.flatnonzero(counts):
            part = slice(matched.starts[k], matched.starts[k + 1])
            times = weight[part] * matched.counted[part]
            kept = times > 0
            hits, seen = np.cumsum((times * matched.true[part])[kept]), np.cumsum(times[kept])
            recall = hits / counts[k]
            ap[k], reached[k] = self.average(recall, hits / seen), float(recall.max(initial=0.0))
        return ap, reached


class Voc2007(Voc2010):
    """The mean over 11 levels of recall of the best precision at that recall or above.

    The levels are the devkit's ``0:0.1:1``, which MATLAB counts from both ends: the fourth is 3 * 0.1, a float above
    0.3, so that a recall of exactly 0.3 does not reach it.
    """

    rules = "VOC2007 (IoU {iou:g}, 11 recall points, all detections, difficult ignored)"
    levels = np.append(np.arange(6) * 0.1, 1 - np.arange(4, -1, -1) * 0.1)

    @classmethod
    def average(cls, recall: np.ndarray, precision: np.ndarray) -> float:
        """AP of one class's curve: from 11 points."""
        return float(sum(precision[recall >= level].max(initial=0.0) for level in cls.levels) / 11)


class Voc2007Exact(Voc2007):
    """VOC2007 as its paper says it: at recall 0, 0.1, 0.2, 0.3 ... 1."""

    rules = "VOC2007 at exact levels (IoU {iou:g}, 11 recall points, all detections, difficult ignored)"
    levels = np.arange(11) / 10


def _mean(values: list[float]) -> float:
    valid = [value for value in values if not np.isnan(value)]
    return float(np.mean(valid)) if valid else float("nan")


def _matched(gt: GroundTruth, dt: Results, iou: float) -> _Matched:
    check_tables(gt, dt)
    if not 0 < iou <= 1:
        raise ValueError(f"the IoU threshold must lie in (0, 1], got {iou}")
    grouped = group_by_class(gt, dt)
    rows = grouped.rows
    overlap, nearest = nearest_objects(gt, dt)
    taken = np.where(overlap[0] >= iou, nearest[0], -1)[rows]
    on_object = np.flatnonzero(taken >= 0)
    skipped, first = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    skipped[on_object] = ~gt.wanted[taken[on_object]]
    first[on_object[np.unique(taken[on_object], return_index=True)[1]]] = True
    return _Matched(grouped.starts, rows, first & ~skipped, ~skipped)
