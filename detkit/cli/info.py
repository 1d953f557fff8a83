"""``detkit info``: what a model file says of itself, and what a network is made of, layer by layer."""

from __future__ import annotations

import re
from typing import Annotated

from typer import Argument, Option

from detkit.cli.common import Printable
from detkit.errors import DetkitError


def info(
    name: Annotated[str, Argument(metavar="FILE|NAME", help="Model file, run folder, config, shipped name, backbone.")],
    layers: Annotated[bool, Option("--layers", help="Of a model file too, the table of its layers.")] = False,
    size: Annotated[
        str | None, Option("--input", metavar="HxWx3", help="Image that the layers see (default: the network's).")
    ] = None,
    num_classes: Annotated[int | None, Option(min=1, help="Of a backbone's classifier or a config's detector.")] = None,
) -> Printable:
    """Show a model file's classes, input geometry, scores and training record (no torch, nothing executed), or a
    network's layers: shapes, parameters, multiply-adds, receptive field and stride in pixels of the input."""
    pixels = None if size is None else _pixels(size)
    from detkit.explain.describe import describe_model

    return describe_model(name, layers=layers, size=pixels, num_classes=num_classes)


def _pixels(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)(x3)?", text.lower())
    if not found:
        raise DetkitError(f"no size of an image: {text}", "--input", "give height x width x 3 channels, as 224x224x3")
    return int(found[1]), int(found[2])
