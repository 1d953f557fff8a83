"""Boxes: formats, areas and the overlap measures IoU, GIoU, DIoU and CIoU.

Boxes are (N, 4) xyxy in pixels (or any one unit), x2 and y2 exclusive, as numpy arrays or torch tensors; results are of
the same kind. float64 stays float64; half precision and integers are computed in float32. bool and complex boxes are a
TypeError, other shapes a ValueError. Arguments are never changed.

One formula, two engines: the IoU of numpy arrays and of plain CPU tensors comes from a compiled kernel; CUDA tensors
and those that need a gradient stay in torch.

Special boxes: a NaN coordinate gives NaN; where both boxes have no area, so that IoU would be 0 / 0, it is 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Literal, cast

import numpy as np

from detkit.arrays import Array, Either, is_tensor
from detkit.ops.compiled import run_chunks, thread_count
from detkit.ops.inputs import behaved, box_array, check_same_kind, double, host_arrays, same_dtype

Format = Literal["xyxy", "xywh", "cxcywh"]
Kind = Literal["iou", "giou", "diou", "ciou"]

_KINDS = ("iou", "giou", "diou", "ciou")
_THREADED = 1 << 22  # matrix entries above which starting threads costs less than it saves
_TINY = 1e-12  # areas below it would let a gradient overflow float32


def _namespace(array: Either) -> ModuleType:
    return sys.modules["torch"] if is_tensor(array) else np


def convert(boxes: Array, source: Format, target: Format) -> Array:
    """Boxes in another format.

    Args:
        boxes: (N, 4).
        source: Their format: "xyxy" two corners, "xywh" upper left corner, width, height; "cxcywh" centre, width,
            height.
        target: The format wanted.

    Returns:
        (N, 4), always a new array.

    Raises:
        ValueError: Another format's name.
    """
    for name in (source, target):
        if name not in ("xyxy", "xywh", "cxcywh"):
            raise ValueError(f"box format must be xyxy, xywh or cxcywh, got {name!r}")
    boxes = box_array(boxes)
    a, b, c, d = (boxes[:, i] for i in range(4))
    if source != target:
        if source == "xywh":
            a, b, c, d = a, b, a + c, b + d
        elif source == "cxcywh":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        if target == "xywh":
            a, b, c, d = a, b, c - a, d - b
        elif target == "cxcywh":
            a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return cast("Array", _namespace(boxes).stack((a, b, c, d), -1))


def area(boxes: Array) -> Array:
    """Areas (N,) of xyxy boxes (N, 4): (x2 - x1) * (y2 - y1)."""
    found: Either = box_array(boxes)
    return cast("Array", (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]))


def clip(boxes: Array, size: tuple[int, int]) -> Array:
    """Boxes cut to an image.

    Args:
        boxes: (N, 4) xyxy in pixels.
        size: Height and width of the image.

    Returns:
        (N, 4), a new array; a box outside becomes empty.
    """
    boxes = box_array(boxes)
    xp = _namespace(boxes)
    height, width = size
    limits = (width, height, width, height)
    return cast("Array", xp.stack([xp.clip(boxes[:, i], 0, limit) for i, limit in enumerate(limits)], -1))


def valid(boxes: Array) -> Array:
    """Which xyxy boxes (N, 4) have finite coordinates, x2 > x1 and y2 > y1: (N,) bool."""
    found: Either = box_array(boxes)
    finite = _namespace(boxes).isfinite(found).all(-1)
    return cast("Array", finite & (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1]))


def _pair(a: Array, b: Array) -> tuple[Array, Array]:
    check_same_kind(a, b)
    return same_dtype(box_array(a, "a"), box_array(b, "b"))


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of every box of ``a`` with every box of ``b``.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy.

    Returns:
        (N, M), 0..1. Equal to the last bit to ``torchvision.ops.box_iou`` in float32 and float64, except that a pair of
        boxes without any area gives 0 instead of NaN.
    """
    a, b = _pair(a, b)
    hosts = host_arrays(a, b)
    if hosts is None:
        return _matrix(a, b, "iou")
    overlap = _iou_matrix(*hosts)
    return cast("Array", sys.modules["torch"].from_numpy(overlap) if is_tensor(a) else overlap)


def giou(a: Array, b: Array) -> Array:
    """Generalised IoU (N, M) of xyxy boxes (N, 4) and (M, 4), -1..1: IoU minus the empty share of the pair's hull
    (Rezatofighi et al. 2019, eq. 1)."""
    return _matrix(*_pair(a, b), "giou")


def diou(a: Array, b: Array) -> Array:
    """Distance IoU (N, M) of xyxy boxes (N, 4) and (M, 4): IoU minus squared centre distance over squared hull diagonal
    (Zheng et al. 2020, eq. 7)."""
    return _matrix(*_pair(a, b), "diou")


def ciou(a: Array, b: Array) -> Array:
    """Complete IoU (N, M) of xyxy boxes (N, 4) and (M, 4): DIoU minus a term for unlike aspect ratios (Zheng et al.
    2020, eq. 8 to 11)."""
    return _matrix(*_pair(a, b), "ciou")


def paired_iou(a: Array, b: Array, kind: Kind = "iou") -> Array:
    """The overlap of each row of ``a`` with the same row of ``b``.

    Differentiable in torch, with finite gradients for equal, disjoint, touching and empty boxes: areas below 1e-12 are
    not divided by, and CIoU's trade-off weight carries no gradient, as in its paper.

    Args:
        a: (N, 4) xyxy.
        b: (N, 4) xyxy.
        kind: The measure.

    Returns:
        (N,).

    Raises:
        ValueError: An unknown measure, or not as many boxes.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    a, b = _pair(a, b)
    if len(a) != len(b):
        raise ValueError(f"paired boxes must be as many: {len(a)} and {len(b)}")
    return cast("Array", _measure([a[:, i] for i in range(4)], [b[:, i] for i in range(4)], kind))


def crowd_iou(detections: Array, crowds: Array) -> Array:
    """Intersection over the **detection's** area: COCO's rule for crowd regions, where a detection is neither right nor
    wrong.

    Args:
        detections: (N, 4) xyxy.
        crowds: (M, 4) xyxy.

    Returns:
        (N, M) float64; 0 for empty detections.
    """
    check_same_kind(detections, crowds)
    found = double(box_array(detections, "detections"))
    a, b = _columns(found, double(box_array(crowds, "crowds")))
    own: Either = area(found)[:, None]
    return cast("Array", _shared(a, b) / _namespace(own).where(own <= 0, 1.0, own))


def _iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from detkit.ops.box_kernels import iou_rows

    a, b = behaved(a), behaved(b)
    out = np.empty((len(a), len(b)), a.dtype)
    threads = min(thread_count(), len(a)) if out.size >= _THREADED else 1
    run_chunks(lambda start, stop: iou_rows(a[start:stop], b, out[start:stop]), len(a), threads)
    return out


def _columns(a: Either, b: Either) -> tuple[list[Either], list[Either]]:
    """x1, y1, x2, y2 of boxes (N, 4) and (M, 4), such that they broadcast to (N, M)."""
    return [a[:, i, None] for i in range(4)], [b[None, :, i] for i in range(4)]


def _matrix(a: Array, b: Array, kind: Kind) -> Array:
    return cast("Array", _measure(*_columns(a, b), kind))


def _measure(a: Sequence[Either], b: Sequence[Either], kind: Kind) -> Either:
    """The overlap measure of two lists of columns (x1, y1, x2, y2) that broadcast, in numpy or torch."""
    if is_tensor(a[0]):
        return _formula(a, b, kind, _TINY if any(column.requires_grad for column in (*a, *b)) else 0.0)
    with np.errstate(all="ignore"):
        return _formula(a, b, kind, 0.0)


def _shared(a: Sequence[Either], b: Sequence[Either]) -> Either:
    """The area of the intersection."""
    xp = _namespace(a[0])
    width = xp.clip(xp.minimum(a[2], b[2]) - xp.maximum(a[0], b[0]), 0, None)
    return width * xp.clip(xp.minimum(a[3], b[3]) - xp.maximum(a[1], b[1]), 0, None)


def _formula(a: Sequence[Either], b: Sequence[Either], kind: Kind, floor: float) -> Either:
    xp = _namespace(a[0])
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b

    def share(part: Either, whole: Either) -> Either:
        return part / xp.where(whole <= floor, 1.0, whole)

    inter = _shared(a, b)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    overlap = share(inter, union)
    if kind == "iou":
        return overlap
    hull_width = xp.maximum(ax2, bx2) - xp.minimum(ax1, bx1)
    hull_height = xp.maximum(ay2, by2) - xp.minimum(ay1, by1)
    if kind == "giou":
        hull = hull_width * hull_height
        return overlap - share(hull - union, hull)
    distance = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    separate = overlap - share(distance, hull_width**2 + hull_height**2)
    if kind == "diou":
        return separate

    def slope(x1: Either, y1: Either, x2: Either, y2: Either) -> Either:
        # A lower bound for the height: arctan2 has no gradient at (0, 0).
        return xp.arctan2(x2 - x1, xp.clip(y2 - y1, 1e-7, None))

    unlike = 4 / math.pi**2 * (slope(*a) - slope(*b)) ** 2
    weight = unlike / xp.clip(1 - overlap + unlike, 1e-7, None)
    return separate - (weight.detach() if is_tensor(weight) else weight) * unlike
