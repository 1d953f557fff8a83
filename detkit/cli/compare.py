"""``detkit compare``: several runs on the same images."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable, message, note


def compare(
    runs: Annotated[list[str], Argument(metavar="RUN RUN...", help="Run folders, or configs that were trained.")],
    data: Annotated[str | None, Option(help="Measure on this instead; then also model files, shipped names.")] = None,
    split: options.SplitName = None,
    images: options.Images = None,
    timed: Annotated[int, Option(min=1, help="Images to take the time of, one by one.")] = 20,
    bootstrap: Annotated[int, Option(min=1, metavar="N", help="Draws of the images.")] = 1000,
    seed: options.Seed = 0,
    batch: Annotated[int, Option(min=1, help="Images at a time, when not timed.")] = 8,
    device: options.Device = None,
    threads: options.Threads = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printable:
    """One table of runs on the same data (their validation images, or --split test): size, AP and AP50, time of an
    image and of training, and which differences are more than noise. --out draws them.

    Runs that were trained or validated on other data are refused.
    """
    if out is not None:
        from detkit.io.figures import image_format
        from detkit.io.files import refuse_existing

        image_format(out)
        refuse_existing(out, overwrite)
    from detkit import comparing

    compared = comparing.compare(
        runs,
        data=data,
        split=split,
        images=images,
        timed=timed,
        bootstrap=bootstrap,
        seed=seed,
        batch=batch,
        device=device,
        threads=threads,
        tell=note,
    )
    if out is not None:
        compared.draw(out, overwrite=overwrite)
        message(f"image: {out}")
    return compared
