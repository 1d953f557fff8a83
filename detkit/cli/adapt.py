"""``detkit adapt``: a model for images of another kind, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable


def adapt(
    model: Annotated[str, Argument(metavar="MODEL", help="Weights file, run folder or shipped name.")],
    images: Annotated[str, Argument(help="A folder of images of the other kind, a video, a pattern.")],
    out: Annotated[Path, Option("--out", "-o", help="The model file to write.")],
    share: Annotated[float, Option(help="Of the new statistics; the rest are the model's own.")] = 1.0,
    limit: Annotated[int, Option(min=1, help="Images to look at.")] = 500,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Fit a model to images of another kind, without labels. Its BatchNorms take their statistics (AdaBN); nothing is
    learned. The kind should be one: all dark, all drawn."""
    from detkit import adapting

    done = adapting.adapt(model, images, out, share=share, limit=limit, overwrite=overwrite)
    return done, 3 if done.facts["failed"] else 0
