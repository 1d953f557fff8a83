"""Everything that an evaluation says: what ``--json`` prints, the terminal and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.metrics import evaluate_results, find_metric
from detkit.metrics.bootstrap import draws
from detkit.metrics.coco import AREAS, iou_name
from detkit.metrics.confusion import confusion_matrix
from detkit.metrics.curves import Curve, calibration, class_curves
from detkit.metrics.errors import KINDS, MISSED, ap_impact, error_breakdown
from detkit.metrics.matching import positives
from detkit.printed import aligned, counted, number
from detkit.tables import class_lines

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.tables import GroundTruth, Maps, Results

Facts = dict[str, Any]  # plain values by name, as JSON holds them
WORST = 24  # images that are listed
_MANY = 100_000  # detections, on which a draw takes a tenth of a second
_NAMED = 8  # errors of an image that are listed


@dataclass(frozen=True, slots=True)
class Settings:
    """How to judge.

    Attributes:
        protocol: Of ``detkit.metrics.METRICS``; None: what fits the answers.
        iou: The matching threshold; None: the protocol's own. COCO adds AP there to its numbers.
        max_detections: Per image and class; None: 100.
        bootstrap: Number of draws; 0: no intervals; None: as many as a page takes.
        seed: Of the draws.
    """

    protocol: str | None = None
    iou: float | None = None
    max_detections: int | None = None
    bootstrap: int | None = None
    seed: int = 0

    @property
    def match_iou(self) -> float:
        """The one threshold of curves, confusion, calibration and errors."""
        return self.iou or 0.5

    @property
    def limit(self) -> int:
        """``max_detections`` in force."""
        return self.max_detections or 100

    def words(self) -> dict[str, str]:
        """The rules under which the numbers were made, as sentences."""
        return {
            "AP": "mean over IoU 0.50, 0.55 ... 0.95 and classes of precision at 101 levels of recall (COCO)",
            "matching": "best score first, each object once; IoU at least the threshold",
            "limit": f"{self.limit} detections per image and class, the best ones; all of them for VOC",
            "sizes": "small below 32 x 32 pixels, medium up to 96 x 96, large above, by the annotation's area",
            "crowd": "a detection inside a crowd region counts neither way (intersection / detection area)",
            "difficult": "difficult objects are not asked for; a detection on one counts neither way",
            "one threshold": f"curves, confusion, calibration, errors and costs at IoU {self.match_iou:g}",
            "scope": "every image is taken as labelled for every class (no federated labels as in LVIS)",
        }

    def matching(self) -> Facts:
        """The arguments of what looks at one threshold."""
        return {"iou": self.match_iou, "max_detections": self.limit}


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation says.

    Attributes:
        facts: protocol, metrics, per_class, intervals (if asked for), best_threshold, counts, settings and, of boxes,
            all that the page shows.
        maps: See ``Results``.
    """

    facts: Facts
    maps: Maps | None = None

    def to_dict(self) -> Facts:
        """The form of ``evaluate --json``."""
        return self.facts

    def lines(self) -> list[str]:
        """The numbers, then one line per class."""
        facts, settings, counts = self.facts, self.facts["settings"], self.facts["counts"]
        metric = find_metric(facts["protocol"])
        images, objects, found = (counted(counts[f"{one}s"], one) for one in ("image", "object", "detection"))
        lines = [
            metric.rules.format(limit=settings["max_detections"], iou=settings["match_iou"]),
            f"{images}, {objects}, {counts['ignored']} ignored, {found}",
            "",
        ]
        width = max(8, *map(len, facts["metrics"]))
        for name, value in facts["metrics"].items():
            low, high = facts.get("intervals", {}).get(name, (np.nan, np.nan))
            between = "" if np.isnan(low) else f"   95% interval {low:.4f} .. {high:.4f}"
            lines.append(f"{name:<{width}} {number(value, 4):>7}{between}")
        for name, theirs in facts.get("check", {}).items():
            gaps = {key: abs(value - facts["metrics"][key]) for key, value in theirs.items()}
            rows = [[key, f"{facts['metrics'][key]:.12f}", f"{value:.12f}"] for key, value in theirs.items()]
            lines += ["", *aligned([["", "detkit", name], *rows]), f"largest difference: {max(gaps.values()):.3g}"]
        if "best_threshold" in facts:
            best = facts["best_threshold"]
            matched = f" (IoU {settings['match_iou']:g})" if metric.takes_iou else ""
            lines += ["", f"best F1 {best['f1']:.3f} at score >= {best['score']:.3f}{matched}"]
        lines += ["", *class_lines(facts["per_class"])]
        return lines


def build_report(
    annotations: Annotations,
    dt: Results,
    settings: Settings,
    *,
    about: Mapping[str, object] | None = None,
    timings: Mapping[str, object] | None = None,
    details: bool = True,
) -> Report:
    """Judges detections.

    Args:
        annotations: The labels.
        dt: The detections.
        settings: How to judge.
        about: Facts of the model.
        timings: As ``detkit.engine.evaluator.Timings``.
        details: Also curves, confusion, calibration, kinds of errors, worst images (where the metric judges boxes).
    """
    gt = annotations.ground_truth()
    protocol, samples = settings.protocol or "coco", settings.bootstrap
    how: Facts = {"iou": settings.iou, "max_detections": settings.limit}
    facts = evaluate_results(gt, dt, protocol, **how).to_dict()
    metric = find_metric(protocol)
    if samples is None:
        samples = 1000 if len(dt) < _MANY else 200
    if samples:
        names = list(metric.scores)
        if settings.iou is not None and iou_name(settings.iou) in facts["metrics"]:
            names.append(iou_name(settings.iou))
        facts["intervals"] = {
            name: draws(gt, dt, name, samples=samples, seed=settings.seed, protocol=protocol, **how).interval()
            for name in dict.fromkeys(names)
        }
    shape = class_curves(gt, dt, **settings.matching())
    threshold, f1 = shape.overall.best()
    if dt.pixels is None and dt.embedding is None and protocol != "pretext":  # whose scores are no decisions
        facts["best_threshold"] = {"score": threshold, "f1": f1}
    facts["counts"] = {
        "images": gt.images,
        "objects": int(gt.wanted.sum()),
        "ignored": int((~gt.wanted).sum()),
        "detections": len(dt),
    }
    facts["settings"] = {
        "match_iou": settings.match_iou,
        "max_detections": settings.limit,
        "bootstrap": samples,
        "seed": settings.seed,
        "rules": {"pixels": metric.rules} if metric.answers == "pixels" else settings.words(),
    }
    if details and metric.answers == "pixels" and dt.pixels is not None:
        facts |= _pixel_details(annotations, dt.pixels)
    if details and metric.answers in ("boxes", "points"):
        others = {
            name: evaluate_results(gt, dt, name, **how) for name in ("coco", "voc2007", "voc2010") if name != protocol
        }
        facts["protocols"] = {protocol: facts["metrics"], **{name: other.metrics for name, other in others.items()}}
        facts["curves"] = {
            "overall": _thinned(shape.overall),
            "per_class": {name: _thinned(curve) for name, curve in shape.per_class.items() if curve.objects},
        }
        facts |= _details(annotations, gt, dt, settings, threshold)
        coco = facts["protocols"]["coco"]
        for name, row in facts["by_size"].items():
            row |= {"AP": coco[f"AP{name[0]}"], "AR": coco[f"AR{name[0]}"]}
    facts |= {"model": dict(about)} if about else {}
    return Report(facts | ({"timings": latency(timings)} if timings else {}), dt.maps)


def _pixel_details(annotations: Annotations, counts: np.ndarray) -> Facts:
    """Which classes are taken for which, and the images with the smallest share of right pixels."""
    labelled, right = counts.sum((1, 2)), counts.diagonal(axis1=1, axis2=2).sum(1)
    share = right / np.maximum(labelled, 1)
    worst = np.argsort(np.where(labelled > 0, share, np.inf), kind="stable")[:WORST].tolist()
    names = (
        [*annotations.classes, "background"] if counts[:, -1].any() or counts[:, :, -1].any() else annotations.classes
    )
    total = counts.sum(0)[: len(names), : len(names)]
    return {
        "confusion": {"threshold": None, "classes": list(names), "counts": total.tolist()},
        "worst": [
            {"image": i, "file": annotations.files[i], "accuracy": float(share[i])} for i in worst if labelled[i]
        ],
    }


def _details(annotations: Annotations, gt: GroundTruth, dt: Results, settings: Settings, threshold: float) -> Facts:
    """Objects by size, confusion, calibration, kinds of errors, worst images and examples."""
    matching, sizes = settings.matching(), positives(gt, np.array(list(AREAS.values()))).sum(axis=0)
    confusion = confusion_matrix(gt, dt, conf=threshold, **matching)
    errors = error_breakdown(gt, dt, background=min(0.1, settings.match_iou / 2), **matching)
    lowest = {"all": 0.0, "shown": threshold}
    chosen = _Chosen(annotations, gt, dt, errors.kinds_by_row(), settings)
    return {
        "by_size": {name: {"objects": int(n)} for name, n in zip(AREAS, sizes, strict=True) if name != "all"},
        "confusion": {
            "threshold": threshold,
            "classes": [*confusion.classes, "background"],
            "counts": confusion.counts.tolist(),
        },
        "calibration": {name: calibration(gt, dt, conf=conf, **matching).to_dict() for name, conf in lowest.items()},
        "errors": {
            "AP": errors.ap,
            "kinds": {
                name: {"count": errors.counts[name], "gain": errors.gains[name], "meaning": meaning}
                for name, meaning in (KINDS | {"missed": MISSED}).items()
            },
            "false_positives": errors.false_positives,
            "false_negatives": errors.false_negatives,
        },
        "worst": chosen.worst(threshold),
        "examples": chosen.examples(),
    }


def _thinned(curve: Curve) -> Facts:
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


class _Chosen:
    """Detections and objects to look at, by their impact on AP."""

    def __init__(
        self, annotations: Annotations, gt: GroundTruth, dt: Results, kinds: Mapping[int, str], settings: Settings
    ) -> None:
        self.files, self.gt, self.dt, self.kinds = annotations.files, gt, dt, kinds
        self.impact = ap_impact(gt, dt, **settings.matching())

    def worst(self, threshold: float) -> list[Facts]:
        """The images whose false positives at this threshold and missed objects cost most."""
        gt, dt, impact = self.gt, self.dt, self.impact
        false = np.flatnonzero((impact.false_positive > 0) & (dt.score >= threshold))
        missed = np.flatnonzero(gt.wanted & ~(impact.score >= threshold))
        cost = np.bincount(dt.image[false], impact.false_positive[false], minlength=gt.images)
        cost = cost + np.bincount(gt.image[missed], impact.object[missed], minlength=gt.images)
        images = np.argsort(-cost, kind="stable")[:WORST]
        found = []
        for i in images[cost[images] > 0].tolist():
            wrong = _highest(false[dt.image[false] == i], impact.false_positive)
            gone = _highest(missed[gt.image[missed] == i], impact.object)
            errors = {"false_positives": list(map(self._detection, wrong)), "missed": list(map(self._object, gone))}
            found.append({"image": i, "file": self.files[i], "cost": float(cost[i]), **errors})
        return found

    def examples(self) -> Facts:
        """Of each class the surest right detection, the most costly false positive and the largest missed object."""
        gt, dt, impact = self.gt, self.dt, self.impact
        # Missed objects cost the same: the largest is the one that should have been seen.
        kinds = {
            "right": (dt.label, impact.true, dt.score, self._detection),
            "false_positive": (dt.label, impact.false_positive > 0, impact.false_positive, self._detection),
            "missed": (gt.label, gt.wanted & np.isnan(impact.score), gt.area, self._object),
        }
        table: Facts = {}
        for k, name in enumerate(gt.classes):
            for kind, (label, mask, most, described) in kinds.items():
                if len(rows := np.flatnonzero(mask & (label == k))):
                    one = described(rows[np.argmax(most[rows])])
                    table.setdefault(name, {})[kind] = one | {"file": self.files[one["image"]]}
        return table

    def _detection(self, row: int) -> Facts:
        more = {"score": float(self.dt.score[row]), "kind": self.kinds.get(int(row), "right")}
        return {**self._place(self.dt, row), **more, "cost": float(self.impact.false_positive[row])}

    def _object(self, row: int) -> Facts:
        score = float(self.impact.score[row])
        found_at = None if np.isnan(score) else score
        return {**self._place(self.gt, row), "found_at": found_at, "cost": float(self.impact.object[row])}

    def _place(self, table: GroundTruth | Results, row: int) -> Facts:
        x, y, w, h = table.xywh[row].tolist()
        box = [round(v, 2) for v in (x, y, x + w, y + h)]
        return {"image": int(table.image[row]), "label": self.gt.classes[table.label[row]], "box": box}


def _highest(rows: np.ndarray, impact: np.ndarray) -> list[int]:
    order: list[int] = rows[np.argsort(-impact[rows], kind="stable")].tolist()
    return order[:_NAMED]


def latency(timings: Mapping[str, object]) -> Facts:
    """Milliseconds per image, median and 95th percentile, of data, model, post-processing and together; the first of
    several batches is left out (memory is set up in it). ``split`` is False where post-processing is in ``model``."""
    batches = np.array(timings.get("batches") or np.zeros((0, 4)), float)
    whole = {name: timings[name] for name in ("images", "data", "compute") if name in timings}
    if not len(batches):
        return whole
    batches = batches[min(1, len(batches) - 1) :]
    each = 1000 * np.repeat(batches[:, 1:] / batches[:, :1], batches[:, 0].astype(int), axis=0)
    columns = np.quantile(np.column_stack([each, each.sum(axis=1)]), [0.5, 0.95], axis=0).T.tolist()
    spread = {
        name: {"median": median, "p95": p95}
        for name, (median, p95) in zip(("data", "model", "post", "total"), columns, strict=True)
    }
    return {**whole, "batch": int(batches[:, 0].max()), "split": bool(each[:, 2].any()), "ms": spread}
