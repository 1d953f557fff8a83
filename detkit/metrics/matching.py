"""Sorting, grouping and matching of detections with objects: what every metric but PASCAL's starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.ops.compiled import run_chunks, thread_count
from detkit.ops.inputs import behaved
from detkit.ops.order import descending
from detkit.tables import GroundTruth, Results

ALL_AREAS = np.array([[0.0, 1e5**2]])
_THREADED = 50_000  # detections above which starting threads costs less than it saves


@dataclass(slots=True, frozen=True, eq=False)
class Matches:
    """Detections after matching, sorted by class, then best first (equal scores: by image, then in file order).

    Attributes:
        row: (D,) int64, the detection's row in its Results.
        image: (D,) int64.
        label: (D,) int64.
        score: (D,) float64.
        rank: (D,) int64, its place among the scores of its image and class.
        matched: (D,) uint64, bit ``a * thresholds + t``.
        ignored: (D,) uint64, the same bits.
        taken: (D,) int64, row of the object taken at the first threshold of the first area range, or -1.
        starts: (K + 1,) int64, where each class starts.
        thresholds: (T,) IoU.
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

    @property
    def true(self) -> np.ndarray:
        """(D,) bool: true positives at the first threshold of the first area range."""
        return np.asarray(self.matched & ~self.ignored & np.uint64(1), dtype=bool)

    @property
    def counted(self) -> np.ndarray:
        """(D,) bool: neither on an ignored object nor outside the first area range."""
        return np.asarray(self.ignored & np.uint64(1) == 0)


def check_tables(gt: GroundTruth, dt: Results) -> None:
    """Raises ValueError where indices, labels or numbers of the two tables make no sense together."""
    if not (len(dt.image) == len(dt.label) == len(dt.xywh) == len(dt.score)):
        raise ValueError("Results: image, label, xywh and score must have the same length")
    for owner, table in (("GroundTruth", gt), ("Results", dt)):
        for name, limit in (("image", gt.images), ("label", len(gt.classes))):
            value = getattr(table, name)
            if len(value) and (value.min() < 0 or value.max() >= limit):
                raise ValueError(f"{owner}: {name} must lie in 0..{limit - 1}, got {value.min()}..{value.max()}")
    # A sum is one quick pass; only one that is not finite asks for the numbers themselves.
    if any(not np.isfinite(v.sum()) and not np.isfinite(v).all() for v in (dt.score, dt.xywh)):
        raise ValueError("Results: scores and boxes must be finite numbers")


@dataclass(slots=True, frozen=True, eq=False)
class Groups:
    """Detections and objects that may meet: those of one image and class.

    Attributes:
        rows: (D,) rows of the detections, by class, then best first.
        starts: (K + 1,) where each class starts in ``rows``.
        rank: (D,) place of each of ``rows`` among those of its image and class, best first from 0.
        g_rows: (G,) rows of the objects, by class, then image.
        members: (D,) rows of the detections, by class, then image, then best first.
        groups: (S, 4) ``d0, d1, g0, g1``: ``members[d0:d1]`` and ``g_rows[g0:g1]`` may meet.
    """

    rows: np.ndarray
    starts: np.ndarray
    rank: np.ndarray
    g_rows: np.ndarray
    members: np.ndarray
    groups: np.ndarray


def group_by_class(gt: GroundTruth, dt: Results, limit: int | None = None, by_class: bool = True) -> Groups:
    """Sorts detections (equal scores: by the rank of their image, then in file order) and groups them with objects.

    Args:
        gt: The labels.
        dt: The detections.
        limit: Only so many of each image and class stay, the best; None: all.
        by_class: False puts all in one class.
    """
    classes, label, g_label = len(gt.classes), dt.label, gt.label
    if not by_class:
        classes, label, g_label = 1, np.zeros_like(label), np.zeros_like(g_label)
    image = dt.image if gt.rank is None else gt.rank[dt.image]
    if (np.diff(image) >= 0).all():  # as files hold them
        rows = descending(dt.score)
    else:
        by_image, _ = _sorted(image)
        rows = by_image[descending(dt.score[by_image])]
    rows = rows[_sorted(label[rows])[0]]
    in_group, keys = _sorted((label * gt.images + dt.image)[rows])
    g_rows, g_keys = _sorted(g_label * gt.images + gt.image)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(first, append=len(keys))
    rank = np.empty(len(rows), np.int64)
    rank[in_group] = np.arange(len(rows)) - np.repeat(first, counts)
    members, keys = rows[in_group], keys[first]
    if limit is not None and counts.max(initial=0) > limit:
        members, near = members[rank[in_group] < limit], rank < limit
        rows, rank, counts = rows[near], rank[near], counts.clip(max=limit)
        first = np.cumsum(counts) - counts
    start, stop = (np.searchsorted(g_keys, keys, side=side) for side in ("left", "right"))
    groups = np.stack([first, first + counts, start, stop], axis=1)[stop > start]
    # By image: files keep an image's boxes together, so matching reads memory in order.
    groups = groups[np.argsort(gt.image[g_rows[groups[:, 2]]], kind="stable")]
    starts = np.concatenate(([0], np.cumsum(np.bincount(label[rows], minlength=classes))))
    return Groups(rows, starts, rank, g_rows, members, groups)


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stable order of whole numbers from 0 on, and they in it; sorting packed keys beats argsort several times."""
    bits = len(keys).bit_length()
    packed = np.sort(keys << bits | np.arange(len(keys)))
    return packed & ((1 << bits) - 1), packed >> bits


def _plain(values: np.ndarray, dtype: type) -> np.ndarray:
    """As kernels take it: they are compiled again for any other type or layout."""
    return behaved(np.asarray(values, dtype))


def threads_for(detections: int) -> int:
    """Threads that work on so many detections should share; small tables do not pay for any."""
    return thread_count() if detections >= _THREADED else 1


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

    Objects that are crowd, difficult or outside an area range are ignored: a detection on one counts neither way, and
    a detection that finds nothing and lies outside the range itself is dropped too. A crowd takes any number of
    detections by intersection / detection area.

    Args:
        gt: The labels.
        dt: The detections.
        thresholds: (T,) IoU.
        areas: (A, 2) square pixels.
        max_detections: Of each image and class, the best ones.
        by_class: False lets any class match any class.

    Raises:
        ValueError: Tables or thresholds that make no sense.
    """
    from detkit.metrics import kernels

    check_tables(gt, dt)
    thresholds, areas = np.sort(np.asarray(thresholds, float)), np.asarray(areas, float).reshape(-1, 2)
    if not len(thresholds) or thresholds[0] <= 0 or thresholds[-1] > 1 or len(thresholds) * len(areas) > 64:
        raise ValueError("IoU thresholds must lie in (0, 1], at most 64 pairs of threshold and area range")
    grouped = group_by_class(gt, dt, max_detections, by_class)
    rows, g_rows = grouped.rows, grouped.g_rows
    boxes = _plain(dt.xywh, np.float64)
    matched, taken = np.zeros(len(dt), np.uint64), np.full(len(dt), -1, np.int64)
    ignored = _outside(boxes, areas, len(thresholds))
    objects = (
        _plain(gt.xywh[g_rows], np.float64),
        _plain(gt.area[g_rows], np.float64),
        gt.crowd[g_rows],
        ~gt.wanted[g_rows],
    )
    rest = ((grouped.members, boxes), objects, thresholds, areas, (matched, ignored, taken))
    groups, threads = grouped.groups, threads_for(len(dt))
    run_chunks(lambda start, stop: kernels.match_groups(groups[start:stop], *rest), len(groups), threads)
    on_object = np.flatnonzero(taken >= 0)
    taken[on_object] = g_rows[taken[on_object]]
    return Matches(
        row=rows,
        image=dt.image[rows],
        label=dt.label[rows],
        score=dt.score[rows],
        rank=grouped.rank,
        matched=matched[rows],
        ignored=ignored[rows],
        taken=taken[rows],
        starts=grouped.starts,
        thresholds=thresholds,
    )


def nearest_objects(gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
    """The object of highest IoU of each detection, whoever has taken it.

    Args:
        gt: The labels.
        dt: The detections.

    Returns:
        (2, D) float64, the IoU with objects of the detection's own class and of the other classes, and (2, D) int64,
        those objects' rows, -1 where nothing overlaps.
    """
    from detkit.metrics import kernels

    grouped = group_by_class(gt, dt, by_class=False)
    members, g_rows = grouped.members, grouped.g_rows
    detections, objects = (
        (_plain(table.xywh[rows], np.float64), table.label[rows]) for table, rows in ((dt, members), (gt, g_rows))
    )
    best, iou = np.full((2, len(dt)), -1, np.int64), np.zeros((2, len(dt)))
    kernels.best_objects(grouped.groups, detections, objects, best, iou)
    back = np.argsort(members)
    return iou[:, back], np.append(g_rows, -1)[best[:, back]]


def _outside(boxes: np.ndarray, areas: np.ndarray, number: int) -> np.ndarray:
    """(D,) uint64: all ``number`` bits of each area range that a detection itself is outside of."""
    bits, area = np.zeros(len(boxes), np.uint64), boxes[:, 2] * boxes[:, 3]
    for a, (low, high) in enumerate(areas):
        bits |= np.where((area < low) | (area > high), np.uint64(((1 << number) - 1) << (a * number)), np.uint64(0))
    return bits


def positives(gt: GroundTruth, areas: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """How many objects are to be found.

    Args:
        gt: The labels.
        areas: (A, 2) square pixels.
        weights: (images,) how many times each image counts; None: once.

    Returns:
        (K, A) int64, of each class in each area range.
    """
    counts = np.zeros((len(gt.classes), len(areas)), np.int64)
    for a, (low, high) in enumerate(areas):
        keep = gt.wanted & (gt.area >= low) & (gt.area <= high)
        weight = None if weights is None else weights[gt.image[keep]]
        counts[:, a] = np.rint(np.bincount(gt.label[keep], weight, minlength=len(gt.classes)))
    return counts
