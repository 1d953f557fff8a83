"""PASCAL VOC's average precision, as its devkit computes it: 11 points (2007) or the area under the curve (2010).

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, section 4.2, and the devkit's VOCevaldet.m.

The devkit's corners are inclusive pixels, so it adds 1 to every width and height. detkit's readers have done that
already (a box's right and bottom edges are exclusive, width = xmax - xmin + 1), so the ordinary IoU here *is* the
devkit's; adding 1 again would count it twice. On data with fractional corners the same formula is plain IoU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detkit.interfaces import Metric
from detkit.metrics.coco import iou_name
from detkit.metrics.matching import check_tables, group_by_class, positives
from detkit.tables import Evaluation, GroundTruth, Results

_ALL = np.array([[-np.inf, np.inf]])


class Voc2010(Metric):
    """The area under the precision-recall curve, the mean over classes with objects.

    A detection belongs to the object of its class that it overlaps most; at IoU >= the threshold (0.5) the first (by
    score) is true, later ones are false; on a difficult object (crowds count as such) it counts neither way. There is
    no limit on the detections of an image. Per class there are recall (at all detections) and NaN without objects.
    """

    scores = ("AP",)
    rules = "VOC2010 (IoU {iou:g}, area under the curve, all detections, difficult ignored)"

    @staticmethod
    def average(recall: np.ndarray, precision: np.ndarray) -> float:
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
        label, _, true, counted = _matched(gt, dt, iou)
        counts = positives(gt, _ALL)[:, 0]
        per_class: dict[str, dict[str, float]] = {}
        starts = np.searchsorted(label, np.arange(len(gt.classes) + 1))
        for k, name in enumerate(gt.classes):
            rows = slice(starts[k], starts[k + 1])
            recall, precision = curve(true[rows], counted[rows], int(counts[k]))
            ap = self.average(recall, precision) if counts[k] else np.nan
            reached = float(recall[-1]) if len(recall) else 0.0
            numbers = {"AP": ap, iou_name(iou): ap, "recall": reached if counts[k] else np.nan}
            per_class[name] = {**numbers, "objects": int(counts[k])}
        mean = _mean([row["AP"] for row in per_class.values()])
        return Evaluation({"AP": mean, iou_name(iou): mean}, per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "AP", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to the mean AP on that many copies of each image, which do not meet."""
        iou = 0.5 if iou is None else iou
        if score not in ("AP", iou_name(iou)):
            raise ValueError(f"no PASCAL metric {score!r}; there are AP, {iou_name(iou)}")
        label, rows, true, counted = _matched(gt, dt, iou)
        starts = np.searchsorted(label, np.arange(len(gt.classes) + 1))
        image = dt.image[rows]

        def value(weights: np.ndarray) -> float:
            counts, weight = positives(gt, _ALL, weights)[:, 0], weights[image].astype(float)
            found = []
            for k in np.flatnonzero(counts):
                part = slice(starts[k], starts[k + 1])
                found.append(self.average(*curve(true[part], counted[part], int(counts[k]), weight[part])))
            return _mean(found)

        return value


class Voc2007(Voc2010):
    """The mean over recall 0, 0.1 ... 1 of the best precision at that recall or above."""

    rules = "VOC2007 (IoU {iou:g}, 11 recall points, all detections, difficult ignored)"

    @staticmethod
    def average(recall: np.ndarray, precision: np.ndarray) -> float:
        """AP of one class's curve: from 11 points."""
        return float(sum(precision[recall >= level].max(initial=0.0) for level in np.arange(11) / 10) / 11)


def curve(
    true: np.ndarray, counted: np.ndarray, objects: float, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (float64) after each detection that counts, best first; all rows one class.

    Args:
        true: (n,) bool.
        counted: (n,) bool.
        objects: Number to be found.
        weight: (n,) how many times each row counts; None: once.
    """
    ones = np.ones(len(true)) if weight is None else weight
    kept = counted & (ones > 0)
    hits = np.cumsum(np.where(true, ones, 0.0)[kept])
    seen = np.cumsum(ones[kept])
    return (hits / objects if objects else np.zeros(len(hits))), hits / seen


def _mean(values: list[float]) -> float:
    valid = [value for value in values if not np.isnan(value)]
    return float(np.mean(valid)) if valid else float("nan")


def _matched(gt: GroundTruth, dt: Results, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Detections by class, then best first: label, row in ``dt``, true, counted (neither way on difficult objects)."""
    from detkit.metrics import kernels

    check_tables(gt, dt)
    if not 0 < iou <= 1:
        raise ValueError(f"the IoU threshold must lie in (0, 1], got {iou}")
    grouped = group_by_class(gt, dt)
    rows = grouped.rows
    best, overlap = np.full(len(grouped.members), -1, np.int64), np.zeros(len(grouped.members))
    kernels.best_objects(
        grouped.groups,
        np.ascontiguousarray(dt.xywh[grouped.members], dtype=np.float64),
        np.ascontiguousarray(gt.xywh[grouped.g_rows], dtype=np.float64),
        best,
        overlap,
    )
    taken = np.full(len(dt), -1, np.int64)
    taken[grouped.members] = np.where(overlap >= iou, grouped.g_rows[best], -1)
    taken = taken[rows]
    on_object = np.flatnonzero(taken >= 0)
    skipped = np.zeros(len(rows), bool)
    skipped[on_object] = (gt.difficult | gt.crowd)[taken[on_object]]
    first = np.zeros(len(rows), bool)
    first[on_object[np.unique(taken[on_object], return_index=True)[1]]] = True
    return dt.label[rows], rows, first & ~skipped, ~skipped
