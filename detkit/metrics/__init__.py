"""Metrics on flat float64 tables: COCO, PASCAL VOC, top-k, points, curves, confusion, bootstrap. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from detkit.errors import DetkitError
from detkit.interfaces import Metric
from detkit.registry import find_part, make

if TYPE_CHECKING:
    from detkit.tables import Evaluation, GroundTruth, Results

METRICS = {
    "coco": "detkit.metrics.coco:Coco",
    "voc2007": "detkit.metrics.voc:Voc2007",
    "voc2007_exact": "detkit.metrics.voc:Voc2007Exact",
    "voc2010": "detkit.metrics.voc:Voc2010",
    "classify": "detkit.metrics.classification:Classification",
    "points": "detkit.metrics.points:Points",
    "pretext": "detkit.metrics.classification:Pretext",
    "pixels": "detkit.metrics.pixels:Pixels",
    "match": "detkit.metrics.identities:Match",
    "match_absolute": "detkit.metrics.identities:MatchAbsolute",
    "match_chi_square": "detkit.metrics.identities:MatchChiSquare",
}


def find_metric(protocol: str, *, where: str = "", others: Sequence[str] = ()) -> Metric:
    """The metric of this name, ready to use.

    Args:
        protocol: A key of ``METRICS``, an entry point of ``detkit.metrics``, or "package.module:Name".
        where: The place of the name, for errors.
        others: Names that the caller knows besides, for errors.

    Raises:
        DetkitError: As ``detkit.registry.find_part``.
    """
    found: Metric = make(find_part("metric", protocol, where=where, others=others), where or f"metric {protocol}")
    return found


def evaluate_results(
    gt: GroundTruth, dt: Results, protocol: str = "coco", *, iou: float | None = None, max_detections: int = 100
) -> Evaluation:
    """How good detections are.

    Args:
        gt: The labels.
        dt: The detections, in the labels' classes.
        protocol: See ``find_metric``.
        iou: The matching threshold: COCO adds AP there to its numbers, PASCAL takes it instead of 0.5.
        max_detections: Per image and class, where the metric has such a limit.

    Raises:
        ValueError: Tables that do not fit together, or a threshold that makes no sense.
        DetkitError: There is no such metric, or it does not return the numbers that it names.
    """
    metric = find_metric(protocol)
    if iou is not None and not metric.takes_iou:
        raise ValueError(f"{protocol} matches no boxes, so it takes no iou")
    result = metric.evaluate(gt, dt, iou=iou, max_detections=max_detections)
    if missing := [name for name in metric.scores if name not in result.metrics]:
        returned = ", ".join(result.metrics) or "nothing"
        what = f"the metric {protocol} has the score {missing[0]}, but its evaluate returns {returned}"
        raise DetkitError(what, f"scores of {type(metric).__name__}", "name in scores what evaluate returns")
    return replace(result, protocol=protocol)
