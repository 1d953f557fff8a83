"""What is wrong with a set of detections: how much AP each kind of error costs, and each error by itself.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020, sections 2.2
(the kinds) and 2.3 (their weight); where the paper leaves a choice, as its authors' code (tidecv) makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detkit.metrics.coco import accumulate
from detkit.metrics.matching import ALL_AREAS, Matches, match, nearest_objects, positives
from detkit.tables import GroundTruth, Results

# In the order of ``ErrorBreakdown.kind``; objects that nothing was near are "missed".
KINDS = {
    "classification": "on an object of another class",
    "localization": "of the right class, but its box is off",
    "both": "near an object, with neither its class nor its box",
    "duplicate": "on an object that a better detection has found",
    "background": "on nothing",
}
MISSED = "an object that no detection is on, nor could be corrected to"


@dataclass(slots=True, frozen=True, eq=False)
class ErrorBreakdown:
    """The errors of a set of detections.

    Attributes:
        ap: COCO's AP at the one IoU threshold.
        counts: Number of errors of each kind of ``KINDS`` and "missed".
        gains: What AP would gain if they alone were put right.
        false_positives: The gain if there were none at all.
        false_negatives: The gain if what is missed were not asked for.
        row: (E,) int64, the wrong detections' rows in their Results.
        kind: (E,) int64, place in ``KINDS``.
        missed: (N,) bool, of the objects.
    """

    ap: float
    counts: dict[str, int]
    gains: dict[str, float]
    false_positives: float
    false_negatives: float
    row: np.ndarray
    kind: np.ndarray
    missed: np.ndarray

    def kinds_by_row(self) -> dict[int, str]:
        """Name of the kind by row of the wrong detection."""
        names = list(KINDS)
        return {row: names[kind] for row, kind in zip(self.row.tolist(), self.kind.tolist(), strict=True)}


def error_breakdown(
    gt: GroundTruth, dt: Results, *, iou: float = 0.5, background: float = 0.1, max_detections: int = 100
) -> ErrorBreakdown:
    """Sorts every false positive and every missed object into one kind of error.

    A false positive is tested in this order, ``own`` and ``other`` being its highest IoU with objects of its class and
    of other classes in its image: localization where ``background <= own < iou``; classification where
    ``other >= iou``; duplicate where ``own >= iou``; background where both are below ``background``; else both.
    Put right, a classification or localization error becomes the true positive of its object, unless the object is
    found already or a better detection could be corrected to it: then it is taken away, as are duplicates, background
    and both. Missed objects, those that no detection finds or could be corrected to, are no longer asked for.
    Crowds and difficult objects, and detections on them, play no part.

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold of matching.
        background: Below it a detection is on nothing.
        max_detections: Per image and class.

    Raises:
        ValueError: Tables or thresholds that make no sense.
    """
    if not 0 < background < iou:
        raise ValueError(f"the background threshold must lie between 0 and {iou}, got {background}")
    matches = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    found = np.zeros(len(gt.image), bool)
    found[matches.taken[matches.true]] = True
    wrong = np.flatnonzero(matches.counted & ~matches.true)
    (own, other), nearest = nearest_objects(gt[gt.wanted], dt[matches.row[wrong]])
    target_own, target_other = np.append(np.flatnonzero(gt.wanted), -1)[nearest]
    rules = {
        "localization": (own >= background) & (own < iou),
        "classification": other >= iou,
        "duplicate": own >= iou,
        "background": np.maximum(own, other) < background,
    }
    names = list(KINDS)
    kind = np.select(list(rules.values()), [names.index(name) for name in rules], names.index("both"))
    target = np.where(kind == 0, target_other, np.where(kind == 1, target_own, -1))
    best = _best_corrections(target, matches.score[wrong], found)
    missed = gt.wanted & ~found
    missed[target[target >= 0]] = False

    objects = positives(gt, ALL_AREAS)[:, 0]
    base = _changed_ap(matches, objects)
    gains = {}
    for number, name in enumerate(KINDS):
        mine = best & (kind == number)
        labels = gt.label[target[mine]]
        gains[name] = _changed_ap(matches, objects, removed=wrong[kind == number], right=wrong[mine], labels=labels)
    gains["missed"] = _changed_ap(matches, _fewer(objects, gt, missed))
    counts = dict(zip(names, np.bincount(kind, minlength=len(names)).tolist(), strict=True))
    return ErrorBreakdown(
        ap=base,
        counts=counts | {"missed": int(missed.sum())},
        gains={name: gain - base for name, gain in gains.items()},
        false_positives=_changed_ap(matches, objects, removed=wrong) - base,
        false_negatives=_changed_ap(matches, _fewer(objects, gt, gt.wanted & ~found)) - base,
        row=matches.row[wrong],
        kind=kind,
        missed=missed,
    )


def _best_corrections(target: np.ndarray, score: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(E,) bool: the best-scoring one of those that could be corrected to an object which nothing has found."""
    open_ = np.flatnonzero(~np.append(found, True)[target])  # a target of -1 is no object
    open_ = open_[np.argsort(-score[open_], kind="stable")]
    best = np.zeros(len(target), bool)
    best[open_[np.unique(target[open_], return_index=True)[1]]] = True
    return best


def _fewer(objects: np.ndarray, gt: GroundTruth, gone: np.ndarray) -> np.ndarray:
    """(K,) objects to be found without those of the mask ``gone``; -1 for a class that has lost all of them."""
    left = objects - np.bincount(gt.label[gone], minlength=len(objects))
    return np.where((objects > 0) & (left == 0), -1, left)


_NONE = np.zeros(0, np.int64)


def _changed_ap(
    matches: Matches,
    objects: np.ndarray,
    *,
    removed: np.ndarray = _NONE,
    right: np.ndarray = _NONE,
    labels: np.ndarray = _NONE,
) -> float:
    """Mean AP without the detections ``removed`` (places in matches), but with those ``right`` as true positives of
    the classes ``labels``.

    As in tidecv a class that has lost its objects counts as 0 while it has detections, else not at all.
    """
    kept, true, label = matches.counted.copy(), matches.true.copy(), matches.label.copy()
    kept[removed] = False
    kept[right], true[right], label[right] = True, True, labels
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((-matches.score[rows], label[rows]))]
    seen = np.bincount(label[rows], minlength=len(objects))
    fixed = replace(  # in the columns that count here
        matches,
        image=matches.image[rows],
        rank=np.zeros(len(rows), np.int64),
        matched=true[rows].astype(np.uint64),
        ignored=np.zeros(len(rows), np.uint64),
        starts=np.concatenate(([0], np.cumsum(seen))),
    )
    precision, _ = accumulate(fixed, objects.clip(min=0)[:, None], [1])
    per_class = precision[0, :, :, 0].mean(axis=0)[objects > 0]
    scores = np.concatenate([per_class, np.zeros(np.count_nonzero((objects < 0) & (seen > 0)))])
    return float(scores.mean()) if len(scores) else 0.0


@dataclass(slots=True, frozen=True, eq=False)
class Impact:
    """The impact of each error on mean AP at one IoU threshold, before interpolation and one at a time.

    Attributes:
        false_positive: (M,) float64, what AP would gain without this detection, 0 for those that are right.
        object: (N,) float64, what it would gain if this object were found before anything else.
        score: (N,) of the detection that finds the object, NaN where none does and for objects that are not asked for.
        true: (M,) bool, right detections.
    """

    false_positive: np.ndarray
    object: np.ndarray
    score: np.ndarray
    true: np.ndarray


def ap_impact(gt: GroundTruth, dt: Results, *, iou: float = 0.5, max_detections: int = 100) -> Impact:
    """The impact of every detection and object, by COCO's matching.

    AP is the mean, over objects, of the precision at the detection that finds them (0: none does). Without a false
    positive the precision hits / seen at each later true positive would be hits / (seen - 1).

    Args:
        gt: The labels.
        dt: The detections.
        iou: The threshold.
        max_detections: Per image and class.
    """
    matches = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    objects = positives(gt, ALL_AREAS)[:, 0]
    share = 1 / max(int((objects > 0).sum()), 1)
    false, true = np.zeros(len(dt)), np.zeros(len(dt), bool)
    late = np.where(gt.wanted, share / np.maximum(objects, 1)[gt.label], 0.0)
    score = np.full(len(gt.image), np.nan)
    true[matches.row[matches.true]] = True
    for k in np.flatnonzero(objects):
        rows = np.arange(matches.starts[k], matches.starts[k + 1])
        rows = rows[matches.counted[rows]]
        right = matches.true[rows]
        hits, seen = np.cumsum(right), np.arange(1.0, len(rows) + 1)
        gain = np.where(right, hits / (seen * np.maximum(seen - 1, 1)), 0.0)
        after = np.cumsum(gain[::-1])[::-1]
        weight = share / objects[k]
        false[matches.row[rows[~right]]] = weight * after[~right]
        taken = matches.taken[rows[right]]
        late[taken] = weight * (1 - hits[right] / seen[right])
        score[taken] = matches.score[rows[right]]
    return Impact(false, late, score, true)
