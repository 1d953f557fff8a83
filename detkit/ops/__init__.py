"""Pure functions on boxes: numpy arrays or torch tensors in, the same kind out. Names are imported when first used."""

from __future__ import annotations

from detkit.lazy import lazy_names

_PLACES = {
    ".anchors": ("average_iou", "kmeans_anchors", "slot_collisions"),
    ".boxes": ("area", "ciou", "clip", "convert", "crowd_iou", "diou", "giou", "iou", "paired_iou", "valid"),
    ".fusion": ("weighted_boxes_fusion",),
    ".suppression": ("batched_nms", "nms", "soft_nms"),
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
__all__ = __dir__()
