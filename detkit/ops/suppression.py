"""Non-maximum suppression: greedy, greedy within each class, and soft.

Boxes are (N, 4) xyxy, scores (N,), labels (N,) integers, all numpy arrays or all torch tensors; results are of the same
kind. The rule is the libraries': a box is dropped if its IoU with a better kept one is **> threshold** (the textbook
drops >= threshold). Equal scores: the lower index comes first. Classes never suppress each other.

A box with a NaN coordinate, or with a NaN score, is never kept and suppresses nothing. A box without area is kept and
suppresses nothing. Wrong types are a TypeError, wrong shapes or a threshold outside 0..1 a ValueError.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from detkit.arrays import as_numpy, is_tensor
from detkit.ops.inputs import (
    behaved,
    box_array,
    check_positive,
    check_same_kind,
    check_shares,
    host_arrays,
    label_array,
    same_dtype,
    score_array,
)
from detkit.ops.order import descending


def nms(boxes: Any, scores: Any, threshold: float) -> Any:
    """Kept indices (K,) int64 of greedy NMS over all boxes, by descending score.

    The same indices in the same order as ``torchvision.ops.nms`` (NaN apart), which does the work for CUDA tensors.
    """
    return _nms(boxes, scores, None, threshold)


def batched_nms(boxes: Any, scores: Any, labels: Any, threshold: float) -> Any:
    """Kept indices (K,) int64 of greedy NMS within each label, by descending score, ties by lower index.

    The same boxes as ``torchvision.ops.batched_nms``, which orders ties of different classes arbitrarily and, for small
    inputs, moves each class by an offset that can round boxes; here coordinates are used as they are.
    """
    return _nms(boxes, scores, labels, threshold)


def soft_nms(
    boxes: Any,
    scores: Any,
    *,
    sigma: float = 0.5,
    method: Literal["gaussian", "linear"] = "gaussian",
    threshold: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Any, Any]:
    """Soft-NMS (Bodla et al. 2017, section 3): kept indices (K,) int64 and their lowered scores (K,), best first.

    Each picked box multiplies the scores of the others by exp(-IoU^2 / sigma) ("gaussian") or, where IoU > threshold,
    by 1 - IoU ("linear"); boxes that fall below ``min_score`` leave. Scores must be >= 0. Tensors on other devices go
    through the CPU; no gradient flows through the new scores.
    """
    from detkit.ops.nms_kernels import soften

    if method not in ("gaussian", "linear"):
        raise ValueError(f"method must be gaussian or linear, got {method!r}")
    check_positive(sigma=sigma)
    check_shares(threshold=threshold)
    check_same_kind(boxes, scores)
    boxes = box_array(boxes)
    scores = score_array(scores, len(boxes))
    wide_boxes, wide_scores = same_dtype(as_numpy(boxes), as_numpy(scores))
    sound = _sound(wide_boxes, wide_scores)
    gaussian = method == "gaussian"
    least = max(0.0, float(min_score))
    kept, lowered = soften(wide_boxes[sound], wide_scores[sound], gaussian, float(sigma), float(threshold), least)
    kept, lowered = np.flatnonzero(sound)[kept], lowered.astype(wide_scores.dtype, copy=False)
    if not is_tensor(boxes):
        return kept, lowered
    torch = sys.modules["torch"]
    return torch.from_numpy(kept).to(boxes.device), torch.from_numpy(lowered).to(boxes.device)


def _sound(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) bool: no NaN among coordinates and score."""
    return ~(np.isnan(boxes).any(1) | np.isnan(scores))


def _nms(boxes: Any, scores: Any, labels: Any, threshold: float) -> Any:
    check_shares(threshold=threshold)
    threshold = float(threshold)
    check_same_kind(boxes, scores, *(() if labels is None else (labels,)))
    boxes = box_array(boxes)
    scores = score_array(scores, len(boxes))
    if labels is not None:
        labels = label_array(labels, len(boxes))
    if not is_tensor(boxes):
        return _compiled_nms(boxes, scores, labels, threshold)
    torch = sys.modules["torch"]
    columns = [boxes.detach(), scores.detach()] + ([] if labels is None else [labels])
    hosts = host_arrays(*columns)
    if hosts is None:
        return _torch_nms(*same_dtype(*columns[:2]), labels, threshold)
    return torch.from_numpy(_compiled_nms(hosts[0], hosts[1], None if labels is None else hosts[2], threshold))


def _torch_nms(boxes: Any, scores: Any, labels: Any, threshold: float) -> Any:
    import torchvision

    torch = sys.modules["torch"]
    sound = ~(torch.isnan(boxes).any(1) | torch.isnan(scores))
    # A NaN score would be the first candidate and suppress others.
    scores = torch.where(sound, scores, -torch.inf)
    if labels is None:
        kept = torchvision.ops.nms(boxes, scores, threshold)
    else:
        kept = torchvision.ops.batched_nms(torch.where(sound[:, None], boxes, 0.0), scores, labels, threshold)
    return kept[sound[kept]]


def _compiled_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None, threshold: float) -> np.ndarray:
    from detkit.ops.nms_kernels import suppress

    classes = 1
    if labels is None or not len(labels):
        labels = np.empty(0, np.int64)
    else:
        lowest, highest = labels.min(), labels.max()
        if highest - lowest >= 2 * len(labels) + 1024:  # far apart: numbered anew
            distinct, labels = np.unique(labels, return_inverse=True)
            lowest, highest = 0, len(distinct) - 1
        labels = labels - lowest
        classes = int(highest - lowest) + 1
    order = descending(scores)
    limit = boxes.dtype.type(threshold)
    if float(limit) > threshold:  # no float of the boxes' type lies between
        limit = np.nextafter(limit, limit - 1)
    keep = suppress(behaved(boxes), behaved(scores), order, labels, classes, limit)
    return order[keep[order]]
