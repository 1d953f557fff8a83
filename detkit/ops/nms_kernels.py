"""Compiled kernels of greedy NMS and soft-NMS. Both decide by the exact float32 (or float64) IoU.

Greedy NMS works class by class, candidates best first. A short list is compared with all kept boxes of its class, block
by block. A long one looks kept boxes up in a grid: IoU >= t bounds the ratio of two areas by t and 1 / t, and the
distance of the centres by (1 - t) / 2t of a side, so a hash of (area level, cell of that level) names the few kept
boxes that could suppress a candidate.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.ops.compiled import kernel

_BLOCK = 64
_GRID_FROM = 160  # candidates of one class from which the grid is faster than the list
_GRID_THRESHOLD = 0.2  # below it the grid's neighbourhoods are too wide to help


@kernel
def _covers(
    rows: np.ndarray, k: int, x1: float, y1: float, x2: float, y2: float, area: float, threshold: float
) -> np.bool:
    """Whether kept box k (x1, y1, x2, y2, area) overlaps a candidate by more than the threshold; 0 / 0 does not."""
    zero = rows.dtype.type(0)
    w = (x2 if x2 < rows[k, 2] else rows[k, 2]) - (x1 if x1 > rows[k, 0] else rows[k, 0])
    h = (y2 if y2 < rows[k, 3] else rows[k, 3]) - (y1 if y1 > rows[k, 1] else rows[k, 1])
    w = w if w > zero else zero
    h = h if h > zero else zero
    inter = w * h
    return np.float64(inter / (rows[k, 4] + area - inter)) > threshold


@kernel
def _list_nms(
    boxes: np.ndarray, members: np.ndarray, threshold: float, columns: np.ndarray, rows: np.ndarray, keep: np.ndarray
) -> None:
    """Each candidate against all kept boxes, in blocks that vectorise; a block with a near hit is decided exactly.

    columns (5, n), rows (n, 5): room for the kept boxes.
    """
    n = members.shape[0]
    kind = boxes.dtype.type
    x1, y1, x2, y2, areas = columns[0], columns[1], columns[2], columns[3], columns[4]
    zero = kind(0)
    low = kind(threshold * (1 - 1e-5))
    count = 0
    for q in range(n):
        i = members[q]
        a1 = boxes[i, 0]
        b1 = boxes[i, 1]
        a2 = boxes[i, 2]
        b2 = boxes[i, 3]
        area = (a2 - a1) * (b2 - b1)
        dropped = False
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            near = 0
            for k in range(start, stop):
                w = (a2 if a2 < x2[k] else x2[k]) - (a1 if a1 > x1[k] else x1[k])
                h = (b2 if b2 < y2[k] else y2[k]) - (b1 if b1 > y1[k] else y1[k])
                w = w if w > zero else zero
                h = h if h > zero else zero
                inter = w * h
                near += 1 if (inter > zero) & (inter >= low * (area + areas[k] - inter)) else 0
            if near > 0:
                for k in range(start, stop):
                    if _covers(rows, k, a1, b1, a2, b2, area, threshold):
                        dropped = True
                        break
            if dropped:
                break
        if not dropped:
            x1[count] = a1
            y1[count] = b1
            x2[count] = a2
            y2[count] = b2
            areas[count] = area
            for axis in range(4):
                rows[count, axis] = boxes[i, axis]
            rows[count, 4] = area
            keep[q] = True
            count += 1


@kernel
def _cell_key(column: int, row: int, level: int) -> np.uint64:
    """20 bits each of column and row, 16 of the level. Cells that share a key only cost a comparison."""
    low = np.uint64(0xFFFFF)
    key = (np.uint64(column) & low) | ((np.uint64(row) & low) << np.uint64(20))
    return key | ((np.uint64(level) & np.uint64(0xFFFF)) << np.uint64(40))


@kernel
def _bucket(key: np.uint64, mask: np.uint64) -> np.uint64:
    return ((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask


@kernel
def _grid_nms(boxes: np.ndarray, members: np.ndarray, threshold: float, rows: np.ndarray, keep: np.ndarray) -> None:
    """Each candidate against the kept boxes of its neighbourhood, found through the hash."""
    n = members.shape[0]
    size = 64
    while size < 2 * n:
        size *= 2
    mask = np.uint64(size - 1)
    heads = np.full(size, -1, np.int32)
    following = np.empty(n, np.int32)
    keys = np.empty(n, np.uint64)
    count = 0
    slack = threshold * (1 - 1e-4)
    base = 1 / max(slack, 0.25)  # areas of one level lie within this factor
    step = math.log(base)
    span = 1
    while base**span < 1 / slack:
        span += 1
    reach = (1 - slack) / (2 * slack)
    for q in range(n):
        i = members[q]
        x1 = boxes[i, 0]
        y1 = boxes[i, 1]
        x2 = boxes[i, 2]
        y2 = boxes[i, 3]
        width = np.float64(x2) - np.float64(x1)
        height = np.float64(y2) - np.float64(y1)
        surface = width * height
        if not (width > 0 and height > 0 and 0 < surface < np.inf):
            keep[q] = True  # without a finite area a box neither suppresses nor is suppressed
            continue
        area = (x2 - x1) * (y2 - y1)
        cx = 0.5 * (np.float64(x1) + np.float64(x2))
        cy = 0.5 * (np.float64(y1) + np.float64(y2))
        level = int(np.floor(math.log(surface) / step))
        dropped = False
        for near in range(level - span, level + span + 1):
            scale = math.exp(-0.5 * step * (near + 1))
            left = np.floor((cx - reach * width) * scale)
            right = np.floor((cx + reach * width) * scale)
            top = np.floor((cy - reach * height) * scale)
            bottom = np.floor((cy + reach * height) * scale)
            cells = (right - left + 1) * (bottom - top + 1)
            far = max(max(abs(left), abs(right)), max(abs(top), abs(bottom)))
            if not (cells <= count and far < 2.0**50):
                # More cells than kept boxes, or cell numbers beyond an integer: all kept boxes, for all levels at once.
                for k in range(count):
                    if _covers(rows, k, x1, y1, x2, y2, area, threshold):
                        dropped = True
                        break
                break
            for row in range(int(top), int(bottom) + 1):
                for column in range(int(left), int(right) + 1):
                    key = _cell_key(column, row, near)
                    k = heads[_bucket(key, mask)]
                    while k >= 0:
                        if keys[k] == key and _covers(rows, k, x1, y1, x2, y2, area, threshold):
                            dropped = True
                            break
                        k = following[k]
                    if dropped:
                        break
                if dropped:
                    break
            if dropped:
                break
        if dropped:
            continue
        keep[q] = True
        for axis in range(4):
            rows[count, axis] = boxes[i, axis]
        rows[count, 4] = area
        scale = math.exp(-0.5 * step * (level + 1))
        if max(abs(cx), abs(cy)) * scale < 2.0**50:
            key = _cell_key(int(np.floor(cx * scale)), int(np.floor(cy * scale)), level)
            bucket = _bucket(key, mask)
            keys[count] = key
            following[count] = heads[bucket]
            heads[bucket] = count
        count += 1


@kernel
def _descending(scores: np.ndarray) -> np.ndarray:
    """Indices by descending score, ties by lower index: a radix sort. NaN stand anywhere."""
    n = scores.shape[0]
    width = np.uint64(8 if n < 4096 else 11)
    low = (np.uint64(1) << width) - np.uint64(1)
    sign = np.uint64(1) << np.uint64(63)
    keys = np.empty(n, np.uint64)
    as_float = keys.view(np.float64)
    varying = np.uint64(0)
    for i in range(n):
        as_float[i] = np.float64(scores[i]) + 0.0  # makes -0 and 0 the tie that they are; exact from float32
        keys[i] = keys[i] if keys[i] & sign else ~(keys[i] | sign)
        varying |= keys[i] ^ keys[0]
    order = np.arange(n)
    other_keys = np.empty(n, np.uint64)
    other_order = np.empty(n, np.int64)
    counts = np.empty(np.int64(low) + 1, np.int64)
    shift = np.uint64(0)
    while shift < np.uint64(64):
        if (varying >> shift) & low:
            counts[:] = 0
            for i in range(n):
                counts[(keys[i] >> shift) & low] += 1
            place = 0
            for digit in range(counts.shape[0]):
                number = counts[digit]
                counts[digit] = place
                place += number
            for i in range(n):
                bucket = np.int64((keys[i] >> shift) & low)
                other_keys[counts[bucket]] = keys[i]
                other_order[counts[bucket]] = order[i]
                counts[bucket] += 1
            keys, other_keys = other_keys, keys
            order, other_order = other_order, order
        shift += width
    return order


@kernel
def label_range(labels: np.ndarray) -> tuple[int, int]:
    """The lowest and highest of labels (n,) int64, n > 0."""
    low, high = labels[0], labels[0]
    for label in labels:
        low = min(low, label)
        high = max(high, label)
    return low, high


@kernel
def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, lowest: int, classes: int, threshold: float
) -> np.ndarray:
    """Kept indices, best first, of greedy NMS within each label; boxes and scores with a NaN are left out.

    boxes (n, 4) C-contiguous; scores (n,); labels (n,) int64 in lowest..lowest + classes - 1, or none (0,) where all
    boxes are of one class.
    """
    order = _descending(scores)
    n = order.shape[0]
    ranks = np.empty(n, np.int64)  # of the sound candidates: their places in the order, class after class
    starts = np.zeros(classes + 1, np.int64)
    sound = np.empty(n, np.bool_)
    for q in range(n):
        i = order[q]
        total = boxes[i, 0] + boxes[i, 1] + boxes[i, 2] + boxes[i, 3] + scores[i]
        sound[q] = total == total
        if not sound[q]:  # NaN, or only inf - inf?
            sound[q] = scores[i] == scores[i]
            for axis in range(4):
                sound[q] &= boxes[i, axis] == boxes[i, axis]
        if sound[q]:
            starts[(labels[i] - lowest if classes > 1 else 0) + 1] += 1
    for c in range(classes):
        starts[c + 1] += starts[c]
    places = starts[:-1].copy()
    members = np.empty(n, np.int64)
    for q in range(n):
        if sound[q]:
            c = labels[order[q]] - lowest if classes > 1 else 0
            members[places[c]] = order[q]
            ranks[places[c]] = q
            places[c] += 1
    keep = np.zeros(n, np.bool_)
    longest = 0
    for c in range(classes):
        longest = max(longest, starts[c + 1] - starts[c])
    columns = np.empty((5, longest), boxes.dtype)
    rows = np.empty((longest, 5), boxes.dtype)
    for c in range(classes):
        start = starts[c]
        stop = starts[c + 1]
        if stop - start >= _GRID_FROM and threshold >= _GRID_THRESHOLD:
            _grid_nms(boxes, members[start:stop], threshold, rows, keep[start:stop])
        else:
            _list_nms(boxes, members[start:stop], threshold, columns, rows, keep[start:stop])
    chosen = np.zeros(n, np.bool_)
    for place in range(starts[classes]):
        chosen[ranks[place]] = keep[place]
    return order[chosen]


@kernel
def soften(
    boxes: np.ndarray,
    left: np.ndarray,
    bits: np.ndarray,
    gaussian: bool,
    sigma: float,
    threshold: float,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS: picks the best score again and again and lowers those of the boxes that it overlaps.

    left (n,): scores >= 0, used up; bits: the same memory as integers, which are ordered as the scores are, and whose
    maximum a vector register finds. Most boxes do not overlap: one quick pass marks, eight to a word, those that do.
    """
    n = left.shape[0]
    zero = left.dtype.type(0)
    one = left.dtype.type(1)
    gone = left.dtype.type(-1)
    x1 = boxes[:, 0].copy()
    y1 = boxes[:, 1].copy()
    x2 = boxes[:, 2].copy()
    y2 = boxes[:, 3].copy()
    index = np.arange(n)
    picked = np.empty(n, np.int64)
    result = np.empty(n, left.dtype)
    near = np.zeros((n + 7) // 8 * 8, np.uint8)
    words = near.view(np.uint64)
    live = n
    for j in range(n):
        if not left[j] >= least:
            left[j] = gone
            live -= 1
    count = 0
    while live > 0:
        best = bits[0]
        for j in range(n):
            best = max(best, bits[j])
        p = 0
        while bits[p] != best:
            p += 1
        picked[count] = index[p]
        result[count] = left[p]
        count += 1
        a1 = x1[p]
        b1 = y1[p]
        a2 = x2[p]
        b2 = y2[p]
        area = (a2 - a1) * (b2 - b1)
        left[p] = gone
        live -= 1
        for j in range(n):
            w = (a2 if a2 < x2[j] else x2[j]) - (a1 if a1 > x1[j] else x1[j])
            h = (b2 if b2 < y2[j] else y2[j]) - (b1 if b1 > y1[j] else y1[j])
            near[j] = (w > zero) & (h > zero) & (left[j] >= zero)
        for word in range((n + 7) // 8):
            if words[word] == 0:
                continue
            for j in range(8 * word, 8 * word + 8):
                if near[j] == 0:
                    continue
                w = (a2 if a2 < x2[j] else x2[j]) - (a1 if a1 > x1[j] else x1[j])
                h = (b2 if b2 < y2[j] else y2[j]) - (b1 if b1 > y1[j] else y1[j])
                inter = w * h
                overlap = inter / (area + (x2[j] - x1[j]) * (y2[j] - y1[j]) - inter)
                if gaussian:
                    left[j] *= math.exp(-(overlap * overlap) / sigma)
                elif overlap > threshold:
                    left[j] *= one - overlap
                if not left[j] >= least:
                    left[j] = gone
                    live -= 1
        if 2 * live < n:  # in their order, so that the first of equal scores stays the first
            kept = 0
            for j in range(n):
                if left[j] >= zero:
                    x1[kept] = x1[j]
                    y1[kept] = y1[j]
                    x2[kept] = x2[j]
                    y2[kept] = y2[j]
                    left[kept] = left[j]
                    index[kept] = index[j]
                    kept += 1
            n = kept
            near[:] = 0
    return picked[:count].copy(), result[:count].copy()
