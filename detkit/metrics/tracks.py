"""Tracks against labelled tracks: HOTA (Luiten et al. 2021), CLEAR MOT's MOTA and switches (Bernardin and Stiefelhagen
2008) and IDF1 (Ristani et al. 2016).

HOTA is TrackEval's; MOTA, IDF1 and switches are py-motmetrics', where a pair of the frame before goes on as long as it
overlaps by half.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from detkit.io.detections.mot import MotTable
from detkit.ops.boxes import convert, iou

_ALPHAS = np.arange(0.05, 0.99, 0.05)  # of HOTA, least IoU of a match
_MATCH = 0.5  # the same of CLEAR MOT and IDF1
_Frames = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # per frame: places of both sides' tracks, and their IoU
Sums = dict[str, np.ndarray]


def track_sums(truth: MotTable, found: MotTable) -> Sums:
    """What ``track_scores`` makes its numbers of; several sequences are judged together by adding theirs.

    Args:
        truth: The labelled tracks of one sequence, as ``read_tracks`` gives them; scores are not looked at.
        found: A tracker's.

    Returns:
        float64 by name: of HOTA (19,), one per threshold; of the others ().
    """
    (ids, own), (others, theirs) = (np.unique(rows.id, return_inverse=True) for rows in (truth, found))
    boxes, candidates = convert(truth.xywh, "xywh", "xyxy"), convert(found.xywh, "xywh", "xyxy")
    frames: _Frames = []
    for number in np.union1d(truth.frame, found.frame):
        a, b = truth.frame == number, found.frame == number
        frames.append((own[a], theirs[b], iou(boxes[a], candidates[b])))
    shape = len(ids), len(others)
    counts: dict[str, float] = {"objects": len(truth.id), "detections": len(found.id), **_clear(frames, len(ids))}
    counts["IDTP"] = _identities(frames, *shape)
    return {name: np.asarray(value, np.float64) for name, value in counts.items()} | _hota(frames, *shape)


def track_scores(sums: Sums) -> dict[str, float]:
    """HOTA, DetA, AssA, LocA (means over 19 thresholds), MOTA, IDF1, IDSW (switches), FP and FN.

    Args:
        sums: Of ``track_sums``, with an object.
    """
    objects, detections, right = sums["objects"], sums["detections"], sums["right"]
    detection = right / np.maximum(1, objects + detections - right)
    association = sums["associated"] / np.maximum(1, right)
    located = np.maximum(1e-10, sums["located"]) / np.maximum(1e-10, right)
    means = {"HOTA": np.sqrt(detection * association), "DetA": detection, "AssA": association, "LocA": located}
    means["MOTA"] = 1 - (sums["FN"] + sums["FP"] + sums["IDSW"]) / objects
    means["IDF1"] = 2 * sums["IDTP"] / (objects + detections)
    return {name: float(np.mean(values)) for name, values in means.items()} | {
        name: float(sums[name]) for name in ("IDSW", "FP", "FN")
    }


def _hota(frames: _Frames, own: int, others: int) -> Sums:
    together, a_count, b_count = np.zeros((own, others)), np.zeros(own), np.zeros(others)
    for a, b, overlaps in frames:
        either = overlaps.sum(0) + overlaps.sum(1)[:, None] - overlaps
        together[np.ix_(a, b)] += np.divide(overlaps, either, out=np.zeros_like(overlaps), where=either > 0)
        a_count[a] += 1
        b_count[b] += 1
    counts = a_count[:, None] + b_count
    alignment = together / (counts - together)
    pairs, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    for a, b, overlaps in frames:
        rows, columns = linear_sum_assignment(-alignment[np.ix_(a, b)] * overlaps)
        pairs.append(a[rows] * others + b[columns])
        values.append(overlaps[rows, columns])
    pair, value = np.concatenate(pairs), np.concatenate(values)
    good = [value >= alpha - np.finfo(float).eps for alpha in _ALPHAS]
    associated = []
    for one in good:
        both, times = np.unique(pair[one], return_counts=True)
        associated.append((times * times / (counts.ravel()[both] - times)).sum())
    return {
        "right": np.array([one.sum() for one in good], np.float64),
        "associated": np.array(associated),
        "located": np.array([value[one].sum() for one in good]),
    }


def _clear(frames: _Frames, own: int) -> dict[str, int]:
    last = np.full(own, -1)  # the other's track that each was last paired with
    missed = false = switches = 0
    for a, b, overlaps in frames:
        worth = np.where(overlaps >= _MATCH, overlaps, -1e3)
        # A pair goes on as long as it can; the others are paired for the largest overlap.
        for i, j in zip(*np.nonzero((last[a][:, None] == b) & (overlaps >= _MATCH)), strict=True):
            if worth[i, j] > 0:  # its partner is not taken by the track before
                worth[i], worth[:, j], worth[i, j] = -1e3, -1e3, 1e3
        rows, columns = linear_sum_assignment(-worth)
        paired = worth[rows, columns] > 0
        a_paired, b_paired = a[rows[paired]], b[columns[paired]]
        switches += int(((last[a_paired] >= 0) & (last[a_paired] != b_paired)).sum())
        last[a_paired] = b_paired
        missed, false = missed + len(a) - len(a_paired), false + len(b) - len(a_paired)
    return {"FN": missed, "FP": false, "IDSW": switches}


def _identities(frames: _Frames, own: int, others: int) -> float:
    together = np.zeros((own, others))
    for a, b, overlaps in frames:
        together[np.ix_(a, b)] += overlaps >= _MATCH
    rows, columns = linear_sum_assignment(-together)
    return float(together[rows, columns].sum())
