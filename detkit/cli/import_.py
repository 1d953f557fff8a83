"""``detkit import``: detectors of other programs as model files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from detkit.cli import options
from detkit.cli.common import note
from detkit.printed import Printed

if TYPE_CHECKING:
    from detkit.detector import Detector

app = Typer(help="Turn detectors of other programs into model files.", no_args_is_help=True)
_Names = Annotated[Path | None, Option(help="Class names, one per line (default: COCO's, if there are as many).")]
_Measured = Annotated[
    str | None, Option("--images", help="Photos to measure BatchNorm on, where FILE holds it folded (to train on).")
]


@app.command()
def darknet(
    cfg: Annotated[Path, Argument(metavar="CFG", help="The net's cfg file.")],
    weights: Annotated[Path, Argument(metavar="WEIGHTS", help="Its weights file.")],
    names: _Names = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Import a YOLO detector from Darknet (default --out: the name of CFG, ending in .safetensors, here)."""
    from detkit.importers.darknet import import_darknet

    return _import(lambda: import_darknet(cfg, weights, names), cfg.stem, out, overwrite)


@app.command()
def torchvision(
    source: Annotated[str, Argument(metavar="FILE|NAME", help="A state dict, or fasterrcnn_resnet50_fpn: COCO's.")],
    names: _Names = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Import torchvision's Faster R-CNN with ResNet-50 and FPN (default --out: FILE's name, ending in .safetensors,
    here); a pickle is opened only if it holds nothing but tensors."""
    from detkit.importers.torchvision import import_torchvision

    return _import(lambda: import_torchvision(source, names), Path(source).stem, out, overwrite)


@app.command()
def nanodet(
    file: Annotated[Path, Argument(metavar="FILE", help="A .ckpt or .pth, or ncnn's .param with its .bin beside it.")],
    names: _Names = None,
    size: Annotated[int, Option(min=32, help="Input size in pixels: 416 or 320 for the published models.")] = 416,
    images: _Measured = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Import a NanoDet-Plus from its checkpoint or from ncnn's files (default --out: FILE's name, ending in
    .safetensors, here); a pickle is opened only if it holds nothing but tensors."""
    from detkit.importers.nanodet import import_nanodet

    make = partial(import_nanodet, file, names, size=size, images=images, tell=note)
    return _import(make, file.stem, out, overwrite)


@app.command()
def yolox(
    file: Annotated[Path, Argument(metavar="FILE", help="A .pth, or a published .onnx (needs the package onnx).")],
    names: _Names = None,
    size: Annotated[int | None, Option(min=32, help="Input size (default: 416 for nano and tiny, else 640).")] = None,
    images: _Measured = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Import a YOLOX from its weights or a published ONNX file (default --out: FILE's name, ending in .safetensors,
    here); a pickle is opened only if it holds nothing but tensors."""
    from detkit.importers.yolox import import_yolox

    return _import(partial(import_yolox, file, names, size=size, images=images, tell=note), file.stem, out, overwrite)


def _import(make: Callable[[], Detector], stem: str, out: Path | None, overwrite: bool) -> Printed:
    """Saves what ``make`` returns and shows it."""
    from detkit.io.files import refuse_existing

    path = out or Path(f"{stem}.safetensors")
    refuse_existing(path, overwrite)
    detector = make()
    detector.save(path, overwrite=overwrite)
    resize, classes, strides = detector.resize, detector.classes, list(detector.neck.strides)
    weights, written = sum(p.numel() for p in detector.parameters()), path.stat().st_size
    facts = {"out": path, "bytes": written, "parameters": weights, "classes": classes}
    lines = [
        f"{path}: {weights:,} weights, {written / 1e6:.1f} MB",
        f"  input      {resize.width} x {resize.height}, {resize.mode}",
        f"  levels     strides {', '.join(str(stride) for stride in strides)}",
        f"  classes    {len(classes)}: {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}",
        f"try it: detkit detect IMAGE --model {path}",
    ]
    return Printed(facts | {"size": [resize.height, resize.width], "strides": strides}, lines)
