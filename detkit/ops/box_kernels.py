"""Compiled kernels of the IoU matrix and of weighted boxes fusion."""

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
    left, top, right, bottom = b[:, 0].copy(), b[:, 1].copy(), b[:, 2].copy(), b[:, 3].copy()
    areas = (right - left) * (bottom - top)
    for i in range(n):
        x1, y1, x2, y2 = a[i, 0], a[i, 1], a[i, 2], a[i, 3]
        area = (x2 - x1) * (y2 - y1)
        row = out[i]
        for j in range(m):
            w = (x2 if x2 < right[j] else right[j]) - (x1 if x1 > left[j] else left[j])
            h = (y2 if y2 < bottom[j] else bottom[j]) - (y1 if y1 > top[j] else top[j])
            inter = (w if w > zero else zero) * (h if h > zero else zero)
            union = area + areas[j] - inter
            ratio = inter / union
            row[j] = zero if union <= zero else ratio


@kernel
def fuse(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weighted boxes fusion's clusters: each box joins the cluster of its label whose mean box it overlaps most.

    boxes (n, 4), scores (n,) float64, best first; labels (n,) int64. Returns the clusters' weighted mean boxes (k, 4),
    sums of scores (k,), numbers of boxes (k,) and labels (k,).
    """
    n = scores.shape[0]
    means = np.empty((n, 4), np.float64)
    sums = np.zeros((n, 4), np.float64)
    total, members, kinds = np.zeros(n), np.zeros(n), np.empty(n, np.int64)
    count = 0
    for i in range(n):
        best = -1
        most = threshold
        for k in range(count):
            if kinds[k] != labels[i]:
                continue
            w = min(boxes[i, 2], means[k, 2]) - max(boxes[i, 0], means[k, 0])
            h = min(boxes[i, 3], means[k, 3]) - max(boxes[i, 1], means[k, 1])
            if w <= 0 or h <= 0:
                continue
            own = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            other = (means[k, 2] - means[k, 0]) * (means[k, 3] - means[k, 1])
            overlap = w * h / (own + other - w * h)
            if overlap > most:
                most = overlap
                best = k
        if best < 0:
            best = count
            kinds[best] = labels[i]
            count += 1
        total[best] += scores[i]
        members[best] += 1
        for axis in range(4):
            sums[best, axis] += scores[i] * boxes[i, axis]
            means[best, axis] = sums[best, axis] / total[best]
    return means[:count], total[:count], members[:count], kinds[:count]
