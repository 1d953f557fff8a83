"""The options and arguments that several verbs have, each with one name and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detkit import registry

Data = Annotated[str, typer.Argument(metavar="DATA", help="COCO json, VOC folder, data.yaml or class folders.")]
SplitName = Annotated[str | None, typer.Option("--split", help="Which part of DATA (train, val, ...).")]
Images = Annotated[Path | None, typer.Option("--images", help="Folder of the images of a COCO json.")]
DataFormat = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Format of DATA, or module:Name (default: recognised).")
]
ModelName = Annotated[str | None, typer.Option("--model", "-m", help="Weights file, run folder or shipped name.")]
ModelNames = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Weights file, run folder, shipped name or torchvision/NAME; see --ensemble."),
]
FuseModels = Annotated[
    bool, typer.Option("--ensemble", help="Fuse the answers of two or more models (their weights are never averaged).")
]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta", help="Look again: flip (mirrored), scales (resized); a classifier: crops. Several by commas."
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        callback=lambda modules: registry.allow(modules or ()),
        help="A Python module whose parts a model file or run may use (repeat it for several).",
    ),
]
Size = Annotated[int | None, typer.Option("--size", min=1, help="Input size in pixels (default: the model's).")]
Conf = Annotated[float | None, typer.Option("--conf", help="Lowest score (default: the model's own).")]
Iou = Annotated[float, typer.Option("--iou", help="The model's NMS drops boxes that overlap more than this.")]
Classes = Annotated[str | None, typer.Option("--classes", help="Only these, by name: cat,dog.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps (default: the best).")]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="fp32, bf16 (faster where the hardware has it, coarser) or auto.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: torch's choice).")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write to exactly this path.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
