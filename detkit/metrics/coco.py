"""COCO's box metrics, bit-equal to pycocotools: AP over IoU 0.50:0.95, by size, and average recall.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the evaluation server's code (pycocotools).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detkit.metrics.matching import Matches, in_class_chunks, match, positives
from detkit.metrics.tables import GroundTruth, Results

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
_RANGES = np.array(list(AREAS.values()))
_AREA_NAMES = list(AREAS)


class Metric(NamedTuple):
    """What one number averages: precision or recall; one IoU threshold or all (None); area range; max detections."""

    recall: bool
    iou: float | None
    area: str
    limit: int


def metric_table(max_detections: Sequence[int] = (1, 10, 100)) -> dict[str, Metric]:
    """COCO's numbers by name, in pycocotools' order (twelve for three limits)."""
    limits = sorted(max_detections)
    most = limits[-1]
    table = {
        "AP": Metric(False, None, "all", most),
        "AP50": Metric(False, 0.5, "all", most),
        "AP75": Metric(False, 0.75, "all", most),
        "APs": Metric(False, None, "small", most),
        "APm": Metric(False, None, "medium", most),
        "APl": Metric(False, None, "large", most),
    }
    table |= {f"AR{limit}": Metric(True, None, "all", limit) for limit in limits}
    return table | {f"AR{area[0]}": Metric(True, None, area, most) for area in ("small", "medium", "large")}


def limits_up_to(most: int) -> tuple[int, ...]:
    """COCO's limits of detections an image and class, the last one ``most`` instead of 100."""
    return (*(limit for limit in (1, 10) if limit < most), most)


def iou_name(iou: float) -> str:
    """The name of AP at one IoU threshold: AP50 for 0.5, AP62.5 for 0.625."""
    return f"AP{100 * iou:.6g}"


@dataclass(slots=True, frozen=True, eq=False)
class CocoResult:
    """COCO's numbers of one set of detections.

    metrics: the twelve numbers by name (AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl), -1 where there is no
    object to find, as pycocotools prints them; per_class: AP, AP50, AP75, APs, APm, APl and AR at most detections of
    each class (NaN where there is none) and objects, the number to be found. precision (T, R, K, A) at most detections
    and recall (T, K, A, M) float64 over thresholds, recall levels, classes, area ranges and limits; -1 where undefined.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    max_detections: tuple[int, ...]


def evaluate(
    gt: GroundTruth, dt: Results, *, max_detections: Sequence[int] = (1, 10, 100), iou: float | None = None
) -> CocoResult:
    """COCO's twelve numbers and the same per class.

    Difficult objects are ignored with ordinary IoU, one detection each; crowds by COCO's crowd rule (intersection /
    detection area, any number of detections). ``iou`` adds AP at that threshold (0.6 gives AP60) to the numbers.
    Raises ValueError for tables that do not fit together.
    """
    limits = tuple(sorted(max_detections))
    names = metric_table(limits)
    thresholds = THRESHOLDS
    if iou is not None:
        names[iou_name(iou)] = Metric(False, iou, "all", limits[-1])
        thresholds = np.union1d(THRESHOLDS, [iou])
    matches = match(gt, dt, thresholds=thresholds, areas=_RANGES, max_detections=limits[-1])
    counts = positives(gt, _RANGES)
    precision, recall = accumulate(matches, counts, limits)
    tables = {name: _select(precision, recall, thresholds, metric, limits) for name, metric in names.items()}
    columns = {n: _class_means(table) for n, table in tables.items() if _per_class(n, limits[-1])}
    per_class = {
        name: {n: column[k] for n, column in columns.items()} | {"objects": int(counts[k, 0])}
        for k, name in enumerate(gt.classes)
    }
    metrics = {name: _mean(table, -1.0) for name, table in tables.items()}
    return CocoResult(metrics, per_class, precision, recall, thresholds, limits)


def _per_class(name: str, limit: int) -> bool:
    return name.startswith("AP") or name == f"AR{limit}"


def _select(
    precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray, metric: Metric, limits: tuple[int, ...]
) -> np.ndarray:
    """The entries that a number averages, the last axis being the class."""
    area = _AREA_NAMES.index(metric.area)
    table = recall[..., area, limits.index(metric.limit)] if metric.recall else precision[..., area]
    wanted = np.isin(thresholds, THRESHOLDS) if metric.iou is None else thresholds == metric.iou
    return table[wanted]


def _class_means(table: np.ndarray) -> list[float]:
    """The mean of each class (the last axis), NaN where it has no object: there all entries are -1."""
    rows = np.moveaxis(table, -1, 0).reshape(table.shape[-1], int(np.prod(table.shape[:-1])))
    means = rows.mean(axis=1)
    means[rows[:, 0] < 0] = np.nan
    return list(means.tolist())


def _mean(table: np.ndarray, nothing: float) -> float:
    valid = table[table > -1]
    return float(np.mean(valid)) if valid.size else nothing


def accumulate(
    matches: Matches, counts: np.ndarray, limits: Sequence[int], weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision (T, R, K, A) at the last limit and recall (T, K, A, M), -1 where there is no object.

    counts (K, A) int64: objects to be found; limits, ascending: detections an image and class; weights (images,)
    int64: how many times each image counts (default once), exactly as if the data held that many copies of it.
    """
    from detkit.metrics import kernels

    classes, ranges = counts.shape
    number = len(matches.thresholds)
    precision = np.full((ranges, number, len(RECALLS), classes), -1.0)
    recall = np.full((ranges, number, classes, len(limits)), -1.0)
    columns = (matches.starts, matches.matched, matches.ignored, matches.rank, matches.image)
    weights = np.empty(0, np.int64) if weights is None else weights
    fixed = (weights, counts, number, np.array(limits), RECALLS, precision, recall)
    in_class_chunks(lambda first, last: kernels.accumulate(first, last, *columns, *fixed), matches.starts)
    return np.moveaxis(precision, 0, -1), np.moveaxis(recall, 0, 2)


def resampler(
    gt: GroundTruth, dt: Results, metric: str = "AP50", iou: float | None = None, max_detections: int = 100
) -> Callable[[np.ndarray], float]:
    """A function from image weights (images,) int64 to the metric on that many copies of each image.

    Matching is done once, here. ``iou`` names a threshold for metrics like AP60. NaN where there is no object.
    Raises ValueError for an unknown metric.
    """
    table = metric_table(limits_up_to(max_detections))
    if iou is not None:
        table[iou_name(iou)] = Metric(False, iou, "all", max_detections)
    if metric not in table:
        raise ValueError(f"no COCO metric {metric!r}; there are {', '.join(table)}")
    wanted = table[metric]
    areas = np.array([AREAS[wanted.area]])
    thresholds = THRESHOLDS if wanted.iou is None else np.array([wanted.iou])
    matches = match(gt, dt, thresholds=thresholds, areas=areas, max_detections=max_detections)

    def value(weights: np.ndarray) -> float:
        precision, recall = accumulate(matches, positives(gt, areas, weights), [wanted.limit], weights)
        return _mean(recall if wanted.recall else precision, np.nan)

    return value
