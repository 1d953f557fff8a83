"""Compiled kernel of weighted boxes fusion."""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel


@kernel
def fuse(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted box fusion's clusters: each box joins the cluster of its label whose mean box it overlaps most.

    All float64, best score first, labels int64. Returns the clusters (k, 7): x1 y1 x2 y2 (weighted means), sum of
    scores, members, label; and the cluster of each box (n,) int64.
    """
    n = scores.shape[0]
    clusters = np.empty((n, 7), np.float64)
    sums = np.zeros((n, 4), np.float64)
    chosen = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        best = -1
        most = threshold
        for k in range(count):
            if clusters[k, 6] != labels[i]:
                continue
            w = min(boxes[i, 2], clusters[k, 2]) - max(boxes[i, 0], clusters[k, 0])
            h = min(boxes[i, 3], clusters[k, 3]) - max(boxes[i, 1], clusters[k, 1])
            if w <= 0 or h <= 0:
                continue
            own = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            other = (clusters[k, 2] - clusters[k, 0]) * (clusters[k, 3] - clusters[k, 1])
            overlap = w * h / (own + other - w * h)
            if overlap > most:
                most = overlap
                best = k
        if best < 0:
            best = count
            clusters[best, 4:] = 0
            clusters[best, 6] = labels[i]
            count += 1
        clusters[best, 4] += scores[i]
        clusters[best, 5] += 1
        for axis in range(4):
            sums[best, axis] += scores[i] * boxes[i, axis]
            clusters[best, axis] = sums[best, axis] / clusters[best, 4]
        chosen[i] = best
    return clusters[:count].copy(), chosen
