"""``detkit label``: models label images, beside the labels that people made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from detkit.cli import options
from detkit.cli.common import Printable, note, progress
from detkit.errors import DetkitError


def label(
    labelled: options.LabelledData,
    model: options.ModelNames = None,
    predictions: Annotated[
        list[str] | None, Option(metavar="PATH", help="Take these detections instead; of several the fusion.")
    ] = None,
    keep: Annotated[float, Option(help="From this score on a box is an object, its score its weight.")] = 0.35,
    ignore: Annotated[float, Option(help="From this score on it is a region to ignore.")] = 0.15,
    known: Annotated[
        str | None,
        Option(
            metavar="all|NAMES", help="People labelled all objects of these classes (all: of theirs); none is added."
        ),
    ] = None,
    out: Annotated[Path, Option("--out", "-o", help="The COCO json to write.")] = Path("labels.json"),
    device: options.Device = None,
    threads: options.Threads = None,
    batch: options.BatchSize = 8,
    overwrite: options.Overwrite = False,
) -> Printable:
    """Label images with models, two or more fused. DATA may be a folder of photos. What people labelled stays and comes
    first; each box says its source.
    """
    from detkit import api, labelling
    from detkit.io.files import refuse_existing

    refuse_existing(out, overwrite)
    rules = labelling.Rules(keep=keep, ignore=ignore, known=tuple(options.names_in(known or "")))
    if predictions and model:
        raise DetkitError("give --model or --predictions, not both", do="fuse files alone, or models alone")
    return labelling.label(
        predictions or api.load(model or None, device=device, threads=threads, tta=()),
        out=out,
        rules=rules,
        batch=batch,
        overwrite=overwrite,
        tell=note,
        on_progress=progress,
        **vars(labelled),
    )
