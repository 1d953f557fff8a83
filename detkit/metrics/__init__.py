"""Metrics on flat float64 tables: COCO, PASCAL VOC, top-k, points, curves, confusion, bootstrap. Imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from detkit.metrics.tables import GroundTruth, Results

# protocol: module with ``evaluate(gt, dt, *, iou=None, **options)`` and ``resampler``, and the options
METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "coco": ("detkit.metrics.coco", {}),
    "voc2007": ("detkit.metrics.voc", {"year": "2007"}),
    "voc2010": ("detkit.metrics.voc", {"year": "2010"}),
    "classify": ("detkit.metrics.classification", {}),
    "points": ("detkit.metrics.points", {}),
}
# What a training run may choose its best weights by, the usual one first.
SCORES = {"coco": ("AP", "AP50"), "classify": ("top1", "top5"), "points": ("AP", "AP50", "PCK")}


@dataclass(slots=True, frozen=True)
class Evaluation:
    """Numbers of one protocol: metrics by name, and by class name; NaN (per class) where there is nothing to find."""

    protocol: str
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The form of ``evaluate --json``."""
        return {"protocol": self.protocol, "metrics": self.metrics, "per_class": self.per_class}


def protocol_module(protocol: str) -> tuple[Any, dict[str, Any]]:
    """The module of a protocol and its options; ValueError for an unknown one."""
    if protocol not in METRICS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(METRICS)}")
    name, options = METRICS[protocol]
    return importlib.import_module(name), options


def evaluate(
    gt: GroundTruth, dt: Results, protocol: str = "coco", *, iou: float | None = None, **options: Any
) -> Evaluation:
    """Evaluates detections by a protocol of ``METRICS``.

    ``iou`` is the matching threshold: COCO adds AP there to its numbers, PASCAL takes it instead of 0.5; options are
    the protocol's own (COCO's max_detections). Raises ValueError for an unknown protocol or tables that do not fit
    together.
    """
    module, usual = protocol_module(protocol)
    options = {**usual, **options}
    if iou is not None:
        options = {**options, "iou": iou}
    result = module.evaluate(gt, dt, **options)
    return Evaluation(protocol, result.metrics, result.per_class)
