"""``detkit export``: a detector as an ONNX file, proven equal to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable, note
from detkit.errors import DetkitError


def export(
    model: Annotated[str, Argument(metavar="MODEL", help="Weights file, run folder or shipped name.")] = "default",
    out: options.Out = None,
    size: options.Size = None,
    nms: Annotated[bool, Option("--nms", help="NMS inside: boxes, scores and labels come out.")] = False,
    dynamic: Annotated[bool, Option("--dynamic", help="For inputs of any size, in strides.")] = False,
    half: Annotated[bool, Option("--half", help="fp16, for GPUs and half the size; needs --data.")] = False,
    int8: Annotated[bool, Option("--int8", help="Convolutions in int8, for OpenVINO on CPUs; needs --data.")] = False,
    loss: Annotated[float | None, Option(min=0, help="AP50 that --half or --int8 may lose (default: 0.005).")] = None,
    data: Annotated[
        str | None, Option(metavar="DATA", help="Compare on these labels, too, and the AP of both.")
    ] = None,
    split: options.SplitName = None,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Write a model as ONNX, proven equal. Decoding is inside; model and file answer on the same photos, and if they
    differ beyond rounding nothing is written and the exit code is 1. Default --out: MODEL's name, ending in .onnx."""
    from detkit.exporting.onnx_file import export

    if half and int8:
        raise DetkitError("a file has one precision", "--half --int8", "choose one of them")
    if loss is not None and not (half or int8):
        raise DetkitError("--loss goes with --half or --int8", do="add one of them, or leave out --loss")
    how: dict[str, Any] = {"size": size, "nms": nms, "dynamic": dynamic, "data": data, "split": split}
    how |= {} if loss is None else {"loss": loss}
    how["precision"] = "fp16" if half else "int8" if int8 else "fp32"
    done = export(model, out or f"{Path(model).resolve().stem}.onnx", overwrite=overwrite, tell=note, **how)
    return done, 0 if done.path else 1
