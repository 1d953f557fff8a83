"""Evaluation with everything there is to see: what ``detkit evaluate`` does, of detections and of tracks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from detkit import api
from detkit.errors import DetkitError
from detkit.metrics import find_metric
from detkit.predictor import Wrapped, as_predictor
from detkit.printed import Printed, aligned, counted

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.data.summary import DataSummary
    from detkit.predictor import Predictor
    from detkit.report.content import Report, Settings


def full_report(
    predictions_or_model: str | Path | Predictor,
    data: str,
    settings: Settings,
    *,
    name: str = "",
    strict: bool = False,
    iou: float | None = None,
    batch: int = 8,
    details: bool = True,
    page: bool = False,
    check: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] | None = None,
    **how: Unpack[api.DataOptions],
) -> Report:
    """Judges a model, or detections from a file, on labelled data.

    Args:
        predictions_or_model: A file or folder of detections (of shards also an address), or anything that predicts.
        data: As ``detkit.evaluate``.
        settings: How to judge.
        name: Of the model, for people.
        strict: Labels or images that are dropped while reading are an error.
        iou: The model's NMS drops boxes that overlap more than this; None: its own.
        batch: Images at a time.
        details: Curves, confusion, calibration, kinds of errors, worst images, too.
        page: A page will be written of it, which needs the details and intervals.
        check: "pycocotools": its numbers beside ours.
        tell: Called with what a person should know of data and detections.
        on_progress: Called with batches done and in all.
        how: See ``detkit.data.dataset.read``.

    Raises:
        DetkitError: Data, detections and options that do not fit each other; said before a model runs where it can be.
    """
    from detkit.data.dataset import splits
    from detkit.data.summary import summarise, unlike_pycocotools
    from detkit.report.content import build_report

    read_in: list[DataSummary] = []
    split = how.get("split")

    def read(annotations: Annotations) -> None:
        read_in.append(summarise({split or "data": annotations}))
        for line in read_in[0].lines(table=False) if read_in[0].findings else ():
            tell(line)
        if strict:
            read_in[0].refuse_drops()
        if split is None and len(parts := splits(data, format=how.get("format"))) > 1:
            tell(f"{data}: all of {', '.join(parts)} together; --split takes one part")

    about, timings, details = None, None, details or page
    if isinstance(predictions_or_model, (str, Path)):
        annotations, results, notes = api.read_predictions(predictions_or_model, data, on_read=read, **how)
        usual = "classify" if annotations.image_labels else "coco" if results.pixels is None else "pixels"
        usual = usual if results.pixels is not None else settings.protocol or usual
        protocol = _fitting(settings, usual, page, check)
    else:
        from detkit.data.names import explain_match

        predictor, limit = predictions_or_model, max(settings.limit, 100)
        protocol = _fitting(settings, predictor.protocol, page, check)
        annotations, results, timings = api.evaluate_model(
            predictor, data, on_read=read, iou=iou, batch=batch, max_detections=limit, on_progress=on_progress, **how
        )
        notes = explain_match(predictor.classes, annotations.classes)
        about = {"name": name, **_facts(predictor)} if details else None
    if protocol == "coco":
        notes = [*notes, *unlike_pycocotools(annotations, results)]
    for note in notes:
        tell(note)
    draws = settings.bootstrap if page else settings.bootstrap or 0
    if draws is None and not find_metric(protocol).gives_intervals:
        tell(f"the metric {protocol} gives no intervals, so the report has none (it has no resampler)")
        draws = 0
    settings = replace(settings, protocol=protocol, bootstrap=draws)
    report = build_report(annotations, results, settings, about=about, timings=timings, details=details)
    report.facts["data"] = read_in[0].to_dict()
    if not report.facts["counts"]["objects"]:
        tell("the data has no object to find, so nothing can be measured")
    if check is not None:
        from detkit.metrics.coco import pycocotools_metrics

        report.facts["check"] = {check: pycocotools_metrics(annotations.ground_truth(), results)}
    return report


def track_report(predictions: Path, truth: Path, *, tell: Callable[[str], None] = lambda text: None) -> Printed:
    """Judges tracks by labelled ones, both in MOT Challenge's txt.

    Args:
        predictions: A file, or a folder with a file SEQUENCE.txt per sequence.
        truth: A file, or a folder with SEQUENCE/gt/gt.txt, SEQUENCE/gt.txt or SEQUENCE.txt.
        tell: Called with what a person should know of the files.

    Raises:
        DetkitError: As ``detkit.io.detections.mot.read_tracks``; a file that is not there, a file and a folder.
    """
    from detkit.io.detections.mot import read_tracks
    from detkit.metrics.tracks import Sums, track_scores, track_sums

    sums: dict[str, Sums] = {}
    for name, (theirs, own) in _sequences(predictions, truth).items():
        (labels, dropped), (found, _) = read_tracks(own, labelled=True), read_tracks(theirs)
        if dropped:
            tell(f"{own}: {counted(dropped, 'box')} with confidence 0 left out, of {len(labels.id) + dropped}")
        if late := int((found.frame > labels.frame.max()).sum()):
            last = f"frame {labels.frame.max()}, the last labelled one"
            tell(f"{theirs}: {counted(late, 'box')} after {last}, counted as wrong")
        sums[name] = track_sums(labels, found)
    total = {key: np.sum([one[key] for one in sums.values()], axis=0) for key in next(iter(sums.values()))}
    scores, each = track_scores(total), {name: track_scores(one) for name, one in sums.items()}
    table = [["", *scores]]
    for name, row in [*(each.items() if len(each) > 1 else ()), ("all", scores)]:
        table.append([name, *(f"{v:.0f}" if key in ("IDSW", "FP", "FN") else f"{v:.4f}" for key, v in row.items())])
    return Printed({"protocol": "mot", "metrics": scores, "per_sequence": each}, aligned(table))


def _sequences(predictions: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Of each sequence by name, the file of its predictions and that of its labels."""
    if (truth.is_dir() and predictions.is_file()) or (truth.is_file() and predictions.is_dir()):
        do = "give two files for one sequence, two folders for several"
        raise DetkitError("one of them is a file, the other a folder", f"{predictions}, {truth}", do)
    if not truth.is_dir():
        return {truth.stem: (predictions, truth)}
    own = {path.parents[1].name: path for path in truth.glob("*/gt/gt.txt")}
    own = own or {path.parent.name: path for path in truth.glob("*/gt.txt")}
    own = own or {path.stem: path for path in truth.glob("*.txt")}
    if not own:
        raise DetkitError("no labelled tracks are here", str(truth), "it holds SEQUENCE/gt/gt.txt or SEQUENCE.txt")
    found = {name: (predictions / f"{name}.txt", path) for name, path in sorted(own.items())}
    for theirs, _ in found.values():
        if not theirs.is_file():
            do = f"a sequence needs its file: of {', '.join(found)}"
            raise DetkitError("there are no tracks of this sequence", str(theirs), do)
    return found


def _facts(predictor: Predictor) -> dict[str, int | str]:
    from detkit.exporting.predictor import ExportedDetector

    if isinstance(predictor, Wrapped):
        return _facts(as_predictor(predictor.inner))
    if isinstance(predictor, ExportedDetector):
        return predictor.facts()
    from detkit.explain.summary import predictor_facts

    return predictor_facts(predictor)


def _fitting(settings: Settings, usual: str, page: bool, check: str | None) -> str:
    """The protocol, for answers that are usually judged by ``usual``; DetkitError where the options do not fit."""
    protocol, iou, limit = settings.protocol or usual, settings.iou, settings.max_detections
    metric = find_metric(protocol, where="--protocol")
    labels, unlike = metric.answers == "labels", find_metric(usual).answers
    boxless = {"labels", "pixels"} & {metric.answers, unlike} and metric.answers != unlike
    unlimited = limit is not None and not metric.takes_max_detections
    uncheckable = check is not None and (protocol != "coco" or limit not in (None, 100))
    refusals = {
        "--protocol": (boxless, f"these answers are {unlike}, and {protocol} judges {metric.answers}"),
        "--match-iou": (iou is not None and not metric.takes_iou, f"{protocol} matches no boxes"),
        "--max-detections": (unlimited, f"{protocol} counts all detections"),
        "--report": (page and labels, "there is no report where whole images are judged"),
        "--check": (uncheckable, "pycocotools sums up COCO's protocol with 100 detections"),
    }
    for option, (refused, what) in refusals.items():
        if refused:
            raise DetkitError(what, option, "leave it out")
    if settings.bootstrap and not metric.gives_intervals:
        do = "leave out --bootstrap, or write its resampler"
        raise DetkitError(f"the metric {protocol} gives no intervals", "--bootstrap", do)
    if iou is not None and not 0 < iou <= 1:
        raise DetkitError(f"an IoU lies in (0, 1], got {iou:g}", "--match-iou", "give 0.5, say")
    if check not in (None, "pycocotools"):
        raise DetkitError(f"nothing is called {check!r}", "--check", "write --check pycocotools")
    return protocol
