"""``detkit export``: a detector as an ONNX file, proven equal to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable, note


def export(
    model: Annotated[str, Argument(metavar="MODEL", help="Weights file, run folder or shipped name.")] = "default",
    out: options.Out = None,
    size: options.Size = None,
    data: Annotated[
        str | None, Option("--data", metavar="DATA", help="Compare on these labelled images, too, and the AP of both.")
    ] = None,
    split: options.SplitName = None,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Write a detector as ONNX, decoding inside, and compare it with the model on photos: beyond rounding nothing is
    written and the exit code is 1. Default --out: MODEL's name, ending in .onnx, here."""
    from detkit.exporting.onnx_file import export

    path = out or Path(f"{Path(model).resolve().stem}.onnx")
    done = export(model, path, size=size, data=data, split=split, overwrite=overwrite, tell=note)
    return done, 0 if done.path else 1
