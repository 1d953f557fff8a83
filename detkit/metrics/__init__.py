"""Detection metrics on flat float64 tables: COCO, PASCAL VOC, curves, confusion, bootstrap. Imports no torch."""

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
}


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
    """Evaluates detections by "coco", "voc2007" or "voc2010".

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
