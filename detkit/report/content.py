"""Everything that an evaluation says, as one dict of plain values: what ``--json`` prints and the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.metrics import evaluate, find_metric
from detkit.metrics.bootstrap import interval
from detkit.metrics.calibration import calibration
from detkit.metrics.coco import AREAS, iou_name
from detkit.metrics.confusion import confusion_matrix
from detkit.metrics.curves import Curve, Curves, best_threshold, curves
from detkit.metrics.errors import KINDS, MISSED, error_breakdown
from detkit.metrics.matching import positives
from detkit.report.costs import Costs, costs

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.tables import GroundTruth, Results

WORST = 24  # images that are listed
_NAMED = 8  # errors of an image that are listed


@dataclass(frozen=True, slots=True)
class Settings:
    """How to judge: protocol, of ``detkit.metrics.METRICS``; iou, the matching threshold (None: the protocol's own);
    max_detections of an image and class; bootstrap, the number of draws (0: no intervals); seed of them."""

    protocol: str = "coco"
    iou: float | None = None
    max_detections: int = 100
    bootstrap: int = 0
    seed: int = 0

    @property
    def match_iou(self) -> float:
        """The one threshold of curves, confusion, calibration and errors."""
        return self.iou or 0.5

    def words(self) -> dict[str, str]:
        """The rules under which the numbers were made, as sentences."""
        return {
            "AP": "mean over IoU 0.50, 0.55 ... 0.95 and classes of precision at 101 levels of recall (COCO)",
            "matching": "best score first, each object once; IoU at least the threshold",
            "limit": f"{self.max_detections} detections an image and class, the best ones; all of them for VOC",
            "sizes": "small below 32 x 32 pixels, medium up to 96 x 96, large above, by the annotation's area",
            "crowd": "a detection inside a crowd region counts neither way (intersection / detection area)",
            "difficult": "difficult objects are not asked for; a detection on one counts neither way",
            "one threshold": f"curves, confusion, calibration, errors and costs at IoU {self.match_iou:g}",
            "scope": "every image is taken as labelled for every class (no federated labels as in LVIS)",
        }


def numbers(gt: GroundTruth, dt: Results, settings: Settings) -> dict[str, Any]:
    """protocol, metrics, per_class, intervals (if asked for), best_threshold and settings: what is quick to find."""
    how = {"iou": settings.iou, "max_detections": settings.max_detections}
    result = evaluate(gt, dt, settings.protocol, **how).to_dict()  # type: ignore[arg-type]
    if settings.bootstrap:
        result["intervals"] = _intervals(gt, dt, settings)
    threshold, f1 = best_threshold(gt, dt, iou=settings.match_iou, max_detections=settings.max_detections)
    result["best_threshold"] = {"score": threshold, "f1": f1}
    result["settings"] = {
        "match_iou": settings.match_iou,
        "max_detections": settings.max_detections,
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
        "rules": settings.words(),
    }
    return result


def content(
    annotations: Annotations,
    dt: Results,
    settings: Settings,
    *,
    about: Mapping[str, Any] | None = None,
    timings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """protocol, metrics, per_class, best_threshold and, below them, all that the report shows.

    about: facts of the model; timings: as ``detkit.engine.evaluator.Timings``.
    """
    gt = annotations.ground_truth()
    iou, most = settings.match_iou, settings.max_detections
    result = numbers(gt, dt, settings)
    shape = curves(gt, dt, iou=iou, max_detections=most)
    threshold = result["best_threshold"]["score"]
    wanted = ~(gt.crowd | gt.difficult)
    result["counts"] = {
        "images": gt.images,
        "objects": int(wanted.sum()),
        "ignored": int((~wanted).sum()),
        "detections": len(dt),
    }
    result["protocols"] = _protocols(gt, dt, settings, result)
    coco = result["protocols"]["coco"]
    result["by_size"] = {
        name: {"objects": int(n), "AP": coco[f"AP{name[0]}"], "AR": coco[f"AR{name[0]}"]}
        for name, n in zip(AREAS, positives(gt, np.array(list(AREAS.values()))).sum(axis=0), strict=True)
        if name != "all"
    }
    result["curves"] = _curves(shape)
    confusion = confusion_matrix(gt, dt, conf=threshold, iou=iou, max_detections=most)
    result["confusion"] = {
        "threshold": threshold,
        "classes": [*confusion.classes, "background"],
        "counts": confusion.counts.tolist(),
    }
    result["calibration"] = {
        name: _calibration(gt, dt, iou, conf, most) for name, conf in (("all", 0.0), ("shown", threshold))
    }
    errors = error_breakdown(gt, dt, iou=iou, background=min(0.1, iou / 2), max_detections=most)
    result["errors"] = {
        "AP": errors.ap,
        "kinds": {
            name: {"count": errors.counts[name], "gain": errors.gains[name], "meaning": meaning}
            for name, meaning in (KINDS | {"missed": MISSED}).items()
        },
        "false_positives": errors.false_positives,
        "false_negatives": errors.false_negatives,
    }
    kinds = dict(zip(errors.row.tolist(), (list(KINDS)[k] for k in errors.kind), strict=True))
    dear = costs(gt, dt, iou=iou, max_detections=most)
    result["worst"] = _worst(annotations, gt, dt, dear, kinds, threshold)
    result["examples"] = _examples(annotations, gt, dt, dear, kinds)
    if about:
        result["model"] = dict(about)
    if timings:
        result["timings"] = latency(timings)
    return result


def _protocols(gt: GroundTruth, dt: Results, settings: Settings, done: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of the protocol that was asked for, then of COCO and of both years of PASCAL."""
    table = {settings.protocol: done["metrics"]}
    for name in ("coco", "voc2007", "voc2010"):
        if name != settings.protocol:
            table[name] = evaluate(gt, dt, name, iou=settings.iou, max_detections=settings.max_detections).metrics
    return table


def _intervals(gt: GroundTruth, dt: Results, settings: Settings) -> dict[str, tuple[float, float]]:
    names = find_metric(settings.protocol).scores
    if settings.iou is not None:
        names = tuple(dict.fromkeys([*names, iou_name(settings.iou)]))
    return {
        name: interval(
            gt,
            dt,
            name,
            samples=settings.bootstrap,
            seed=settings.seed,
            protocol=settings.protocol,
            iou=settings.iou,
            max_detections=settings.max_detections,
        )
        for name in names
    }


def _curves(shape: Curves) -> dict[str, Any]:
    per_class = {name: _thinned(curve) for name, curve in shape.per_class.items() if curve.objects}
    return {"overall": _thinned(shape.overall), "per_class": per_class}


def _thinned(curve: Curve) -> dict[str, Any]:
    """At most some 200 points: those where recall or the score passes a hundredth, and the best one."""
    threshold, f1 = curve.best()
    points = np.zeros(0, np.int64)
    if len(curve.score):
        levels = np.linspace(0, 1, 101)
        by_recall = np.searchsorted(curve.recall, levels * curve.recall[-1])
        by_score = np.searchsorted(-curve.score, -levels, side="right") - 1
        points = np.unique(np.concatenate([by_recall, by_score, [int(np.argmax(curve.f1))]]))
        points = points[(points >= 0) & (points < len(curve.score))]
    names = ("score", "precision", "recall", "f1")
    columns = {name: np.round(getattr(curve, name)[points], 5).tolist() for name in names}
    return {"objects": curve.objects, "best": {"score": threshold, "f1": f1}, **columns}


def _calibration(gt: GroundTruth, dt: Results, iou: float, conf: float, most: int) -> dict[str, Any]:
    table = calibration(gt, dt, iou=iou, conf=conf, max_detections=most)
    columns = {name: getattr(table, name).tolist() for name in ("edges", "count", "score", "precision")}
    return {"conf": conf, "error": table.error, **columns}


def _worst(
    annotations: Annotations, gt: GroundTruth, dt: Results, dear: Costs, kinds: Mapping[int, str], threshold: float
) -> list[dict[str, Any]]:
    """The images whose false positives at this threshold and missed objects cost most, dearest first."""
    false = np.flatnonzero((dear.false_positive > 0) & (dt.score >= threshold))
    wanted = ~(gt.crowd | gt.difficult)
    missed = np.flatnonzero(wanted & ~(dear.score >= threshold))
    parts = ((dt.image[false], dear.false_positive[false]), (gt.image[missed], dear.object[missed]))
    cost = np.sum([np.bincount(image, own, minlength=gt.images) for image, own in parts], axis=0)
    worst = np.argsort(-cost, kind="stable")[:WORST]
    pictures = []
    for i in worst[cost[worst] > 0]:
        wrong = _dearest(false[dt.image[false] == i], dear.false_positive)
        gone = _dearest(missed[gt.image[missed] == i], dear.object)
        pictures.append(
            {
                "image": int(i),
                "file": annotations.files[i],
                "cost": float(cost[i]),
                "false_positives": [_detection(gt, dt, row, dear, kinds) for row in wrong],
                "missed": [_object(gt, row, dear) for row in gone],
            }
        )
    return pictures


def _examples(
    annotations: Annotations, gt: GroundTruth, dt: Results, dear: Costs, kinds: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """Of each class the surest right detection, the dearest false positive and the dearest missed object."""
    table: dict[str, dict[str, Any]] = {}
    wanted = ~(gt.crowd | gt.difficult)
    for k, name in enumerate(gt.classes):
        of_class = dt.label == k
        found = {}
        right = np.flatnonzero(of_class & dear.true)
        if len(right):
            found["right"] = _detection(gt, dt, right[np.argmax(dt.score[right])], dear, kinds)
        wrong = np.flatnonzero(of_class & (dear.false_positive > 0))
        if len(wrong):
            found["false_positive"] = _detection(gt, dt, wrong[np.argmax(dear.false_positive[wrong])], dear, kinds)
        missed = np.flatnonzero((gt.label == k) & wanted & np.isnan(dear.score))
        if len(missed):  # they cost the same: the largest is the one that should have been seen
            found["missed"] = _object(gt, missed[np.argmax(gt.area[missed])], dear)
        for one in found.values():
            one["file"] = annotations.files[one["image"]]
        if found:
            table[name] = found
    return table


def _dearest(rows: np.ndarray, cost: np.ndarray) -> Sequence[int]:
    order: list[int] = rows[np.argsort(-cost[rows], kind="stable")].tolist()
    return order[:_NAMED]


def _detection(gt: GroundTruth, dt: Results, row: int, dear: Costs, kinds: Mapping[int, str]) -> dict[str, Any]:
    return {
        "image": int(dt.image[row]),
        "label": gt.classes[dt.label[row]],
        "score": float(dt.score[row]),
        "box": _box(dt.xywh[row]),
        "cost": float(dear.false_positive[row]),
        "kind": kinds.get(int(row), "right"),
    }


def _object(gt: GroundTruth, row: int, dear: Costs) -> dict[str, Any]:
    score = float(dear.score[row])
    return {
        "image": int(gt.image[row]),
        "label": gt.classes[gt.label[row]],
        "found_at": None if np.isnan(score) else score,
        "box": _box(gt.xywh[row]),
        "cost": float(dear.object[row]),
    }


def _box(xywh: np.ndarray) -> list[float]:
    x, y, w, h = xywh.tolist()
    return [round(v, 2) for v in (x, y, x + w, y + h)]


def latency(timings: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds an image, median and 95th percentile, of data, model, post-processing and together; the first of
    several batches is left out (memory is set up in it). ``split`` is False where post-processing is in ``model``."""
    batches = np.array(timings.get("batches") or np.zeros((0, 4)), float)
    whole = {name: timings[name] for name in ("images", "data", "compute") if name in timings}
    if not len(batches):
        return whole
    batches = batches[min(1, len(batches) - 1) :]
    each = 1000 * np.repeat(batches[:, 1:] / batches[:, :1], batches[:, 0].astype(int), axis=0)
    columns = {"data": each[:, 0], "model": each[:, 1], "post": each[:, 2], "total": each.sum(axis=1)}
    spread = {
        name: {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
        for name, values in columns.items()
    }
    return {**whole, "batch": int(batches[:, 0].max()), "split": bool(each[:, 2].any()), "ms": spread}
