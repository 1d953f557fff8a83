"""Evaluation with everything there is to see: what ``detkit evaluate`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detkit import api
from detkit.errors import DetkitError
from detkit.metrics import find_metric

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.predictor import Predictor
    from detkit.report.content import Report

_MANY = 100_000  # detections, on which a draw takes a tenth of a second


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How ``full_report`` runs a model and judges.

    Attributes:
        split: One part of the data; None: all of it.
        images: Folder of the images of a COCO json.
        protocol: As ``detkit.evaluate``.
        match_iou: Also AP at this IoU; PASCAL's at this instead of 0.5.
        max_detections: Of an image and class, that COCO's AP counts; None: 100.
        bootstrap: Draws of the images for intervals; None: as many as a page takes, without one none.
        seed: Of the draws.
        details: Curves, confusion, calibration, kinds of errors, worst images, too.
        page: A page will be written of it, which needs the details.
        check: "pycocotools": its numbers beside ours.
        iou: The model's NMS drops boxes that overlap more than this.
        batch: Images at a time.
    """

    split: str | None = None
    images: Path | None = None
    protocol: str | None = None
    match_iou: float | None = None
    max_detections: int | None = None
    bootstrap: int | None = None
    seed: int = 0
    details: bool = True
    page: bool = False
    check: str | None = None
    iou: float = 0.5
    batch: int = 8

    def metric_for(self, usual: str) -> str:
        """The protocol, for answers that are usually judged by ``usual``; DetkitError where the options do not fit."""
        protocol = self.protocol or usual
        metric, answers = find_metric(protocol, where="--protocol"), find_metric(usual).answers
        labels, limit = metric.answers == "labels", self.max_detections
        unlimited = limit is not None and not metric.takes_max_detections
        uncheckable = self.check is not None and (protocol != "coco" or limit not in (None, 100))
        refusals = {
            "--protocol": (labels != (answers == "labels"), "a classifier's answers have no boxes"),
            "--match-iou": (self.match_iou is not None and not metric.takes_iou, f"{protocol} matches no boxes"),
            "--max-detections": (unlimited, f"{protocol} counts all detections"),
            "--report": (self.page and labels, "there is no report of classification"),
            "--check": (uncheckable, "pycocotools sums up COCO's protocol with 100 detections"),
        }
        for option, (refused, what) in refusals.items():
            if refused:
                raise DetkitError(what, option, "leave it out")
        if self.match_iou is not None and not 0 < self.match_iou <= 1:
            raise DetkitError(f"an IoU lies in (0, 1], got {self.match_iou:g}", "--match-iou", "give 0.5, say")
        if self.check not in (None, "pycocotools"):
            raise DetkitError(f"nothing is called {self.check!r}", "--check", "write --check pycocotools")
        return protocol


def full_report(
    predictions_or_model: Path | Predictor,
    data: str,
    options: ReportOptions,
    *,
    name: str = "",
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Judges a model, or detections from a file, on labelled data.

    Args:
        predictions_or_model: A file or folder of detections, or anything that predicts.
        data: As ``detkit.evaluate``.
        options: How.
        name: Of the model, for people.
        tell: Called with what a person should know of data and detections.
        on_progress: Called with batches done and in all.

    Raises:
        DetkitError: Data, detections and options that do not fit each other; said before a model runs where it can be.
    """
    from detkit.report.content import Settings, build_report

    limit, about, timings = options.max_detections or 100, None, None
    details, split, images = options.details or options.page, options.split, options.images
    if isinstance(predictions_or_model, Path):
        annotations, results, notes = api.read_predictions(predictions_or_model, data, split=split, images=images)
        protocol = options.metric_for(options.protocol or ("classify" if annotations.labelled else "coco"))
    else:
        from detkit.data.names import explain_match
        from detkit.explain.summary import predictor_facts

        predictor = predictions_or_model
        protocol = options.metric_for(predictor.protocol)
        annotations, results, timings = api.evaluate_model(
            predictor,
            data,
            split=split,
            images=images,
            iou=options.iou,
            batch=options.batch,
            max_detections=max(limit, 100),
            on_progress=on_progress,
        )
        notes = explain_match(predictor.classes, annotations.classes)
        about = {"name": name, **predictor_facts(predictor)} if details else None
    for note in [*_about_data(annotations, data, split), *notes]:
        tell(note)
    draws = options.bootstrap
    if draws is None:
        draws = 0 if not options.page else 1000 if len(results) < _MANY else 200
    settings = Settings(protocol, options.match_iou, limit, draws, options.seed)
    report = build_report(annotations, results, settings, about=about, timings=timings, details=details)
    if not report.facts["counts"]["objects"]:
        tell("the data has no object to find, so nothing can be measured")
    if options.check is not None:
        from detkit.metrics.reference import pycocotools_metrics

        report.facts["check"] = {options.check: pycocotools_metrics(annotations.ground_truth(), results)}
    return report


def _about_data(annotations: Annotations, data: str, split: str | None) -> list[str]:
    """What reading the data found, and that several parts of it (training images too) are judged as one."""
    from detkit.data.dataset import splits

    notes = [f"{data}: {one.name}: {one.count} (detkit data check lists them)" for one in annotations.findings]
    if split is None and len(parts := splits(data)) > 1:
        notes.append(f"{data}: all of {', '.join(parts)} together; --split takes one part")
    return notes
