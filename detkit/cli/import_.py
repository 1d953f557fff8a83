"""``detkit import``: detectors of other programs as model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detkit.cli.common import JsonOption, OutOption, OverwriteOption, print_json

app = typer.Typer(help="Turn detectors of other programs into model files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Turn detectors of other programs into model files."""


@app.command()
def darknet(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="The net's cfg file.")],
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Its weights file.")],
    names: Annotated[
        Path | None, typer.Option("--names", help="Class names, one a line (default: COCO's for 80 classes).")
    ] = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> int:
    """Import a YOLO detector from Darknet (default --out: the name of CFG, ending in .safetensors, here)."""
    from detkit.importers.darknet import import_darknet
    from detkit.io.files import refuse_existing

    path = out or Path(f"{cfg.stem}.safetensors")
    refuse_existing(path, overwrite)
    detector = import_darknet(cfg, weights, names)
    detector.save(path, overwrite=overwrite)
    weight, size, resize = sum(p.numel() for p in detector.parameters()), path.stat().st_size, detector.resize
    strides, classes = list(detector.head.strides), detector.classes
    if as_json:
        print_json(
            {
                "out": path,
                "bytes": size,
                "parameters": weight,
                "classes": classes,
                "size": [resize.height, resize.width],
                "strides": strides,
            }
        )
        return 0
    print(f"{path}: {weight:,} weights, {size / 1e6:.1f} MB")
    print(f"  input      {resize.width} x {resize.height}, {resize.mode}")
    print(f"  levels     strides {', '.join(str(stride) for stride in strides)}")
    print(f"  classes    {len(classes)}: {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}")
    print(f"try it: detkit detect PICTURE --model {path}")
    return 0
