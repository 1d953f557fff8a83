"""Compiled loops of the metrics: serial, ``nogil``, float64 in pycocotools' own order of operations.

Callers sort and group the rows; here a *group* is a row ``[d0, d1, g0, g1]``: the detections d0..d1 (best score first)
and the objects g0..g1 that may meet (one class of one image). Matches are kept as bits of one uint64 a detection: bit
``a * T + t`` belongs to area range a and IoU threshold t. This module imports numba, so import it inside functions.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

Arrays = tuple[np.ndarray, ...]


@kernel
def _overlaps(box: np.ndarray, g_box: np.ndarray, crowd: np.ndarray, iou: np.ndarray) -> float:
    """Fills iou (G,), the overlaps of a box with objects (G, 4), and returns the highest.

    A crowd's overlap is intersection / detection area. Ternaries instead of min and max, whose NaN rule costs.
    """
    best = 0.0
    right, bottom, area = box[2] + box[0], box[3] + box[1], box[2] * box[3]
    for g in range(g_box.shape[0]):
        g_right, g_bottom = g_box[g, 2] + g_box[g, 0], g_box[g, 3] + g_box[g, 1]
        wide = (right if right < g_right else g_right) - (box[0] if box[0] > g_box[g, 0] else g_box[g, 0])
        high = (bottom if bottom < g_bottom else g_bottom) - (box[1] if box[1] > g_box[g, 1] else g_box[g, 1])
        iou[g] = 0.0
        if wide > 0 and high > 0:
            shared = wide * high
            iou[g] = shared / (area if crowd[g] else area + g_box[g, 2] * g_box[g, 3] - shared)
            best = iou[g] if iou[g] > best else best
    return best


@kernel
def match_groups(
    groups: np.ndarray, detections: Arrays, objects: Arrays, thresholds: np.ndarray, areas: np.ndarray, found: Arrays
) -> None:
    """COCO's greedy matching of every group (S, 4), for T ascending thresholds and A area ranges (A, 2).

    Each detection takes the free object that it overlaps most, never an ignored one if another will do; of equal
    overlaps the later one wins, as in pycocotools.

    Args:
        groups: ``members[d0:d1]`` of a group are rows of boxes, best first.
        detections: members and boxes.
        objects: Boxes, areas, crowd and ignored, in the order that groups count in.
        thresholds: (T,) float64.
        areas: (A, 2) float64.
        found: Changed in the rows of the detections: matched, ignored (uint64; comes in with the bits of the area
            ranges that a detection itself is outside of) and taken (int64: the object taken at the first threshold of
            the first area range).
    """
    members, d_box = detections
    g_box, g_area, g_crowd, g_ignore = objects
    matched, ignored, taken = found
    number = thresholds.shape[0]
    most_d, most_g = 1, 1
    for s in range(groups.shape[0]):
        most_d = max(most_d, groups[s, 1] - groups[s, 0])
        most_g = max(most_g, groups[s, 3] - groups[s, 2])
    iou = np.empty((most_d, most_g))
    best = np.empty(most_d)
    free = np.empty((number, most_g), np.bool_)
    order = np.empty(most_g, np.int64)
    least = np.minimum(thresholds, 1 - 1e-10)
    for s in range(groups.shape[0]):
        d0, d1, g0, g1 = groups[s, 0], groups[s, 1], groups[s, 2], groups[s, 3]
        for d in range(d1 - d0):
            best[d] = _overlaps(d_box[members[d0 + d]], g_box[g0:g1], g_crowd[g0:g1], iou[d])
        if best[: d1 - d0].max() < least[0]:
            continue
        for a in range(areas.shape[0]):
            wanted, ignorable = 0, g1 - g0
            for g in range(g1 - g0):  # those that are asked for from the start on, the others from the end on
                if g_ignore[g0 + g] or g_area[g0 + g] < areas[a, 0] or g_area[g0 + g] > areas[a, 1]:
                    ignorable -= 1
                    order[ignorable] = g
                else:
                    order[wanted] = g
                    wanted += 1
            free[:, : g1 - g0] = True
            for d in range(d1 - d0):
                row = members[d0 + d]
                for t in range(number):
                    if best[d] < least[t]:
                        break
                    top, value = -1, least[t]
                    for place in range(wanted):
                        g = order[place]
                        if free[t, g] and iou[d, g] >= value:
                            top, value = g, iou[d, g]
                    on_ignored = top < 0
                    if on_ignored:
                        for place in range(g1 - g0 - 1, wanted - 1, -1):
                            g = order[place]
                            if free[t, g] and iou[d, g] >= value:
                                top, value = g, iou[d, g]
                        if top < 0:
                            continue
                    free[t, top] = g_crowd[g0 + top]
                    bit = np.uint64(1) << np.uint64(a * number + t)
                    if on_ignored:
                        ignored[row] |= bit
                    else:
                        ignored[row] &= ~bit
                    matched[row] |= bit
                    if a == 0 and t == 0:
                        taken[row] = g0 + top


@kernel
def best_objects(groups: np.ndarray, detections: Arrays, objects: Arrays, best: np.ndarray, iou: np.ndarray) -> None:
    """The object of highest IoU of each detection, the first of equals: of its own label, and of the other labels.

    Args:
        groups: (S, 4).
        detections: Boxes and labels, in the order that groups count in.
        objects: The same of the objects, in that order.
        best: (2, D) int64, filled where there is an overlap.
        iou: (2, D) float64, comes in as 0.
    """
    d_box, d_label = detections
    g_box, g_label = objects
    none = np.zeros(g_box.shape[0], np.bool_)
    for s in range(groups.shape[0]):
        g0, g1 = groups[s, 2], groups[s, 3]
        row = np.empty(g1 - g0)
        for d in range(groups[s, 0], groups[s, 1]):
            _overlaps(d_box[d], g_box[g0:g1], none, row)
            for g in range(g0, g1):
                side = 0 if d_label[d] == g_label[g] else 1
                if row[g - g0] > iou[side, d]:
                    best[side, d], iou[side, d] = g, row[g - g0]


@kernel
def _decided_by_area(matched: np.uint64, ignored: np.uint64, number: int, ranges: int) -> bool:
    """True for a detection that takes nothing at any threshold, so that only its area says where it counts."""
    full = (np.uint64(1) << np.uint64(number)) - np.uint64(1)
    for a in range(ranges):
        part = (ignored >> np.uint64(a * number)) & full
        if part != 0 and part != full:
            return False
    return bool(matched == 0)


@kernel
def accumulate_classes(
    first: int,
    last: int,
    matches: Arrays,
    weights: np.ndarray,
    positives: np.ndarray,
    number: int,
    levels: Arrays,
    precision: np.ndarray,
    recall: np.ndarray,
) -> None:
    """Interpolated precision (A, T, R, K) and recall (A, T, K, M) of the classes first..last - 1.

    Entries of classes without objects stay as they are. The envelope of precision changes at true positives only, so
    nothing else is stored.

    Args:
        first: A class.
        last: One more than the last class.
        matches: starts (K + 1,), and by class, best first: matched, ignored, rank, image.
        weights: (images,) int64, how many times an image counts.
        positives: (K, A) int64, the objects to be found.
        number: T.
        levels: Limits (M,) of detections per image and class, ascending, the last one the precision's; recalls (R,).
        precision: Filled.
        recall: Filled.
    """
    starts, matched, ignored, rank, image = matches
    limits, recalls = levels
    ranges = positives.shape[1]
    most = starts[last] - starts[first]
    rows = np.empty(most, np.int64)
    before = np.empty((most, ranges), np.int64)  # false positives that only their area decides
    hits = np.empty(most, np.int64)
    curve = np.empty(most)
    for k in range(first, last):
        base = np.zeros(ranges, np.int64)
        kept = 0
        for q in range(starts[k], starts[k + 1]):
            weight = weights[image[q]]
            if weight == 0 or rank[q] >= limits[-1]:
                continue
            if _decided_by_area(matched[q], ignored[q], number, ranges):
                for a in range(ranges):
                    if not (ignored[q] >> np.uint64(a * number)) & np.uint64(1):
                        base[a] += weight
                continue
            rows[kept] = q
            before[kept] = base
            kept += 1
        for a in range(ranges):
            total = np.float64(positives[k, a])
            if total == 0:
                continue
            for t in range(number):
                bit = np.uint64(1) << np.uint64(a * number + t)
                true, false, points = 0, 0, 0
                found = np.zeros(limits.shape[0], np.int64)
                for j in range(kept):
                    q = rows[j]
                    if ignored[q] & bit:
                        continue
                    weight = weights[image[q]]
                    if not matched[q] & bit:
                        false += weight
                        continue
                    true += weight
                    hits[points] = true
                    curve[points] = true / (np.float64(false + before[j, a]) + np.float64(true) + np.spacing(1.0))
                    points += 1
                    for m in range(limits.shape[0]):
                        found[m] += weight if rank[q] < limits[m] else 0
                recall[a, t, k] = found / total
                for j in range(points - 2, -1, -1):
                    curve[j] = max(curve[j], curve[j + 1])
                j = 0
                for r in range(recalls.shape[0]):
                    while j < points and hits[j] / total < recalls[r]:
                        j += 1
                    precision[a, t, r, k] = curve[j] if j < points else 0.0
