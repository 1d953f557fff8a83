"""Non-maximum suppression: greedy, greedy within each class, and soft.

Boxes are (N, 4) xyxy, scores (N,), labels (N,) integers, all numpy arrays or all torch tensors; results are of the same
kind. The rule is the libraries': a box is dropped if its IoU with a better kept one is **> threshold** (the textbook
drops >= threshold). Equal scores: the lower index comes first. Classes never suppress each other.

A box with a NaN coordinate, or with a NaN score, is never kept and suppresses nothing. A box without area is kept and
suppresses nothing. Of no boxes scores and labels may be None. Wrong types are a TypeError, wrong shapes or a threshold
outside 0..1 a ValueError.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import numpy as np

from detkit.arrays import Array, Either, as_numpy, is_tensor
from detkit.ops import inputs
from detkit.ops.order import descending


def nms(boxes: Array, scores: Array, threshold: float | None = None, *, iou_threshold: float | None = None) -> Array:
    """Greedy NMS over all boxes.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        threshold: A box whose IoU with a better one is above it is dropped, 0..1.
        iou_threshold: torchvision's name of ``threshold``.

    Returns:
        Kept indices (K,) int64, by descending score: the same in the same order as ``torchvision.ops.nms`` (NaN apart),
        which does the work for CUDA tensors.
    """
    scores = inputs.of_nothing(scores, boxes)
    inputs.check_same_kind(boxes, scores)
    return _nms(boxes, scores, None, _the_one(threshold, iou_threshold))


def batched_nms(
    boxes: Array, scores: Array, labels: Array, threshold: float | None = None, *, iou_threshold: float | None = None
) -> Array:
    """Greedy NMS within each label.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) integers.
        threshold: A box whose IoU with a better one of its label is above it is dropped, 0..1.
        iou_threshold: torchvision's name of ``threshold``.

    Returns:
        Kept indices (K,) int64, by descending score, ties by lower index: the same boxes as
        ``torchvision.ops.batched_nms``, which orders ties of different classes arbitrarily and, for small inputs, moves
        each class by an offset that can round boxes; here coordinates are used as they are.
    """
    scores, labels = inputs.of_nothing(scores, boxes), inputs.of_nothing(labels, boxes)
    inputs.check_same_kind(boxes, scores, labels)
    return _nms(boxes, scores, inputs.label_array(labels, len(boxes)), _the_one(threshold, iou_threshold))


def _the_one(threshold: float | None, iou_threshold: float | None) -> float:
    given = [value for value in (threshold, iou_threshold) if value is not None]
    if len(given) != 1:
        raise TypeError("give threshold, or iou_threshold, which is the same")
    return given[0]


def soft_nms(
    boxes: Array,
    scores: Array,
    *,
    sigma: float = 0.5,
    method: Literal["gaussian", "linear"] = "gaussian",
    threshold: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Array, Array]:
    """Soft-NMS (Bodla et al. 2017, section 3): each picked box lowers the scores of those that it overlaps.

    Tensors on other devices go through the CPU; no gradient flows through the new scores.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,), 0 or above.
        sigma: Of "gaussian".
        method: What scores are multiplied by: exp(-IoU^2 / sigma) ("gaussian"), or 1 - IoU where IoU > threshold
            ("linear").
        threshold: Of "linear".
        min_score: Boxes that fall below it leave.

    Returns:
        Kept indices (K,) int64 and their lowered scores (K,), best first.
    """
    from detkit.ops.nms_kernels import soften

    if method not in ("gaussian", "linear"):
        raise ValueError(f"method must be gaussian or linear, got {method!r}")
    inputs.check_positive(sigma=sigma)
    inputs.check_shares(threshold=threshold)
    scores = inputs.of_nothing(scores, boxes)
    inputs.check_same_kind(boxes, scores)
    boxes = inputs.box_array(boxes)
    wide, high = inputs.same_dtype(as_numpy(boxes), as_numpy(inputs.score_array(scores, len(boxes))))
    sound: np.ndarray = ~(np.isnan(wide).any(1) | np.isnan(high))
    least = max(0.0, float(min_score))
    kept, lowered = soften(wide[sound], high[sound], method == "gaussian", float(sigma), float(threshold), least)
    return inputs.as_kind(np.flatnonzero(sound)[kept], boxes), inputs.as_kind(lowered, boxes)


def _nms(boxes: Array, scores: Array, labels: Either, threshold: float) -> Array:
    inputs.check_shares(threshold=threshold)
    boxes = inputs.box_array(boxes)
    found: Either = [boxes, inputs.score_array(scores, len(boxes))]
    found = [column.detach() if is_tensor(column) else column for column in found]
    found += [] if labels is None else [labels]
    hosts = inputs.host_arrays(*found)
    if hosts is None:
        return cast("Array", _torch_nms(*inputs.same_dtype(*found[:2]), labels, threshold))
    return inputs.as_kind(_compiled_nms(*hosts, threshold=float(threshold)), boxes)


def _torch_nms(boxes: Either, scores: Either, labels: Either, threshold: float) -> Either:
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


_ONE_CLASS = np.empty(0, np.int64)
_FEW = 200  # boxes


def _compiled_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray = _ONE_CLASS, *, threshold: float
) -> np.ndarray:
    if len(boxes) <= _FEW and "numba" not in sys.modules:
        return _few_nms(boxes, scores, labels, _below(threshold, boxes.dtype))
    from detkit.ops.nms_kernels import label_range, suppress

    low = high = 0
    if len(labels):
        labels = inputs.behaved(labels)
        low, high = label_range(labels)
        if high - low >= 2 * len(labels) + 1024:  # far apart: numbered anew
            distinct, labels = np.unique(labels, return_inverse=True)
            low, high = 0, len(distinct) - 1
    columns = inputs.behaved(boxes), inputs.behaved(scores), descending(scores), labels
    return suppress(*columns, low, high - low + 1, _below(threshold, boxes.dtype))


def _below(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The threshold in the boxes' type, rounded down: no float of that type lies between."""
    limit: Any = dtype.type(threshold)
    return np.nextafter(limit, limit - 1) if float(limit) > threshold else limit


def _few_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: object) -> np.ndarray:
    """What the kernel does with the same arithmetic, for so few boxes that importing numba would take longer."""
    order = descending(scores)
    order = order[~(np.isnan(boxes).any(1) | np.isnan(scores))[order]]
    some = boxes[order]
    with np.errstate(all="ignore"):
        sides = np.minimum(some[:, None, 2:], some[:, 2:]) - np.maximum(some[:, None, :2], some[:, :2])
        inter = np.maximum(sides, 0).prod(-1)
        area = (some[:, 2:] - some[:, :2]).prod(-1)
        covers = inter / (area[:, None] + area - inter) > limit
    if len(labels):
        covers &= labels[order][:, None] == labels[order]
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~covers[i, i + 1 :]
    kept: np.ndarray = order[alive]
    return kept
