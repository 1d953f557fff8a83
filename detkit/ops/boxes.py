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
from typing import Any, Literal

import numpy as np

from detkit.arrays import is_tensor
from detkit.ops.compiled import run_chunks, thread_count
from detkit.ops.inputs import behaved, box_array, check_same_kind, host_arrays, same_dtype

Format = Literal["xyxy", "xywh", "cxcywh"]
Kind = Literal["iou", "giou", "diou", "ciou"]

_KINDS = ("iou", "giou", "diou", "ciou")
_THREADED = 1 << 22  # matrix entries above which starting threads costs less than it saves
_TINY = 1e-12  # areas below it would let a gradient overflow float32


def _namespace(array: Any) -> Any:
    return sys.modules["torch"] if is_tensor(array) else np


def convert(boxes: Any, source: Format, target: Format) -> Any:
    """Boxes (N, 4) in another format, always a new array.

    "xyxy" two corners; "xywh" upper left corner, width, height; "cxcywh" centre, width, height.
    Raises ValueError for another format's name.
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
    return _namespace(boxes).stack((a, b, c, d), -1)


def area(boxes: Any) -> Any:
    """Areas (N,) of xyxy boxes, (x2 - x1) * (y2 - y1)."""
    boxes = box_array(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def clip(boxes: Any, size: tuple[int, int]) -> Any:
    """xyxy boxes (N, 4) cut to an image of ``size`` (height, width), a new array; one outside becomes empty."""
    boxes = box_array(boxes)
    xp = _namespace(boxes)
    height, width = size
    limits = (width, height, width, height)
    return xp.stack([xp.clip(boxes[:, i], 0, limit) for i, limit in enumerate(limits)], -1)


def valid(boxes: Any) -> Any:
    """(N,) bool: which xyxy boxes have finite coordinates, x2 > x1 and y2 > y1."""
    boxes = box_array(boxes)
    finite = _namespace(boxes).isfinite(boxes).all(-1)
    return finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    check_same_kind(a, b)
    return same_dtype(box_array(a, "a"), box_array(b, "b"))


def iou(a: Any, b: Any) -> Any:
    """Intersection over union of every box of ``a`` (N, 4) with every box of ``b`` (M, 4): (N, M).

    Equal to the last bit to ``torchvision.ops.box_iou`` in float32 and float64, except that a pair of boxes without
    any area gives 0 instead of NaN.
    """
    a, b = _pair(a, b)
    if not is_tensor(a):
        return _iou_matrix(a, b)
    hosts = host_arrays(a, b)
    if hosts is None:
        return _matrix(a, b, "iou")
    return sys.modules["torch"].from_numpy(_iou_matrix(*hosts))


def giou(a: Any, b: Any) -> Any:
    """Generalised IoU (N, M), -1..1: IoU minus the empty share of the pair's hull (Rezatofighi et al. 2019, eq. 1)."""
    return _matrix(*_pair(a, b), "giou")


def diou(a: Any, b: Any) -> Any:
    """Distance IoU (N, M): IoU minus squared centre distance over squared hull diagonal (Zheng et al. 2020, eq. 7)."""
    return _matrix(*_pair(a, b), "diou")


def ciou(a: Any, b: Any) -> Any:
    """Complete IoU (N, M): DIoU minus a term for unlike aspect ratios (Zheng et al. 2020, eq. 8 to 11)."""
    return _matrix(*_pair(a, b), "ciou")


def paired_iou(a: Any, b: Any, kind: Kind = "iou") -> Any:
    """The measure ``kind`` of each row of ``a`` (N, 4) with the same row of ``b`` (N, 4): (N,).

    Differentiable in torch, with finite gradients for equal, disjoint, touching and empty boxes: areas below 1e-12 are
    not divided by, and CIoU's trade-off weight carries no gradient, as in its paper.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    a, b = _pair(a, b)
    if len(a) != len(b):
        raise ValueError(f"paired boxes must be as many: {len(a)} and {len(b)}")
    return _measure([a[:, i] for i in range(4)], [b[:, i] for i in range(4)], kind)


def crowd_iou(detections: Any, crowds: Any) -> Any:
    """Intersection over the **detection's** area, (N, 4) with (M, 4): (N, M) float64; 0 for empty detections.

    COCO's rule for crowd regions: a detection inside one is neither right nor wrong.
    """
    check_same_kind(detections, crowds)
    dt, gt = box_array(detections, "detections"), box_array(crowds, "crowds")
    dt, gt = (dt.double(), gt.double()) if is_tensor(dt) else (dt.astype(np.float64), gt.astype(np.float64))
    xp = _namespace(dt)
    x1, y1, x2, y2 = (dt[:, i, None] for i in range(4))
    w = xp.clip(xp.minimum(x2, gt[:, 2]) - xp.maximum(x1, gt[:, 0]), 0, None)
    h = xp.clip(xp.minimum(y2, gt[:, 3]) - xp.maximum(y1, gt[:, 1]), 0, None)
    own = (x2 - x1) * (y2 - y1)
    return w * h / xp.where(own <= 0, 1.0, own)


def _iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from detkit.ops.iou_kernels import iou_rows

    a, b = behaved(a), behaved(b)
    out = np.empty((len(a), len(b)), a.dtype)
    threads = min(thread_count(), len(a)) if out.size >= _THREADED else 1
    if threads < 2:
        iou_rows(a, b, out)
    else:
        run_chunks(lambda start, stop: iou_rows(a[start:stop], b, out[start:stop]), len(a), threads)
    return out


def _matrix(a: Any, b: Any, kind: Kind) -> Any:
    return _measure([a[:, i, None] for i in range(4)], [b[None, :, i] for i in range(4)], kind)


def _measure(a: list[Any], b: list[Any], kind: Kind) -> Any:
    """The overlap measure of two lists of columns (x1, y1, x2, y2) that broadcast, in numpy or torch."""
    if is_tensor(a[0]):
        floor = _TINY if any(column.requires_grad for column in (*a, *b)) else 0.0
        return _formula(sys.modules["torch"], a, b, kind, floor)
    with np.errstate(all="ignore"):
        return _formula(np, a, b, kind, 0.0)


def _formula(xp: Any, a: list[Any], b: list[Any], kind: Kind, floor: float) -> Any:
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b

    def share(part: Any, whole: Any) -> Any:
        return part / xp.where(whole <= floor, 1.0, whole)

    width = xp.clip(xp.minimum(ax2, bx2) - xp.maximum(ax1, bx1), 0, None)
    height = xp.clip(xp.minimum(ay2, by2) - xp.maximum(ay1, by1), 0, None)
    inter = width * height
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

    def slope(x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
        # A lower bound for the height: arctan2 has no gradient at (0, 0).
        return xp.arctan2(x2 - x1, xp.clip(y2 - y1, 1e-7, None))

    unlike = 4 / math.pi**2 * (slope(*a) - slope(*b)) ** 2
    weight = unlike / xp.clip(1 - overlap + unlike, 1e-7, None)
    return separate - (weight.detach() if is_tensor(weight) else weight) * unlike
