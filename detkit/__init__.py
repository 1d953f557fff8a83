"""detkit: object detection in one small package.

Public names are imported when they are first used, so ``import detkit`` costs almost nothing and IoU, NMS, anchors and
mAP never import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "DetkitError": "detkit.errors",
    "Detections": "detkit.structures",
    "Limits": "detkit.structures",
    "Sample": "detkit.structures",
    "Target": "detkit.structures",
    "iou": "detkit.ops.boxes",
    "giou": "detkit.ops.boxes",
    "nms": "detkit.ops.suppression",
    "batched_nms": "detkit.ops.suppression",
    "soft_nms": "detkit.ops.suppression",
    "weighted_boxes_fusion": "detkit.ops.fusion",
    "kmeans_anchors": "detkit.ops.anchors",
    "selective_search": "detkit.proposals.search",
    "sliding_windows": "detkit.proposals.windows",
    "load": "detkit.api",
    "train": "detkit.api",
    "evaluate": "detkit.api",
    "propose": "detkit.proposing",
    "proposal_recall": "detkit.proposing",
}

__all__ = [*_NAMES, "__version__"]

if TYPE_CHECKING:
    from detkit.api import evaluate as evaluate
    from detkit.api import load as load
    from detkit.api import train as train
    from detkit.errors import DetkitError as DetkitError
    from detkit.ops.anchors import kmeans_anchors as kmeans_anchors
    from detkit.ops.boxes import giou as giou
    from detkit.ops.boxes import iou as iou
    from detkit.ops.fusion import weighted_boxes_fusion as weighted_boxes_fusion
    from detkit.ops.suppression import batched_nms as batched_nms
    from detkit.ops.suppression import nms as nms
    from detkit.ops.suppression import soft_nms as soft_nms
    from detkit.proposals.search import selective_search as selective_search
    from detkit.proposals.windows import sliding_windows as sliding_windows
    from detkit.proposing import proposal_recall as proposal_recall
    from detkit.proposing import propose as propose
    from detkit.structures import Detections as Detections
    from detkit.structures import Limits as Limits
    from detkit.structures import Sample as Sample
    from detkit.structures import Target as Target


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'detkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
