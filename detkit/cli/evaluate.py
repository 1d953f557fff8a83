"""``detkit evaluate`` and ``compare``: how good detections of a model, a file or several runs are on labelled data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable, message, note, progress
from detkit.errors import DetkitError
from detkit.metrics import METRICS, find_metric


def evaluate(
    arguments: Annotated[list[str], Argument(metavar="[MODEL...] DATA", help="Files, runs or names, then the data.")],
    predictions: Annotated[
        str | None,
        Option(
            metavar="PATH",
            help="Evaluate what detect --out or --shards wrote, COCO results, comp4 or YOLO txt, masks; MOT txt.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        Option(
            help=f"{', '.join(METRICS)}; mot (tracks); an installed one's name, or module:Name (default: the model's)."
        ),
    ] = None,
    part: options.Part = options.Part(),
    keep_degenerate: options.KeepDegenerate = False,
    strict: options.Strict = False,
    match_iou: Annotated[float | None, Option(help="Also AP at this IoU (VOC: at this instead of 0.5).")] = None,
    max_detections: Annotated[
        int | None, Option(min=1, help="Per image and class, that COCO's AP counts (default: 100).")
    ] = None,
    bootstrap: Annotated[
        int | None, Option(min=0, metavar="N", help="95% intervals of N draws of the images (--report: 1000 or 200).")
    ] = None,
    seed: options.Seed = 0,
    report: Annotated[
        Path | None, Option(help="Write all there is to see to this HTML page (needs no network).")
    ] = None,
    check: Annotated[str | None, Option(metavar="pycocotools", help="Its own numbers beside detkit's.")] = None,
    overwrite: options.Overwrite = False,
    iou: options.Iou = None,
    answers: options.Answers = options.Answers(),
    batch: options.BatchSize = 8,
    as_json: bool = False,
) -> Printable:
    """AP of a model or a file of detections on labelled data. All classes together and each by itself.

    --report and --json add curves, confusion, calibration, kinds of errors, dearest images, times. --protocol mot
    judges tracks instead: HOTA, MOTA, IDF1, switches. --protocol knn or linear asks the backbone alone: DATA's
    part train is known to a classifier on its features, another judged.
    """
    given: dict[str, object] = {"--images": part.images, "--iou": iou, "--match-iou": match_iou, "--report": report}
    given |= {"--max-detections": max_detections, "--bootstrap": bootstrap, "--check": check}
    given |= {"--strict": strict or None, "--keep-degenerate": keep_degenerate or None}
    if protocol == "mot":
        return _evaluate_tracks(arguments, predictions, {**given, "--split": part.split, "--format": part.format})
    if protocol in ("knn", "linear"):
        _refuse({**given, "--predictions": predictions}, "a probe")
        return _probe(arguments, part, protocol, answers, batch)
    if protocol is not None:
        find_metric(protocol, where="--protocol", others=("mot", "knn", "linear"))
    from detkit import evaluating
    from detkit.io.files import refuse_existing
    from detkit.report.content import Settings

    refuse_existing(report, overwrite)
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise DetkitError("a report is a page of HTML", f"--report {report}", f"name it {report.stem}.html, say")
    *models, data = arguments
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        do = "detkit detect --shards OUT --conf 0.001 --workers N, then detkit evaluate --predictions OUT DATA"
        raise DetkitError("several processes would each judge all images", "torchrun", do)
    if as_json and models and Path(models[-1]).exists() and not Path(data).exists():
        raise DetkitError("--json prints and takes no file", data, f"detkit evaluate ... --json > {data}")
    _check_words(models, data, predictions, answers)
    name = ", ".join(models) or "the default model"
    if not models and predictions is None:
        note("no model was named: this is what the shipped one finds")
    done = evaluating.full_report(
        predictions or answers.predictor(models),
        data,
        Settings(protocol, match_iou, max_detections, bootstrap, seed),
        name=name,
        **vars(part),
        keep_degenerate=keep_degenerate,
        strict=strict,
        iou=iou,
        batch=batch,
        details=as_json,
        page=report is not None,
        check=check,
        tell=note,
        on_progress=progress,
    )
    if report is not None:
        from detkit.report.page import write_report

        lost = write_report(report, done, f"{predictions or name} on {data}", overwrite=overwrite)
        message(f"report: {report}" + (f" ({lost} of its images could not be read)" if lost else ""))
    return done


def _evaluate_tracks(arguments: list[str], predictions: str | None, options: dict[str, object]) -> Printable:
    from detkit.evaluating import track_report

    if predictions is None or len(arguments) > 1:
        do = "detkit track VIDEO --out TRACKS.txt, then detkit evaluate --predictions TRACKS.txt GT.txt --protocol mot"
        raise DetkitError("tracks are judged from a file", "--protocol mot", do)
    _refuse(options, "tracks")
    return track_report(Path(predictions), Path(arguments[0]), tell=note)


def _refuse(options: Mapping[str, object], about: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise DetkitError(f"this says nothing about {about}", option, "leave it out")


def _probe(arguments: list[str], part: options.Part, by: str, answers: options.Answers, batch: int) -> Printable:
    from detkit.detector import Detector
    from detkit.probing import probe

    *models, data = arguments
    model = answers.predictor(models)
    if not isinstance(model, Detector):
        raise DetkitError("only a model of detkit's has a backbone to ask", ", ".join(models), "give its file or run")
    return probe(model, data, by, split=part.split, format=part.format, batch=batch, on_progress=progress)


def _check_words(models: list[str], data: str, predictions: str | None, answers: options.Answers) -> None:
    given = {"--ensemble": answers.ensemble, "--tta": answers.tta, "--slice": answers.tile}
    extra = [*models, *(option for option, value in given.items() if value)]
    if predictions is not None and extra:
        what = f"give a model or --predictions, not both ({extra[0]})"
        raise DetkitError(what, do="detkit evaluate --predictions FILE DATA, or detkit evaluate MODEL DATA")
    if predictions is not None and data.endswith(".txt"):
        raise DetkitError("this file is not a data set that detkit knows", data, "tracks: add --protocol mot")
    from detkit.zoo import DEFAULT

    file, shipped = data.endswith((".safetensors", ".onnx")), data in ("default", DEFAULT) and not Path(data).exists()
    if file or shipped or any((Path(data) / name).is_file() for name in ("best.safetensors", "state.pt", "run.json")):
        raise DetkitError("no data was named: this is a model", data, f"detkit evaluate {data} DATA, say")
    for name in models:
        if Path(name).suffix in (".json", ".jsonl", ".csv", ".gz", ".txt"):
            do = "detections from a file: detkit evaluate --predictions FILE DATA"
            raise DetkitError("this file is not a model", name, do)


@dataclass(frozen=True)
class _Comparing:
    """Arguments of ``detkit.compare``."""

    data: Annotated[str | None, Option(help="Measure on this instead; then also model files, shipped names.")] = None
    strict: options.Strict = False
    timed: Annotated[int, Option(min=1, help="Images to take the time of, one by one.")] = 20
    bootstrap: Annotated[int, Option(min=1, metavar="N", help="Draws of the images.")] = 1000
    seed: options.Seed = 0
    batch: Annotated[int, Option(min=1, help="Images at a time, when not timed.")] = 8
    device: options.Device = None
    threads: options.Threads = None


def compare(
    runs: Annotated[list[str], Argument(metavar="RUN RUN...", help="Run folders, or configs that were trained.")],
    part: options.Part = options.Part(),
    how: _Comparing = _Comparing(),
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printable:
    """Compare runs on the same data. One table (their validation images, or --split test): size, AP and AP50, time
    of an image and of training, and which differences are more than noise. --out draws them.

    Runs that were trained or validated on other data are refused.
    """
    if out is not None:
        from detkit.io.files import image_format, refuse_existing

        image_format(out)
        refuse_existing(out, overwrite)
    from detkit import comparing

    compared = comparing.compare(runs, tell=note, **vars(part), **vars(how))
    if out is not None:
        compared.draw(out, overwrite=overwrite)
        message(f"image: {out}")
    return compared
