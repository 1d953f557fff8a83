"""Pure functions on boxes: numpy arrays or torch tensors in, the same kind out. Names are imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "convert": "boxes",
    "area": "boxes",
    "clip": "boxes",
    "valid": "boxes",
    "iou": "boxes",
    "giou": "boxes",
    "diou": "boxes",
    "ciou": "boxes",
    "paired_iou": "boxes",
    "crowd_iou": "boxes",
    "nms": "suppression",
    "batched_nms": "suppression",
    "soft_nms": "suppression",
    "weighted_boxes_fusion": "fusion",
    "kmeans_anchors": "anchors",
    "average_iou": "anchors",
    "slot_collisions": "anchors",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'detkit.ops' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"detkit.ops.{_NAMES[name]}"), name)
    globals()[name] = value
    return value
