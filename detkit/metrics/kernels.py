"""Compiled loops of the metrics: serial, ``nogil``, float64 in pycocotools' own order of operations.

Callers sort and group the rows; here a *group* is a row ``[d0, d1, g0, g1]``: the detections d0..d1 (best score first)
and the objects g0..g1 that may meet (one class of one image). Matches are kept as bits of one uint64 a detection: bit
``a * T + t`` belongs to area range a and IoU threshold t. This module imports numba, so import it inside functions.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel


@kernel
def _overlaps(
    d_box: np.ndarray, row: int, g_box: np.ndarray, g0: int, g1: int, crowd: np.ndarray, iou: np.ndarray, d: int
) -> tuple[float, int]:
    """Fills iou[d], the overlaps of the box d_box[row] with the objects g0..g1 - 1; returns the highest and whose.

    Of equal ones the last counts; -1 where nothing overlaps. A crowd's overlap is intersection / detection area.
    Ternaries instead of min and max, whose NaN rule costs.
    """
    best, top = 0.0, -1
    x, y, w, h = d_box[row, 0], d_box[row, 1], d_box[row, 2], d_box[row, 3]
    right, bottom, area = w + x, h + y, w * h
    for g in range(g0, g1):
        g_right, g_bottom = g_box[g, 2] + g_box[g, 0], g_box[g, 3] + g_box[g, 1]
        wide = (right if right < g_right else g_right) - (x if x > g_box[g, 0] else g_box[g, 0])
        high = (bottom if bottom < g_bottom else g_bottom) - (y if y > g_box[g, 1] else g_box[g, 1])
        value = 0.0
        if wide > 0 and high > 0:
            shared = wide * high
            value = shared / (area if crowd[g] else area + g_box[g, 2] * g_box[g, 3] - shared)
            if value >= best:
                best, top = value, g - g0
        iou[d, g - g0] = value
    return best, top


@kernel
def _choose(
    iou: np.ndarray, d: int, order: np.ndarray, wanted: int, objects: int, free: np.ndarray, t: int, least: float
) -> int:
    """The object that detection d takes, or -1: the best free one, never an ignored one if another will do.

    ``order`` holds the objects, the first ``wanted`` not ignored; of equal overlaps the later one wins, as in
    pycocotools.
    """
    found = -1
    for place in range(wanted):
        g = order[place]
        if free[t, g] and iou[d, g] >= least:
            least = iou[d, g]
            found = g
    if found >= 0:
        return found
    for place in range(wanted, objects):
        g = order[place]
        if free[t, g] and iou[d, g] >= least:
            least = iou[d, g]
            found = g
    return found


@kernel
def outside(box: np.ndarray, areas: np.ndarray, number: int, bits: np.ndarray) -> None:
    """Fills bits (D,) uint64 with all ``number`` bits of the area ranges that a detection itself is outside of."""
    full = (np.uint64(1) << np.uint64(number)) - np.uint64(1) if number < 64 else ~np.uint64(0)
    for d in range(box.shape[0]):
        area = box[d, 2] * box[d, 3]
        bits[d] = 0
        for a in range(areas.shape[0]):
            out = (area < areas[a, 0]) | (area > areas[a, 1])
            bits[d] |= full << np.uint64(a * number) if out else np.uint64(0)


@kernel
def match_groups(
    groups: np.ndarray,
    members: np.ndarray,
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

    ``members[d0:d1]`` of a group are rows of d_box, best first; g_* are the objects in the order that groups count in.
    Changes, in the rows of the detections: matched, ignored (uint64; comes in as ``outside`` fills it) and
    taken_object (int64: the object taken at the first threshold of the first area range).
    g_counts is False for an object that a detection can take without being counted as matched.
    """
    number, ranges = thresholds.shape[0], areas.shape[0]
    most_d, most_g = 1, 1
    for s in range(groups.shape[0]):
        most_d = max(most_d, groups[s, 1] - groups[s, 0])
        most_g = max(most_g, groups[s, 3] - groups[s, 2])
    iou = np.empty((most_d, most_g))
    best = np.empty(most_d)
    top = np.empty(most_d, np.int64)
    free = np.empty((number, most_g), np.bool_)
    ignore = np.empty(most_g, np.bool_)
    order = np.empty(most_g, np.int64)
    least = np.minimum(thresholds, 1 - 1e-10)
    for s in range(groups.shape[0]):
        d0, d1, g0, g1 = groups[s, 0], groups[s, 1], groups[s, 2], groups[s, 3]
        objects = g1 - g0
        near = False
        for d in range(d1 - d0):
            best[d], top[d] = _overlaps(d_box, members[d0 + d], g_box, g0, g1, g_crowd, iou, d)
            near |= best[d] >= least[0]
        if not near:
            continue
        for a in range(ranges):
            wanted = 0
            for g in range(objects):
                area = g_area[g0 + g]
                ignore[g] = g_ignore[g0 + g] or area < areas[a, 0] or area > areas[a, 1]
                if not ignore[g]:
                    order[wanted] = g
                    wanted += 1
            place = wanted
            for g in range(objects):
                if ignore[g]:
                    order[place] = g
                    place += 1
                for t in range(number):
                    free[t, g] = True
            for d in range(d1 - d0):
                if best[d] < least[0]:
                    continue
                row = members[d0 + d]
                for t in range(number):
                    if best[d] < least[t]:
                        break
                    g = top[d]
                    if ignore[g] or not free[t, g]:
                        g = _choose(iou, d, order, wanted, objects, free, t, least[t])
                        if g < 0:
                            continue
                    free[t, g] = g_crowd[g0 + g]
                    bit = np.uint64(1) << np.uint64(a * number + t)
                    if ignore[g]:
                        ignored[row] |= bit
                    elif g_counts[g0 + g]:
                        ignored[row] &= ~bit
                    if g_counts[g0 + g]:
                        matched[row] |= bit
                    if a == 0 and t == 0:
                        taken_object[row] = g0 + g


@kernel
def best_objects(groups: np.ndarray, d_box: np.ndarray, g_box: np.ndarray, best: np.ndarray, iou: np.ndarray) -> None:
    """The object of highest IoU of each detection, the first of equals: fills best (int64) and iou (float64)."""
    none = np.zeros(g_box.shape[0], np.bool_)
    for s in range(groups.shape[0]):
        g0, g1 = groups[s, 2], groups[s, 3]
        row = np.empty((1, g1 - g0))
        for d in range(groups[s, 0], groups[s, 1]):
            iou[d], _ = _overlaps(d_box, d, g_box, g0, g1, none, row, 0)
            best[d] = g0 + np.argmax(row[0])


@kernel
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


@kernel
def accumulate(
    first: int,
    last: int,
    starts: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
    rank: np.ndarray,
    image: np.ndarray,
    weights: np.ndarray,
    positives: np.ndarray,
    number: int,
    limits: np.ndarray,
    recalls: np.ndarray,
    precision: np.ndarray,
    recall: np.ndarray,
) -> None:
    """Interpolated precision (A, T, R, K) and recall (A, T, K, M) of the classes first..last - 1.

    Rows of class k are starts[k]..starts[k + 1], best first; limits (M,) ascending: detections an image and class, the
    last one the precision's; weights (images,) int64 says how many times an image counts, () that all count once;
    positives (K, A) int64 are the objects to be found. Entries of classes without objects stay as they are.
    The envelope of precision changes at true positives only, so nothing else is stored.
    """
    ranges = positives.shape[1]
    most_allowed = limits[-1]
    weighted = weights.shape[0] > 0
    eps = np.spacing(1.0)
    most = 1
    for k in range(first, last):
        most = max(most, starts[k + 1] - starts[k])
    kept_rows = np.empty(most, np.int64)
    before = np.empty((most, ranges), np.int64)
    base = np.empty(ranges, np.int64)
    hits = np.empty(most, np.int64)
    curve = np.empty(most)
    found = np.empty(limits.shape[0], np.int64)
    for k in range(first, last):
        base[:] = 0
        kept = 0
        for q in range(starts[k], starts[k + 1]):
            weight = weights[image[q]] if weighted else 1
            if weight == 0 or rank[q] >= most_allowed:
                continue
            if _decided_by_area(matched[q], ignored[q], number, ranges):
                for a in range(ranges):
                    if not (ignored[q] >> np.uint64(a * number)) & np.uint64(1):
                        base[a] += weight
                continue
            kept_rows[kept] = q
            for a in range(ranges):
                before[kept, a] = base[a]
            kept += 1
        for a in range(ranges):
            if positives[k, a] == 0:
                continue
            total = np.float64(positives[k, a])
            for t in range(number):
                bit = np.uint64(1) << np.uint64(a * number + t)
                true, false, points = 0, 0, 0
                found[:] = 0
                for j in range(kept):
                    q = kept_rows[j]
                    if ignored[q] & bit:
                        continue
                    weight = weights[image[q]] if weighted else 1
                    if matched[q] & bit:
                        true += weight
                        hits[points] = true
                        curve[points] = true / (np.float64(false + before[j, a]) + np.float64(true) + eps)
                        points += 1
                        for m in range(limits.shape[0]):
                            found[m] += weight if rank[q] < limits[m] else 0
                    else:
                        false += weight
                for m in range(limits.shape[0]):
                    recall[a, t, k, m] = found[m] / total
                for j in range(points - 2, -1, -1):
                    curve[j] = max(curve[j], curve[j + 1])
                j = 0
                for r in range(recalls.shape[0]):
                    while j < points and hits[j] / total < recalls[r]:
                        j += 1
                    precision[a, t, r, k] = curve[j] if j < points else 0.0
