"""``detkit evaluate``: how good a model's, or a file's, detections are on labelled data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import load_predictor, message, print_json, progress
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.data.dataset import Annotations
    from detkit.predictor import Predictor
    from detkit.tables import GroundTruth, Results

PROTOCOLS = {
    "coco": "COCO (IoU 0.50:0.95, 101 recall points, {limit} detections an image and class; "
    "crowds and difficult ignored)",
    "voc2007": "VOC2007 (IoU {iou:g}, 11 recall points, all detections, difficult ignored)",
    "voc2010": "VOC2010 (IoU {iou:g}, area under the curve, all detections, difficult ignored)",
    "classify": "classification (the image's label is the best answer, or among the best five)",
    "points": "COCO's boxes; points: NME over the root of the box's area, PCK within a tenth of it (boxes at IoU 0.50)",
}
_MANY = 100_000  # detections, on which a draw takes a tenth of a second


def evaluate(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[MODEL...] DATA", help="Weights (file, run folder or name), then the data.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Evaluate COCO results, lines of detect --json, comp4 or YOLO txt."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help=f"{', '.join(PROTOCOLS)} (default: what the model answers).")
    ] = None,
    split: options.Split = None,
    images: options.Images = None,
    match_iou: Annotated[
        float | None, typer.Option("--match-iou", help="Also AP at this IoU (VOC: at this instead of 0.5).")
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option("--max-detections", min=1, help="Of an image and class, that COCO's AP counts (default: 100)."),
    ] = None,
    bootstrap: Annotated[
        int | None,
        typer.Option(
            "--bootstrap",
            min=0,
            metavar="N",
            help="95% intervals from N draws of the images (--report: 1000, big data 200).",
        ),
    ] = None,
    seed: options.Seed = 0,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write all there is to see to this HTML page (needs no network).")
    ] = None,
    overwrite: options.Overwrite = False,
    iou: options.Iou = 0.5,
    tta: options.Tta = None,
    ensemble: options.Ensemble = False,
    batch: options.Batch = 8,
    device: options.Device = None,
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """AP of a model, or of a file of detections, on labelled data: all classes together and each by itself.

    --report and --json add curves, confusion, calibration, kinds of errors, dearest images, times.
    """

    if report is not None:
        from detkit.io.files import refuse_existing

        refuse_existing(report, overwrite)
    _check_options(protocol, match_iou)
    *models, data = arguments
    _check_words(models, predictions, ensemble, tta)
    predictor = None
    if predictions is not None:
        annotations, results, timings = _from_file(predictions, data, split, images)
        protocol = protocol or ("classify" if annotations.labelled else "coco")
    else:
        predictor = load_predictor(
            models, ensemble=ensemble, tta=tta, device=device, precision=precision, threads=threads
        )
        answers = getattr(predictor, "protocol", "coco")
        if answers == "classify" and protocol not in (None, "classify"):
            raise DetkitError("a classifier's answers have no boxes", "--protocol", "leave it out")
        protocol = protocol or answers
    if protocol == "classify" and match_iou is not None:
        raise DetkitError("classification matches no boxes", "--match-iou", "leave it out")
    if max_detections is not None and protocol != "coco":
        raise DetkitError(f"{protocol} counts all detections", "--max-detections", "leave it out")
    if report is not None and protocol == "classify":
        raise DetkitError("there is no report of classification", "--report", "leave it out")
    if predictor is not None:
        annotations, results, timings = _from_model(predictor, data, split, images, iou, batch, max_detections or 100)
    from detkit.report.content import Settings, content, latency, numbers

    gt = annotations.ground_truth()
    if not (~(gt.crowd | gt.difficult)).any():
        message("detkit: the data has no object to find, so nothing can be measured")
    if bootstrap is None:
        bootstrap = 0 if report is None else 1000 if len(results) < _MANY else 200
    settings = Settings(protocol, match_iou, max_detections or 100, bootstrap, seed)
    if (as_json or report is not None) and protocol != "classify":
        about = None
        if predictor is not None:
            from detkit.explain.summary import predictor_facts

            about = {"name": ", ".join(models) or "the default model", **predictor_facts(predictor)}
        done = content(annotations, results, settings, about=about, timings=timings)
    else:
        done = numbers(gt, results, settings) | ({"timings": latency(timings)} if timings else {})
    if report is not None:
        _write(report, done, f"{', '.join(models) or predictions or 'the default model'} on {data}", overwrite)
    if as_json:
        print_json(done)
    else:
        _print(done, gt, results)
    return 0


def _check_options(protocol: str | None, match_iou: float | None) -> None:
    if protocol not in (None, *PROTOCOLS):
        raise DetkitError(f"no protocol {protocol!r}", "--protocol", f"choose one of {', '.join(PROTOCOLS)}")
    if match_iou is not None and not 0 < match_iou <= 1:
        raise DetkitError(f"an IoU lies above 0 and up to 1, got {match_iou:g}", "--match-iou", "give 0.5, say")


def _check_words(models: list[str], predictions: Path | None, ensemble: bool, tta: str | None) -> None:
    if predictions is not None and (models or ensemble or tta):
        extra = models[0] if models else "--ensemble" if ensemble else "--tta"
        what = f"give a model or --predictions, not both ({extra})"
        raise DetkitError(what, do="detkit evaluate --predictions FILE DATA, or detkit evaluate MODEL DATA")
    for name in models:
        if Path(name).suffix in (".json", ".jsonl", ".gz", ".txt"):
            do = "detections from a file: detkit evaluate --predictions FILE DATA"
            raise DetkitError("this file is not a model", name, do)


def _from_file(
    path: Path, data: str, split: str | None, images: Path | None
) -> tuple[Annotations, Results, Mapping[str, Any]]:
    from detkit.data.dataset import read
    from detkit.io.detections import read_detections
    from detkit.metrics.label_warnings import swapped_classes

    annotations = read(data, split=split, images=images)
    _tell_of_data(annotations, data, split)
    results, notes = read_detections(path, annotations)
    for note in [*notes, *swapped_classes(annotations.ground_truth(), results)]:
        message(f"detkit: {note}")
    return annotations, results, {}


def _from_model(
    predictor: Predictor,
    data: str,
    split: str | None,
    images: Path | None,
    iou: float,
    batch: int,
    max_detections: int,
) -> tuple[Annotations, Results, Mapping[str, Any]]:
    from detkit import api
    from detkit.data.names import explain_match

    done = api.evaluate_model(
        predictor,
        data,
        split=split,
        images=images,
        iou=iou,
        batch=batch,
        max_detections=max(max_detections, 100),
        on_progress=progress,
    )
    _tell_of_data(done[0], data, split)
    for note in explain_match(predictor.classes, done[0].classes):
        message(f"detkit: {note}")
    return done


def _tell_of_data(annotations: Annotations, data: str, split: str | None) -> None:
    """What reading the data found, and that several parts of it (training images too) are judged as one."""
    from detkit.data.dataset import splits

    for finding in annotations.findings:
        message(f"detkit: {data}: {finding.name}: {finding.count} (detkit data check lists them)")
    if split is None and len(parts := splits(data)) > 1:
        message(f"detkit: {data}: all of {', '.join(parts)} together; --split takes one part")


def _write(path: Path, done: dict[str, Any], title: str, overwrite: bool) -> None:
    from detkit.report.page import write_report

    lost = write_report(path, done, title, overwrite=overwrite)
    message(f"report: {path}" + (f" ({lost} of its images could not be read)" if lost else ""))


def _print(done: dict[str, Any], gt: GroundTruth, results: Results) -> None:
    found = int((~(gt.crowd | gt.difficult)).sum())
    rules = done["settings"]
    lines = [PROTOCOLS[done["protocol"]].format(limit=rules["max_detections"], iou=rules["match_iou"])]
    lines.append(
        f"{gt.images} images, {found} objects, {len(gt.label) - found} ignored, {len(results)} detections",
    )
    lines.append("")
    intervals = done.get("intervals", {})
    for name, value in done["metrics"].items():
        low, high = intervals.get(name, (math.nan, math.nan))
        between = "" if math.isnan(low) else f"   95% interval {low:.4f} .. {high:.4f}"
        lines.append(f"{name:<8} {_cell(value, 7, 4)}{between}")
    best = done["best_threshold"]
    matched = "" if done["protocol"] == "classify" else f" (IoU {rules['match_iou']:g})"
    lines += ["", f"best F1 {best['f1']:.3f} at score >= {best['score']:.3f}{matched}", ""]
    print("\n".join([*lines, *_table(done["per_class"])]), flush=True)


def _table(per_class: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line a class; columns as wide as they need."""
    if not per_class:
        return []
    columns = list(next(iter(per_class.values())))
    columns = ["objects", *(name for name in columns if name != "objects")]
    wide = max(len(name) for name in [*per_class, "class"])
    lines = [f"{'class':<{wide}}" + "".join(f"{name:>9}" for name in columns)]
    for name, row in per_class.items():
        cells = (f"{row[c]:>9}" if c == "objects" else _cell(row[c], 9, 3) for c in columns)
        lines.append(f"{name:<{wide}}" + "".join(cells))
    return lines


def _cell(value: float, width: int, digits: int) -> str:
    """A number, or a dash where there is nothing to measure (COCO's -1, or NaN)."""
    return f"{'-':>{width}}" if math.isnan(value) or value < 0 else f"{value:>{width}.{digits}f}"
