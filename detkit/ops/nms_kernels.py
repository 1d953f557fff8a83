"""Compiled kernels of greedy NMS and soft-NMS. Both decide by the exact float32 (or float64) IoU.

Greedy NMS works class by class, candidates best first. A short list is compared with all kept boxes of its class, block
by block. A long one looks kept boxes up in a grid: IoU >= t bounds the ratio of two areas by t and 1 / t, and the
distance of the centres by (1 - t) / 2t of a side, so a hash of (area level, cell of that level) names the few kept
boxes that could suppress a candidate. Areas of level n lie in 4^(n-1) .. 4^n, and its cells are 2^n wide.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.ops.compiled import kernel

_BLOCK = 64
_GRID_FROM = 500  # candidates of one class from which the grid is faster than the list
_GRID_THRESHOLD = 0.2  # below it the grid's neighbourhoods are too wide to help
_FAR = 2.0**50  # beyond it the number of a cell is no exact integer


@kernel
def _covers(boxes: np.ndarray, i: int, rows: np.ndarray, k: int, threshold: float) -> bool:
    """Whether boxes k and i overlap by more than the threshold; 0 / 0 does not."""
    zero = boxes.dtype.type(0)
    x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
    u1, v1, u2, v2 = rows[k, 0], rows[k, 1], rows[k, 2], rows[k, 3]
    w = (x2 if x2 < u2 else u2) - (x1 if x1 > u1 else u1)
    h = (y2 if y2 < v2 else v2) - (y1 if y1 > v1 else v1)
    inter = (w if w > zero else zero) * (h if h > zero else zero)
    return bool(inter / ((u2 - u1) * (v2 - v1) + (x2 - x1) * (y2 - y1) - inter) > threshold)


@kernel
def _covered(boxes: np.ndarray, i: int, columns: np.ndarray, count: int, threshold: float) -> bool:
    """Whether one of the ``count`` kept boxes, whose corners are columns (4, n), covers box i.

    Ternaries instead of min and max, whose NaN rule costs, and blocks without an exit let LLVM use vector instructions.
    """
    zero = boxes.dtype.type(0)
    x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
    area = (x2 - x1) * (y2 - y1)
    for start in range(0, count, _BLOCK):
        hit = False
        for k in range(start, min(start + _BLOCK, count)):
            u1, v1, u2, v2 = columns[0, k], columns[1, k], columns[2, k], columns[3, k]
            w = (x2 if x2 < u2 else u2) - (x1 if x1 > u1 else u1)
            h = (y2 if y2 < v2 else v2) - (y1 if y1 > v1 else v1)
            inter = (w if w > zero else zero) * (h if h > zero else zero)
            hit |= inter / ((u2 - u1) * (v2 - v1) + area - inter) > threshold
        if hit:
            return True
    return False


@kernel
def _bucket(column: int, row: int, level: int, buckets: int) -> int:
    """The place of a cell in the hash table; cells that share one only cost comparisons."""
    mixed = np.uint64(column) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(row) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed += np.uint64(level) * np.uint64(0x165667B19E3779F9)
    return int(mixed >> np.uint64(36)) & (buckets - 1)


@kernel
def _covered_near(
    boxes: np.ndarray,
    i: int,
    rows: np.ndarray,
    columns: np.ndarray,
    count: int,
    threshold: float,
    slack: float,
    reach: float,
    heads: np.ndarray,
    following: np.ndarray,
) -> bool:
    """``_covered``, and if not, box i enters the grid; only kept boxes of its neighbourhood are looked at.

    rows (n, 4), columns (4, n): the kept boxes; slack, reach: the ratio of areas and, in sides, the distance of centres
    beyond which boxes are too unlike; heads (a power of two,): the kept box entered last in each bucket, or -1;
    following (n,): the one before it.
    """
    width = np.float64(boxes[i, 2]) - np.float64(boxes[i, 0])
    height = np.float64(boxes[i, 3]) - np.float64(boxes[i, 1])
    if not (width > 0 and height > 0 and 0 < width * height < np.inf):
        return False  # without a finite area a box neither suppresses nor is suppressed
    x = 0.5 * (np.float64(boxes[i, 0]) + np.float64(boxes[i, 2]))
    y = 0.5 * (np.float64(boxes[i, 1]) + np.float64(boxes[i, 3]))
    part, power = math.frexp(width * height)
    # frexp(part * slack) and frexp(part / slack) would be calls, and this runs for each candidate.
    below, least = power, part * slack
    while least < 0.5:
        least *= 2
        below -= 1
    above, most = power, part / slack
    while most >= 1:
        most *= 0.5
        above += 1
    lowest, highest = (below + 1) >> 1, (above + 1) >> 1
    scale = math.ldexp(2.0, -lowest)
    for near in range(lowest, highest + 1):
        scale *= 0.5
        left, right = np.floor((x - reach * width) * scale), np.floor((x + reach * width) * scale)
        top, bottom = np.floor((y - reach * height) * scale), np.floor((y + reach * height) * scale)
        far = max(max(abs(left), abs(right)), max(abs(top), abs(bottom)))
        if not ((right - left + 1) * (bottom - top + 1) <= count and far < _FAR):
            if _covered(boxes, i, columns, count, threshold):
                return True
            break
        for row in range(int(top), int(bottom) + 1):
            for column in range(int(left), int(right) + 1):
                k = heads[_bucket(column, row, near, heads.shape[0])]
                while k >= 0:
                    if _covers(boxes, i, rows, k, threshold):
                        return True
                    k = following[k]
    level = (power + 1) >> 1
    scale = math.ldexp(1.0, -level)
    if max(abs(x), abs(y)) * scale < _FAR:
        bucket = _bucket(int(np.floor(x * scale)), int(np.floor(y * scale)), level, heads.shape[0])
        following[count] = heads[bucket]
        heads[bucket] = count
    return False


@kernel
def label_range(labels: np.ndarray) -> tuple[int, int]:
    """The lowest and highest of labels (n,) int64, n > 0."""
    low = high = labels[0]
    for label in labels:
        low = min(low, label)
        high = max(high, label)
    return low, high


@kernel
def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    order: np.ndarray,
    labels: np.ndarray,
    low: int,
    classes: int,
    threshold: float,
) -> np.ndarray:
    """Greedy NMS within each label: kept indices, best first; boxes with a NaN, or a NaN score, are not among them.

    boxes (n, 4) C-contiguous; scores (n,); order (n,): indices by descending score; labels (n,) int64 in low .. low +
    classes - 1, or none (0,) where all boxes are of one class; threshold: of the boxes' type.
    """
    n = order.shape[0]
    starts = np.zeros(classes + 1, np.int64)
    for label in labels:
        starts[label - low + 1] += 1
    if classes == 1:
        starts[1] = n
    longest = starts.max()
    for c in range(classes):
        starts[c + 1] += starts[c]
    ends = starts[:-1].copy()  # of the sound candidates of each class, best first
    members = np.empty(n, np.int64)
    for i in order:
        sound = scores[i] == scores[i]
        for axis in range(4):
            sound &= boxes[i, axis] == boxes[i, axis]
        if sound:
            c = labels[i] - low if classes > 1 else 0
            members[ends[c]] = i
            ends[c] += 1
    keep = np.zeros(n, np.bool_)
    rows = np.empty((longest, 4), boxes.dtype)
    columns = np.empty((4, longest), boxes.dtype)
    following = np.empty(longest, np.int32)
    slack = threshold * (1 - 1e-4)
    reach = (1 - slack) / (2 * slack)
    heads = np.empty(0, np.int32)
    for c in range(classes):
        candidates = members[starts[c] : ends[c]]
        gridded = len(candidates) >= _GRID_FROM and threshold >= _GRID_THRESHOLD
        if gridded:
            buckets = 64
            while buckets < 4 * len(candidates):
                buckets *= 2
            heads = np.full(buckets, -1, np.int32)
        count = 0
        for i in candidates:
            if gridded:
                covered = _covered_near(boxes, i, rows, columns, count, threshold, slack, reach, heads, following)
            else:
                covered = _covered(boxes, i, columns, count, threshold)
            if covered:
                continue
            keep[i] = True
            for axis in range(4):
                rows[count, axis] = boxes[i, axis]
                columns[axis, count] = boxes[i, axis]
            count += 1
    kept = members  # in the order of scores; its own content is no longer needed
    count = 0
    for i in order:
        if keep[i]:
            kept[count] = i
            count += 1
    return kept[:count]


@kernel
def soften(
    boxes: np.ndarray, scores: np.ndarray, gaussian: bool, sigma: float, threshold: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS: picks the best score again and again and lowers those of the boxes that it overlaps.

    boxes (n, 4), scores (n,) >= 0, of one type. Returns indices and lowered scores in the order of picking.
    """
    n = scores.shape[0]
    zero, one = scores.dtype.type(0), scores.dtype.type(1)
    x1, y1, x2, y2 = boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy()
    left = scores.copy()
    overlap = np.zeros(n, scores.dtype)
    picked = np.empty(n, np.int64)
    result = np.empty(n, scores.dtype)
    count = 0
    while True:
        best, most = -1, -one
        for j in range(n):
            if overlap[j] > zero:
                if gaussian:
                    left[j] *= math.exp(-(overlap[j] * overlap[j]) / sigma)
                elif overlap[j] > threshold:
                    left[j] *= one - overlap[j]
            if left[j] > most:
                best, most = j, left[j]
        if best < 0 or most < least:
            break
        picked[count] = best
        result[count] = most
        count += 1
        left[best] = -one
        a1, b1, a2, b2 = x1[best], y1[best], x2[best], y2[best]
        area = (a2 - a1) * (b2 - b1)
        for j in range(n):
            w = (a2 if a2 < x2[j] else x2[j]) - (a1 if a1 > x1[j] else x1[j])
            h = (b2 if b2 < y2[j] else y2[j]) - (b1 if b1 > y1[j] else y1[j])
            inter = (w if w > zero else zero) * (h if h > zero else zero)
            overlap[j] = inter / (area + (x2[j] - x1[j]) * (y2[j] - y1[j]) - inter)
    return picked[:count], result[:count]
