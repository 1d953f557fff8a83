"""COCO's box metrics, bit-equal to pycocotools: AP over IoU 0.50:0.95, by size, and average recall.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the evaluation server's code (pycocotools).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from detkit.interfaces import Metric
from detkit.metrics.matching import Matches, match, positives, threads_for
from detkit.ops.compiled import run_chunks
from detkit.tables import Evaluation, GroundTruth, Results

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
_RANGES = np.array(list(AREAS.values()))


class _Number(NamedTuple):
    """What one number averages: precision or recall; one IoU threshold or all (None); area range; max detections."""

    recall: bool
    iou: float | None
    area: str
    limit: int


def limits_up_to(most: int) -> tuple[int, ...]:
    """COCO's limits of detections per image and class, the last one ``most`` instead of 100."""
    return (*(limit for limit in (1, 10) if limit < most), most)


def metric_table(max_detections: int = 100, iou: float | None = None) -> dict[str, _Number]:
    """COCO's numbers by name, in pycocotools' order (twelve for 100 detections); AP at ``iou`` comes last."""
    table = {
        name: _Number(False, threshold, "all", max_detections)
        for name, threshold in (("AP", None), ("AP50", 0.5), ("AP75", 0.75))
    }
    sizes = [area for area in AREAS if area != "all"]
    table |= {f"AP{area[0]}": _Number(False, None, area, max_detections) for area in sizes}
    table |= {f"AR{limit}": _Number(True, None, "all", limit) for limit in limits_up_to(max_detections)}
    table |= {f"AR{area[0]}": _Number(True, None, area, max_detections) for area in sizes}
    return table if iou is None else table | {iou_name(iou): _Number(False, iou, "all", max_detections)}


def iou_name(iou: float) -> str:
    """The name of AP at one IoU threshold: AP50 for 0.5, AP62.5 for 0.625."""
    return f"AP{100 * iou:.6g}"


@dataclass(slots=True, frozen=True, eq=False)
class CocoResult(Evaluation):
    """COCO's numbers of one set of detections.

    ``metrics`` are the twelve numbers by name (AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl), -1 where there is
    no object to find, as pycocotools prints them; ``per_class`` has AP, AP50, AP75, APs, APm, APl and AR at most
    detections of each class (NaN where there is none).

    Attributes:
        precision: (T, R, K, A) float64 at most detections, over thresholds, recall levels, classes and area ranges; -1
            where undefined.
        recall: (T, K, A, M) float64, M over ``limits``; -1 where undefined.
        thresholds: (T,) IoU.
        limits: Detections per image and class, ascending.
    """

    precision: np.ndarray = field(kw_only=True)
    recall: np.ndarray = field(kw_only=True)
    thresholds: np.ndarray = field(kw_only=True)
    limits: tuple[int, ...] = field(kw_only=True)


class Coco(Metric):
    """COCO's box metrics.

    Difficult objects are ignored with ordinary IoU, one detection each; crowds by COCO's crowd rule (intersection /
    detection area, any number of detections). An IoU adds AP at that threshold (0.6 gives AP60) to the numbers.
    """

    scores: ClassVar[tuple[str, ...]] = ("AP", "AP50")
    rules = (
        "COCO (IoU 0.50:0.95, 101 recall points, {limit} detections per image and class; crowds and difficult ignored)"
    )
    takes_max_detections = True

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> CocoResult:
        """COCO's twelve numbers and the same per class."""
        limits = limits_up_to(max_detections)
        thresholds = THRESHOLDS if iou is None else np.union1d(THRESHOLDS, [iou])
        matches = match(gt, dt, thresholds=thresholds, areas=_RANGES, max_detections=max_detections)
        counts = positives(gt, _RANGES)
        precision, recall = accumulate(matches, counts, limits)
        tables = {}  # the entries that each number averages, the last axis being the class
        for name, number in metric_table(max_detections, iou).items():
            area = list(AREAS).index(number.area)
            table = recall[..., area, limits.index(number.limit)] if number.recall else precision[..., area]
            tables[name] = table[np.isin(thresholds, THRESHOLDS) if number.iou is None else thresholds == number.iou]
        shown = [name for name in tables if name.startswith("AP") or name == f"AR{max_detections}"]
        columns = {name: _class_means(tables[name]) for name in shown}
        per_class = {
            name: {n: column[k] for n, column in columns.items()} | {"objects": int(counts[k, 0])}
            for k, name in enumerate(gt.classes)
        }
        order = _class_order(gt)
        metrics = {name: _mean(table[..., order], -1.0) for name, table in tables.items()}
        return CocoResult(metrics, per_class, precision=precision, recall=recall, thresholds=thresholds, limits=limits)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "AP50", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to a number on that many copies of each image; NaN without an object."""
        table = metric_table(max_detections, iou)
        if score not in table:
            raise ValueError(f"no COCO metric {score!r}; there are {', '.join(table)}")
        wanted = table[score]
        areas = np.array([AREAS[wanted.area]])
        thresholds = THRESHOLDS if wanted.iou is None else np.array([wanted.iou])
        matches = match(gt, dt, thresholds=thresholds, areas=areas, max_detections=max_detections)

        order = _class_order(gt)

        def value(weights: np.ndarray) -> float:
            precision, recall = accumulate(matches, positives(gt, areas, weights), [wanted.limit], weights)
            return _mean(recall[:, order] if wanted.recall else precision[:, :, order], np.nan)

        return value


def _class_means(table: np.ndarray) -> list[float]:
    """The mean of each class (the last axis), NaN where it has no object: there all entries are -1."""
    means = table.mean(axis=tuple(range(table.ndim - 1)))
    return list(np.where(means < 0, np.nan, means).tolist())


def _class_order(gt: GroundTruth) -> np.ndarray:
    """Labels in the order in which pycocotools sums: floats added in another one differ in the last bit."""
    return np.arange(len(gt.classes)) if gt.class_rank is None else np.argsort(gt.class_rank)


def _mean(table: np.ndarray, nothing: float) -> float:
    valid = table[table > -1]
    return float(np.mean(valid)) if valid.size else nothing


def accumulate(
    matches: Matches, counts: np.ndarray, limits: Sequence[int], weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision at the last limit and recall, -1 where there is no object.

    Args:
        matches: Detections after matching.
        counts: (K, A) int64, objects to be found.
        limits: Detections per image and class, ascending.
        weights: (images,) int64, how many times each image counts (default once), exactly as if the data held that
            many copies of it.

    Returns:
        (T, R, K, A) and (T, K, A, M) float64.
    """
    from detkit.metrics import kernels

    classes, ranges = counts.shape
    number = len(matches.thresholds)
    precision = np.full((ranges, number, len(RECALLS), classes), -1.0)
    recall = np.full((ranges, number, classes, len(limits)), -1.0)
    columns = (matches.starts, matches.matched, matches.ignored, matches.rank, matches.image)
    if weights is None:
        weights = np.ones(matches.image.max(initial=-1) + 1, np.int64)
    fixed = (columns, weights, counts, number, (np.array(limits), RECALLS), precision, recall)
    threads = min(threads_for(len(matches.row)), max(classes, 1))
    run_chunks(lambda first, last: kernels.accumulate_classes(first, last, *fixed), classes, threads)
    return np.moveaxis(precision, 0, -1), np.moveaxis(recall, 0, 2)


def pycocotools_metrics(gt: GroundTruth, dt: Results) -> dict[str, float]:
    """COCO's twelve numbers as pycocotools computes them.

    It has no difficult objects: here they are ignored, as detkit does it, before its matching.

    Args:
        gt: The labels.
        dt: The detections.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):  # type: ignore[misc]
        def _prepare(self) -> None:
            super()._prepare()
            for objects in self._gts.values():
                for one in objects:
                    one["ignore"] = one["ignore"] or one["difficult"]

    ids = np.arange(gt.images) if gt.rank is None else gt.rank
    kinds = np.arange(len(gt.classes)) if gt.class_rank is None else gt.class_rank
    names = {"area": gt.area, "iscrowd": gt.crowd.astype(int), "difficult": gt.difficult, "id": gt.ids}
    found = {"score": dt.score, "area": dt.xywh[:, 2] * dt.xywh[:, 3], "id": np.arange(1, len(dt) + 1)}
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for table, columns in ((gt, names), (dt, found)):
            columns = {"image_id": ids[table.image], "category_id": kinds[table.label], "bbox": table.xywh, **columns}
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            side = COCO()
            side.dataset = {
                "images": [{"id": i} for i in range(gt.images)],
                "categories": [{"id": k} for k in range(len(gt.classes))],
                "annotations": [{"iscrowd": 0, **dict(zip(columns, row, strict=True))} for row in rows],
            }
            side.createIndex()
            sides.append(side)
        evaluator = Evaluator(*sides, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(metric_table(), evaluator.stats.tolist(), strict=True))
