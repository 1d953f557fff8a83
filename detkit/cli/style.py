"""``detkit style``: the content of one image in the style of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import message, progress
from detkit.cli.options import names_in
from detkit.errors import DetkitError
from detkit.printed import Printed, counted

if TYPE_CHECKING:
    import numpy as np


def style(
    content: Annotated[str, Argument(metavar="CONTENT", help="The image whose content stays.")],
    look: Annotated[str, Argument(metavar="STYLE", help="The image whose style it takes.")],
    network: Annotated[str, Option(help="The backbone that looks.")] = "efficientnet_lite0",
    weights: Annotated[str, Option(help="imagenet, none or a file.")] = "imagenet",
    layers: Annotated[str, Option(help="Stages, from 0: of the content, then of the style.")] = "2:0,1,2,3",
    alpha: Annotated[float, Option(min=0, help="Weight of the content.")] = 1.0,
    beta: Annotated[float, Option(min=0, help="Weight of the style.")] = 1.0,
    steps: Annotated[int, Option(min=1, help="Of the optimizer.")] = 100,
    optimizer: Annotated[Literal["lbfgs", "adam"], Option(help="What makes J small.")] = "lbfgs",
    start: Annotated[Literal["content", "noise"], Option(help="What the image is at first.")] = "content",
    size: Annotated[int, Option(min=32, help="Longer side of the result, in pixels.")] = 256,
    every: Annotated[int, Option(min=0, help="Keep the image after each so many steps, too (0: none).")] = 0,
    seed: options.Seed = 0,
    out: Annotated[Path, Option("--out", "-o", help="The image to write.")] = Path("styled.jpg"),
    overwrite: options.Overwrite = False,
) -> Printed:
    """Paint an image in the style of another. J = alpha J_content + beta J_style is made small (Gatys et al. 2016)."""
    from detkit.explain.features import published_network
    from detkit.explain.style import transfer_style
    from detkit.io.files import refuse_existing
    from detkit.io.images import read_image, write_image

    one, _, several = layers.partition(":")
    if not all(word.isdecimal() for word in (one, *names_in(several), *([] if names_in(several) else ["x"]))):
        raise DetkitError(f"no stages: {layers}", "--layers", "give the content's and the style's, as 2:0,1,2,3")
    refuse_existing(out, overwrite)
    images = read_image(content), read_image(look)
    losses: list[float] = []

    def told(step: int, loss: float, image: np.ndarray) -> None:
        losses.append(loss)
        progress(step, steps, "steps")
        if every and step % every == 0 and step < steps:
            kept = out.with_stem(f"{out.stem}-{step:04d}")
            write_image(kept, image, overwrite=overwrite)
            message(f"J = {loss:.4f}: {kept}")

    made = transfer_style(
        published_network(network, weights),
        *images,
        content_stage=int(one),
        style_stages=[int(word) for word in names_in(several)],
        alpha=alpha,
        beta=beta,
        size=size,
        steps=steps,
        optimizer=optimizer,
        start=start,
        seed=seed,
        on_step=told,
    )
    write_image(out, made, overwrite=overwrite)
    facts = {"out": out, "steps": steps, "first": losses[0], "last": losses[-1]}
    return Printed(facts, [f"{out}: J from {losses[0]:.4f} to {losses[-1]:.4f} in {counted(steps, 'step')}"])
