"""detkit: object detection.

Public names are imported when they are first used, so ``import detkit`` costs almost nothing and IoU, NMS, anchors and
mAP never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

__version__ = "0.2.0"

_PLACES = {
    ".api": ("evaluate", "load"),
    ".comparing": ("compare",),
    ".errors": ("DetkitError",),
    ".exporting.onnx_file": ("export",),
    ".ops.anchors": ("kmeans_anchors",),
    ".ops.boxes": ("giou", "iou"),
    ".ops.fusion": ("weighted_boxes_fusion",),
    ".ops.suppression": ("batched_nms", "nms", "soft_nms"),
    ".prediction.slicing": ("Sliced",),
    ".proposals.search": ("selective_search",),
    ".proposals.windows": ("sliding_windows",),
    ".proposing": ("proposal_recall", "propose"),
    ".structures": ("Detections", "Limits", "Sample", "Target"),
    ".tracking.tracker": ("Tracker",),
    ".training": ("train",),
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES, {"inspect": ".explain"})
__all__ = [*__dir__(), "__version__"]

if TYPE_CHECKING:
    from detkit import explain as inspect  # noqa: F401
    from detkit.api import evaluate as evaluate, load as load
    from detkit.comparing import compare as compare
    from detkit.errors import DetkitError as DetkitError
    from detkit.exporting.onnx_file import export as export
    from detkit.ops.anchors import kmeans_anchors as kmeans_anchors
    from detkit.ops.boxes import giou as giou, iou as iou
    from detkit.ops.fusion import weighted_boxes_fusion as weighted_boxes_fusion
    from detkit.ops.suppression import batched_nms as batched_nms, nms as nms, soft_nms as soft_nms
    from detkit.prediction.slicing import Sliced as Sliced
    from detkit.proposals.search import selective_search as selective_search
    from detkit.proposals.windows import sliding_windows as sliding_windows
    from detkit.proposing import proposal_recall as proposal_recall, propose as propose
    from detkit.structures import Detections as Detections, Limits as Limits, Sample as Sample, Target as Target
    from detkit.tracking.tracker import Tracker as Tracker
    from detkit.training import train as train
