"""Compiled sorting and grouping of detections: stable, linear in their number; row numbers are int32.

This module imports numba, so import it inside functions.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

_DIGIT = 11  # bits a pass; six passes see all 64


@kernel
def count_sort(key: np.ndarray, kinds: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``order`` (n,) sorted stably by key[row] in 0..kinds - 1, and where each kind starts (kinds + 1,) int64."""
    starts = np.zeros(kinds + 1, np.int64)
    for row in order:
        starts[key[row] + 1] += 1
    for k in range(kinds):
        starts[k + 1] += starts[k]
    places = starts[:-1].copy()
    out = np.empty(order.shape[0], np.int32)
    for row in order:
        k = key[row]
        out[places[k]] = row
        places[k] += 1
    return out, starts


@kernel
def descending(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows ``order`` (n,) int32 sorted stably by values[row] (float64, no NaN), highest first: a radix sort."""
    n = order.shape[0]
    bits = values.view(np.uint64)
    sign = np.uint64(1) << np.uint64(63)
    low = np.uint64((1 << _DIGIT) - 1)
    passes = (64 + _DIGIT - 1) // _DIGIT
    counts = np.zeros((passes, 1 << _DIGIT), np.int32)
    keys = np.empty(n, np.uint64)
    for i in range(n):
        key = bits[order[i]]
        if key == sign:
            key = np.uint64(0)  # -0.0 is 0.0
        key = key if key & sign else ~(key | sign)
        keys[i] = key
        for p in range(passes):
            counts[p, (key >> np.uint64(_DIGIT * p)) & low] += 1
    rows = order.copy()
    other_keys = np.empty(n, np.uint64)
    other_rows = np.empty(n, np.int32)
    for p in range(passes):
        if n == 0 or counts[p, (keys[0] >> np.uint64(_DIGIT * p)) & low] == n:
            continue  # all keys have this digit in common
        place = np.int32(0)
        for digit in range(1 << _DIGIT):
            number = counts[p, digit]
            counts[p, digit] = place
            place += number
        for i in range(n):
            digit = (keys[i] >> np.uint64(_DIGIT * p)) & low
            place = counts[p, digit]
            counts[p, digit] = place + 1
            other_keys[place] = keys[i]
            other_rows[place] = rows[i]
        keys, other_keys = other_keys, keys
        rows, other_rows = other_rows, rows
    return rows


@kernel
def group(
    rows: np.ndarray,
    starts: np.ndarray,
    image: np.ndarray,
    g_image: np.ndarray,
    g_rows: np.ndarray,
    g_starts: np.ndarray,
    images: int,
    limit: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds, class by class, which detections meet which objects: those of the same image.

    rows (D,) and starts: detections by class, best first; g_rows (G,) and g_starts: objects by class, then image;
    image, g_image: the image of each row of the tables. Returns rank (D,) int32, the place of each detection among
    those of its image and class; groups (S, 4) int64 ``d0, d1, g0, g1``: ``members[d0:d1]`` are the rows, best first,
    of the detections of rank < limit of one image and class, and ``g_rows[g0:g1]`` its objects; members (M,) int32.
    """
    classes = starts.shape[0] - 1
    rank = np.empty(rows.shape[0], np.int32)
    seen = np.zeros(images, np.int32)
    slot = np.full(images, -1, np.int64)
    groups = np.empty((g_rows.shape[0], 4), np.int64)
    members = np.empty(rows.shape[0], np.int32)
    count = 0
    used = 0
    for k in range(classes):
        first = count
        for g in range(g_starts[k], g_starts[k + 1]):
            picture = g_image[g_rows[g]]
            if slot[picture] < 0:
                slot[picture] = count
                groups[count] = 0
                groups[count, 2] = g
                count += 1
            groups[slot[picture], 3] = g + 1
        for q in range(starts[k], starts[k + 1]):
            picture = image[rows[q]]
            rank[q] = seen[picture]
            seen[picture] += 1
            if slot[picture] >= 0 and rank[q] < limit:
                groups[slot[picture], 1] += 1
        for s in range(first, count):
            number = groups[s, 1]
            groups[s, 0] = used
            groups[s, 1] = used
            used += number
        for q in range(starts[k], starts[k + 1]):
            picture = image[rows[q]]
            seen[picture] = 0
            if slot[picture] >= 0 and rank[q] < limit:
                members[groups[slot[picture], 1]] = rows[q]
                groups[slot[picture], 1] += 1
        for g in range(g_starts[k], g_starts[k + 1]):
            slot[g_image[g_rows[g]]] = -1
    return rank, groups[:count], members[:used]
