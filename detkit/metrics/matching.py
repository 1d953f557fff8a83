"""Sorting, grouping and matching of detections with objects: what every metric but PASCAL's starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics.tables import GroundTruth, Results

ALL_AREAS = np.array([[0.0, 1e5**2]])


@dataclass(slots=True, frozen=True, eq=False)
class Matches:
    """Detections after matching, sorted by class, then best first (equal scores: by image, then in file order).

    row (D,) int64, the detection's row in its Results; image, label (D,) int64; score (D,) float64; rank (D,) int64,
    its place among its group's scores; matched, ignored (D,) uint64, bit ``a * thresholds + t``; taken (D,) int64, row
    of the object taken at the first threshold of the first area range, or -1; starts (K + 1,) int64, the rows of each
    class; thresholds (T,); areas (A, 2) square pixels.
    """

    row: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    taken: np.ndarray
    starts: np.ndarray
    thresholds: np.ndarray
    areas: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """(D,) bool: true positives at the first threshold of the first area range."""
        return ((self.matched & ~self.ignored) & np.uint64(1)).astype(bool)

    @property
    def counted(self) -> np.ndarray:
        """(D,) bool: neither on an ignored object nor outside the first area range."""
        return (self.ignored & np.uint64(1)) == 0


def check_tables(gt: GroundTruth, dt: Results) -> None:
    """Raises ValueError where indices, labels or numbers of the two tables make no sense together."""
    if not (len(dt.image) == len(dt.label) == len(dt.xywh) == len(dt.score)):
        raise ValueError("Results: image, label, xywh and score must have the same length")
    for owner, table in (("GroundTruth", gt), ("Results", dt)):
        for name, limit in (("image", gt.images), ("label", len(gt.classes))):
            value = getattr(table, name)
            if len(value) and (value.min() < 0 or value.max() >= limit):
                raise ValueError(f"{owner}: {name} must lie in 0..{limit - 1}, got {value.min()}..{value.max()}")
    if not np.isfinite(dt.score).all() or not np.isfinite(dt.xywh).all():
        raise ValueError("Results: scores and boxes must be finite numbers")


def score_order(gt: GroundTruth, dt: Results) -> np.ndarray:
    """Rows of ``dt``, best score first; equal scores by the rank of their image, then in file order (int64)."""
    image = dt.image if gt.rank is None else gt.rank[dt.image]
    by_image = np.argsort(image, kind="stable")
    return by_image[np.argsort(-dt.score[by_image], kind="stable")]


def group_rows(d_key: np.ndarray, g_key: np.ndarray) -> np.ndarray:
    """Runs of equal keys that both sorted key arrays have: (S, 4) int64 rows d0, d1, g0, g1."""
    common = np.intersect1d(d_key, g_key)
    bounds = [np.searchsorted(keys, common, side) for keys in (d_key, g_key) for side in ("left", "right")]
    return np.stack(bounds, axis=1).astype(np.int64)


def places_in_runs(key: np.ndarray) -> np.ndarray:
    """The place of each element of a sorted array within its run of equal values, from 0 (int64)."""
    if not len(key):
        return np.zeros(0, np.int64)
    first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    return np.arange(len(key)) - np.repeat(first, np.diff(np.append(first, len(key))))


def match(
    gt: GroundTruth,
    dt: Results,
    *,
    thresholds: np.ndarray,
    areas: np.ndarray = ALL_AREAS,
    max_detections: int = 100,
    by_class: bool = True,
) -> Matches:
    """Matches detections with objects as COCO does: greedily, best score first, each object once.

    Objects that are crowd, difficult or outside an area range (A, 2) are ignored: a detection on one counts neither
    way, and a detection that finds nothing and lies outside the range itself is dropped too. A crowd takes any number
    of detections by intersection / detection area. Of each image and class the ``max_detections`` best take part.
    An object with annotation id 0 takes a detection without counting as found, as in pycocotools (its match table
    holds ids, and 0 reads as unmatched); readers of formats without ids number from 1.
    ``by_class=False`` lets any class match any class. Raises ValueError for tables or thresholds that make no sense.
    """
    from detkit.metrics import kernels

    check_tables(gt, dt)
    thresholds, areas = np.sort(np.asarray(thresholds, float)), np.asarray(areas, float).reshape(-1, 2)
    if not len(thresholds) or thresholds[0] <= 0 or thresholds[-1] > 1 or len(thresholds) * len(areas) > 64:
        raise ValueError("IoU thresholds must lie in (0, 1], at most 64 pairs of threshold and area range")
    d_label, g_label = (dt.label, gt.label) if by_class else (np.zeros_like(dt.label), np.zeros_like(gt.label))
    order = score_order(gt, dt)
    d_key = (d_label * gt.images + dt.image)[order]
    grouped = np.argsort(d_key, kind="stable")
    rank = places_in_runs(d_key[grouped])
    near = rank < max_detections
    rows, d_key, rank = order[grouped][near], d_key[grouped][near], rank[near]
    g_key = g_label * gt.images + gt.image
    g_order = np.argsort(g_key, kind="stable")
    boxes = np.ascontiguousarray(dt.xywh[rows], dtype=np.float64)
    matched, taken = np.zeros(len(rows), np.uint64), np.full(len(rows), -1, np.int64)
    ignored = _outside_bits(boxes[:, 2] * boxes[:, 3], areas, len(thresholds))
    kernels.match_groups(
        group_rows(d_key, g_key[g_order]),
        boxes,
        np.ascontiguousarray(gt.xywh[g_order], dtype=np.float64),
        gt.area[g_order].astype(np.float64),
        gt.crowd[g_order],
        (gt.crowd | gt.difficult)[g_order],
        gt.ids[g_order] != 0,
        thresholds,
        areas,
        matched,
        ignored,
        taken,
    )
    taken[taken >= 0] = g_order[taken[taken >= 0]]
    place = np.empty(len(dt), np.int64)
    place[order] = np.arange(len(dt))
    by_score = np.lexsort((place[rows], d_label[rows]))
    rows = rows[by_score]
    return Matches(
        row=rows,
        image=dt.image[rows],
        label=dt.label[rows],
        score=dt.score[rows],
        rank=rank[by_score],
        matched=matched[by_score],
        ignored=ignored[by_score],
        taken=taken[by_score],
        starts=np.searchsorted(d_label[rows], np.arange(len(gt.classes) + 1)),
        thresholds=thresholds,
        areas=areas,
    )


def _outside_bits(area: np.ndarray, areas: np.ndarray, number: int) -> np.ndarray:
    """(D,) uint64 with all bits of the area ranges that a detection's own area lies outside of."""
    bits = np.zeros(len(area), np.uint64)
    for a, (low, high) in enumerate(areas):
        part = np.uint64(((1 << number) - 1) << (a * number))
        bits[(area < low) | (area > high)] |= part
    return bits


def positives(gt: GroundTruth, areas: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(K, A) int64: objects to be found of each class in each area range; weights (images,) counts images again."""
    counts = np.zeros((len(gt.classes), len(areas)), np.int64)
    wanted = ~(gt.crowd | gt.difficult)
    for a, (low, high) in enumerate(areas):
        keep = wanted & (gt.area >= low) & (gt.area <= high)
        weight = None if weights is None else weights[gt.image[keep]]
        counts[:, a] = np.rint(np.bincount(gt.label[keep], weight, minlength=len(gt.classes)))
    return counts
