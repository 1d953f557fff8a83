"""Compiled loops of the metrics: serial, ``nogil``, float64 in pycocotools' own order of operations.

Callers sort and group the rows; here a *group* is a row ``[d0, d1, g0, g1]``: the detections d0..d1 (best score first)
and the objects g0..g1 that may meet (one class of one image). Matches are kept as bits of one uint64 a detection: bit
``a * T + t`` belongs to area range a and IoU threshold t. This module imports numba, so import it inside functions.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def _overlaps(d_box: np.ndarray, g_box: np.ndarray, crowd: np.ndarray, iou: np.ndarray, best: np.ndarray) -> None:
    """Fills iou (D, G) and its row maxima best (D,); a crowd's overlap is intersection / detection area."""
    for d in range(d_box.shape[0]):
        x, y, w, h = d_box[d, 0], d_box[d, 1], d_box[d, 2], d_box[d, 3]
        best[d] = 0.0
        for g in range(g_box.shape[0]):
            value = 0.0
            wide = min(w + x, g_box[g, 2] + g_box[g, 0]) - max(x, g_box[g, 0])
            if wide > 0:
                high = min(h + y, g_box[g, 3] + g_box[g, 1]) - max(y, g_box[g, 1])
                if high > 0:
                    shared = wide * high
                    value = shared / (w * h if crowd[g] else w * h + g_box[g, 2] * g_box[g, 3] - shared)
            iou[d, g] = value
            best[d] = max(best[d], value)


@njit(cache=True, nogil=True)
def _choose(
    iou: np.ndarray, order: np.ndarray, ignore: np.ndarray, crowd: np.ndarray, taken: np.ndarray, least: float
) -> int:
    """The object that a detection takes, or -1: the best free one, never an ignored one if another will do.

    Ignored objects come last in ``order``; of equal overlaps the later object wins, as in pycocotools.
    """
    found = -1
    for g in order:
        if taken[g] and not crowd[g]:
            continue
        if found >= 0 and ignore[g] and not ignore[found]:
            break
        if iou[g] >= least:
            least = iou[g]
            found = g
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def match_groups(
    groups: np.ndarray,
    d_box: np.ndarray,
    g_box: np.ndarray,
    g_area: np.ndarray,
    g_crowd: np.ndarray,
    g_ignore: np.ndarray,
    g_counts: np.ndarray,
    thresholds: np.ndarray,
    areas: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
    taken_object: np.ndarray,
) -> None:
    """COCO's greedy matching of every group (S, 4), for T ascending thresholds and A area ranges (A, 2).

    Writes matched and ignored (uint64; ignored comes in with the bits of detections outside the area ranges set) and
    taken_object (int64: the object taken at the first threshold of the first area range). g_counts is False for an
    object that a detection can take without being counted as matched.
    """
    number, ranges = thresholds.shape[0], areas.shape[0]
    most_d, most_g = 1, 1
    for s in range(groups.shape[0]):
        most_d = max(most_d, groups[s, 1] - groups[s, 0])
        most_g = max(most_g, groups[s, 3] - groups[s, 2])
    iou = np.empty((most_d, most_g))
    best = np.empty(most_d)
    taken = np.empty((number, most_g), np.bool_)
    ignore = np.empty(most_g, np.bool_)
    order = np.empty(most_g, np.int64)
    for s in range(groups.shape[0]):
        d0, d1, g0, g1 = groups[s, 0], groups[s, 1], groups[s, 2], groups[s, 3]
        crowd = g_crowd[g0:g1]
        objects = g1 - g0
        _overlaps(d_box[d0:d1], g_box[g0:g1], crowd, iou, best)
        for a in range(ranges):
            last = 0
            for g in range(objects):
                area = g_area[g0 + g]
                ignore[g] = g_ignore[g0 + g] or area < areas[a, 0] or area > areas[a, 1]
                if not ignore[g]:
                    order[last] = g
                    last += 1
            for g in range(objects):
                if ignore[g]:
                    order[last] = g
                    last += 1
            taken[:, :objects] = False
            for d in range(d1 - d0):
                for t in range(number):
                    least = min(thresholds[t], 1 - 1e-10)
                    if best[d] < least:
                        break
                    g = _choose(iou[d], order[:objects], ignore, crowd, taken[t], least)
                    if g < 0:
                        continue
                    taken[t, g] = True
                    bit = np.uint64(1) << np.uint64(a * number + t)
                    if ignore[g]:
                        ignored[d0 + d] |= bit
                    elif g_counts[g0 + g]:
                        ignored[d0 + d] &= ~bit
                    if g_counts[g0 + g]:
                        matched[d0 + d] |= bit
                    if a == 0 and t == 0:
                        taken_object[d0 + d] = g0 + g


@njit(cache=True, nogil=True, error_model="numpy")
def best_objects(groups: np.ndarray, d_box: np.ndarray, g_box: np.ndarray, best: np.ndarray, iou: np.ndarray) -> None:
    """The object of highest IoU of each detection, the first of equals: fills best (int64) and iou (float64)."""
    for s in range(groups.shape[0]):
        g0, g1 = groups[s, 2], groups[s, 3]
        none = np.zeros(g1 - g0, np.bool_)
        row, top = np.empty((1, g1 - g0)), np.empty(1)
        for d in range(groups[s, 0], groups[s, 1]):
            _overlaps(d_box[d : d + 1], g_box[g0:g1], none, row, top)
            best[d] = g0 + np.argmax(row[0])
            iou[d] = top[0]


@njit(cache=True, nogil=True)
def _decided_by_area(matched: np.uint64, ignored: np.uint64, number: int, ranges: int) -> bool:
    """True for a detection that takes nothing at any threshold, so that only its area says where it counts."""
    if matched != 0:
        return False
    full = (np.uint64(1) << np.uint64(number)) - np.uint64(1)
    for a in range(ranges):
        part = (ignored >> np.uint64(a * number)) & full
        if part != 0 and part != full:
            return False
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def accumulate(
    starts: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
    weight: np.ndarray,
    positives: np.ndarray,
    number: int,
    recalls: np.ndarray,
    precision: np.ndarray,
    recall: np.ndarray,
) -> None:
    """Interpolated precision (T, R, K, A) and recall (T, K, A) from detections sorted by class, then best first.

    Rows of class k are starts[k]..starts[k + 1]; weight (int64) says how many times a row's image counts; positives
    (K, A) int64 are the objects to be found. Entries of classes without objects stay as they are.
    The envelope of precision changes at true positives only, so nothing else is stored.
    """
    ranges = positives.shape[1]
    eps = np.spacing(1.0)
    most = 1
    for k in range(positives.shape[0]):
        most = max(most, starts[k + 1] - starts[k])
    rows = np.empty(most, np.int64)
    before = np.empty((most, ranges), np.int64)
    base = np.empty(ranges, np.int64)
    hits = np.empty(most, np.int64)
    curve = np.empty(most)
    for k in range(positives.shape[0]):
        base[:] = 0
        kept = 0
        for q in range(starts[k], starts[k + 1]):
            if weight[q] == 0:
                continue
            if _decided_by_area(matched[q], ignored[q], number, ranges):
                for a in range(ranges):
                    if not (ignored[q] >> np.uint64(a * number)) & np.uint64(1):
                        base[a] += weight[q]
                continue
            rows[kept] = q
            before[kept] = base
            kept += 1
        for a in range(ranges):
            if positives[k, a] == 0:
                continue
            total = np.float64(positives[k, a])
            for t in range(number):
                bit = np.uint64(1) << np.uint64(a * number + t)
                true, false, points = 0, 0, 0
                for j in range(kept):
                    q = rows[j]
                    if ignored[q] & bit:
                        continue
                    if matched[q] & bit:
                        true += weight[q]
                        hits[points] = true
                        curve[points] = true / (np.float64(false + before[j, a]) + np.float64(true) + eps)
                        points += 1
                    else:
                        false += weight[q]
                recall[t, k, a] = true / total
                for j in range(points - 2, -1, -1):
                    curve[j] = max(curve[j], curve[j + 1])
                j = 0
                for r in range(recalls.shape[0]):
                    while j < points and hits[j] / total < recalls[r]:
                        j += 1
                    precision[t, r, k, a] = curve[j] if j < points else 0.0
