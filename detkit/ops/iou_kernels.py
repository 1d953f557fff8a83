"""Compiled kernel of the IoU matrix."""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel


@kernel
def iou_rows(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Writes the IoU of boxes ``a`` (n, 4) and ``b`` (m, 4) to ``out`` (n, m); one float type throughout.

    The order of operations is torchvision's, so the bits are too; a pair without any area gives 0 where it divides 0
    by 0. Ternaries instead of min and max, whose NaN rule costs, let LLVM use vector instructions.
    """
    n, m = out.shape
    zero = out.dtype.type(0)
    left = np.empty(m, out.dtype)
    top = np.empty(m, out.dtype)
    right = np.empty(m, out.dtype)
    bottom = np.empty(m, out.dtype)
    areas = np.empty(m, out.dtype)
    for j in range(m):
        left[j] = b[j, 0]
        top[j] = b[j, 1]
        right[j] = b[j, 2]
        bottom[j] = b[j, 3]
        areas[j] = (b[j, 2] - b[j, 0]) * (b[j, 3] - b[j, 1])
    for i in range(n):
        x1 = a[i, 0]
        y1 = a[i, 1]
        x2 = a[i, 2]
        y2 = a[i, 3]
        area = (x2 - x1) * (y2 - y1)
        row = out[i]
        for j in range(m):
            w = (x2 if x2 < right[j] else right[j]) - (x1 if x1 > left[j] else left[j])
            h = (y2 if y2 < bottom[j] else bottom[j]) - (y1 if y1 > top[j] else top[j])
            w = w if w > zero else zero
            h = h if h > zero else zero
            inter = w * h
            union = area + areas[j] - inter
            ratio = inter / union
            row[j] = zero if union <= zero else ratio
