"""Compiled kernels of k-means on box sizes: assignment, seeding, medians. Sizes are float32, sums float64."""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

_BLOCK = 4096  # samples whose best centre so far stays in the first-level cache


@kernel
def nearness(w: np.ndarray, h: np.ndarray, x: float, y: float, by_iou: bool, out: np.ndarray) -> None:
    """How near each size is to (x, y): IoU of boxes with one centre, or minus the squared Euclidean distance."""
    n = w.shape[0]
    if by_iou:
        area = x * y
        for i in range(n):
            inter = (w[i] if w[i] < x else x) * (h[i] if h[i] < y else y)
            out[i] = inter / (w[i] * h[i] + area - inter)
    else:
        for i in range(n):
            out[i] = -((w[i] - x) * (w[i] - x) + (h[i] - y) * (h[i] - y))


@kernel
def assign(
    w: np.ndarray, h: np.ndarray, centres: np.ndarray, by_iou: bool, labels: np.ndarray, best: np.ndarray
) -> int:
    """Writes each sample's nearest centre (ties: the lower index) and nearness; returns how many labels changed."""
    n = w.shape[0]
    near = np.empty(_BLOCK, np.float32)
    top = np.empty(_BLOCK, np.float32)
    chosen = np.empty(_BLOCK, np.int32)
    changed = 0
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        count = stop - start
        top[:] = -np.inf
        chosen[:] = 0
        for c in range(centres.shape[0]):
            nearness(w[start:stop], h[start:stop], centres[c, 0], centres[c, 1], by_iou, near)
            for i in range(count):
                chosen[i] = c if near[i] > top[i] else chosen[i]
                top[i] = near[i] if near[i] > top[i] else top[i]
        for i in range(count):
            changed += 1 if labels[start + i] != chosen[i] else 0
            labels[start + i] = chosen[i]
            best[start + i] = top[i]
    return changed


@kernel
def total_iou(w: np.ndarray, h: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(k,) float64: the sum of the IoU of each centre with the sizes that are labelled with it."""
    total = np.zeros(centres.shape[0])
    for i in range(w.shape[0]):
        c = labels[i]
        x, y = centres[c, 0], centres[c, 1]
        inter = (w[i] if w[i] < x else x) * (h[i] if h[i] < y else y)
        total[c] += inter / (w[i] * h[i] + x * y - inter)
    return total


@kernel
def seed_centres(w: np.ndarray, h: np.ndarray, draws: np.ndarray, by_iou: bool) -> np.ndarray:
    """k-means++: each next centre is a sample drawn by its squared distance, from uniform draws (k,) in 0..1."""
    n = w.shape[0]
    k = draws.shape[0]
    centres = np.empty((k, 2), np.float32)
    cost = np.full(n, np.inf, np.float32)
    near = np.empty(n, np.float32)
    j = min(int(draws[0] * n), n - 1)
    for c in range(k):
        if c > 0:
            nearness(w, h, centres[c - 1, 0], centres[c - 1, 1], by_iou, near)
            total = 0.0
            for i in range(n):
                away = (np.float32(1) - near[i]) * (np.float32(1) - near[i]) if by_iou else -near[i]
                cost[i] = away if away < cost[i] else cost[i]
                total += cost[i]
            goal = draws[c] * total
            reached = 0.0
            j = -1
            for i in range(n):
                reached += cost[i]
                if cost[i] > 0:
                    j = i
                    if reached > goal:
                        break
        centres[c, 0] = w[j]
        centres[c, 1] = h[j]
    return centres


@kernel
def medians(order: np.ndarray, values: np.ndarray, labels: np.ndarray, counts: np.ndarray, out: np.ndarray) -> None:
    """The exact median of each cluster in one walk over ``order``, the samples sorted by value once for all rounds."""
    k = counts.shape[0]
    seen = np.zeros(k, np.int64)
    low = (counts - 1) // 2
    high = counts // 2
    open_clusters = 0
    for c in range(k):
        open_clusters += 1 if counts[c] > 0 else 0
    for i in range(order.shape[0]):
        j = order[i]
        c = labels[j]
        if seen[c] == low[c]:
            out[c] = values[j]
        if seen[c] == high[c]:
            out[c] = (out[c] + values[j]) * np.float32(0.5)
            open_clusters -= 1
            if open_clusters == 0:
                break
        seen[c] += 1
