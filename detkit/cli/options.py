"""The options and arguments that several verbs have, each with one name and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit import registry

Data = Annotated[str, Argument(metavar="DATA", help="COCO json, VOC folder, data.yaml or class folders.")]
SplitName = Annotated[str | None, Option("--split", help="Which part of DATA (train, val, ...).")]
Images = Annotated[Path | None, Option(help="Folder of the images of a COCO json.")]
DataFormat = Annotated[
    str | None, Option("--format", metavar="NAME", help="Format of DATA, or module:Name (default: recognised).")
]
ModelNames = Annotated[
    list[str] | None,
    Option("--model", "-m", help="Weights file, run folder, shipped name or torchvision/NAME; see --ensemble."),
]
FuseModels = Annotated[
    bool, Option("--ensemble", help="Fuse the answers of two or more models (their weights are never averaged).")
]
Tta = Annotated[
    str | None, Option(help="Look again: flip (mirrored), scales (resized); a classifier: crops. Several by commas.")
]
Plugins = Annotated[
    list[str] | None,
    Option(
        "--plugin",
        metavar="MODULE",
        callback=lambda modules: registry.allow(modules or ()),
        help="A Python module whose parts a model file or run may use (repeat it for several).",
    ),
]
Size = Annotated[int | None, Option(min=1, help="Input size in pixels (default: the model's).")]
Iou = Annotated[float, Option(help="The model's NMS drops boxes that overlap more than this.")]
Classes = Annotated[str | None, Option(help="Only these, by name: cat,dog.")]
BatchSize = Annotated[int, Option(min=1, help="Images at a time.")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1, mps (default: the best).")]
PrecisionName = Annotated[str, Option(help="fp32, bf16 (faster where the hardware has it, coarser) or auto.")]
Threads = Annotated[int | None, Option(help="CPU threads (default: torch's choice).")]
Seed = Annotated[int, Option(min=0, help="Seed of every random choice.")]
Out = Annotated[Path | None, Option("--out", "-o", help="Write to exactly this path.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace outputs that exist.")]
Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")]
