"""detkit: object detection in one small package.

Public names are imported when they are first used, so ``import detkit`` costs almost nothing and IoU, NMS, anchors and
mAP never import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PLACES = {
    "detkit.api": ("evaluate", "load", "train"),
    "detkit.comparing": ("compare",),
    "detkit.errors": ("DetkitError",),
    "detkit.ops.anchors": ("kmeans_anchors",),
    "detkit.ops.boxes": ("giou", "iou"),
    "detkit.ops.fusion": ("weighted_boxes_fusion",),
    "detkit.ops.suppression": ("batched_nms", "nms", "soft_nms"),
    "detkit.proposals.search": ("selective_search",),
    "detkit.proposals.windows": ("sliding_windows",),
    "detkit.proposing": ("proposal_recall", "propose"),
    "detkit.structures": ("Detections", "Limits", "Sample", "Target"),
}
_NAMES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [*_NAMES, "__version__"]

if TYPE_CHECKING:
    from detkit.api import evaluate as evaluate
    from detkit.api import load as load
    from detkit.api import train as train
    from detkit.comparing import compare as compare
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


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'detkit' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
