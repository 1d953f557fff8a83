"""``detkit inspect``: what a network looks at, as images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from detkit.cli import options
from detkit.cli.common import message
from detkit.cli.options import names_in
from detkit.errors import DetkitError
from detkit.printed import Printed

if TYPE_CHECKING:
    from detkit.detector import Detector
    from detkit.explain.drawings import Drawing

app = Typer(help="Show what a network looks at, as images.", no_args_is_help=True)

_Image = Annotated[str, Argument(metavar="IMAGE", help="An image.")]
_Folder = Annotated[Path | None, Option("--out", "-o", help="Folder for the images (default: a new one in runs/).")]


@dataclass(frozen=True)
class _Network:
    """What is looked into."""

    model: Annotated[str, Argument(metavar="MODEL|BACKBONE", help="Model file, run folder, shipped name or backbone.")]
    weights: Annotated[str | None, Option(help="Of a backbone: imagenet (the default), none or a file.")] = None
    size: options.Size = None

    def load(self) -> Detector:
        from detkit.backbones import BACKBONES
        from detkit.registry import renamed

        name = renamed(self.model)
        if name in BACKBONES:
            from detkit.explain.features import published_network

            try:
                return published_network(name, self.weights or "imagenet", self.size)
            except DetkitError as error:  # which may speak of a config's keys
                key = r"(model\.)?backbone\.weights:?"
                where, do = (re.sub(key, "--weights", text) for text in (error.where, error.do))
                raise DetkitError(error.what, where, do, code=error.code) from None
        if self.weights is not None:
            raise DetkitError("--weights is for a backbone; a model has its own", name, "leave it out")
        if name.startswith("torchvision/") and not Path(name).exists():
            from detkit.importers.torchvision import NAME, import_torchvision

            if name != f"torchvision/{NAME}":
                do = f"give torchvision/{NAME}, a model file or a backbone's name"
                raise DetkitError(f"of torchvision's detectors only {NAME} can be looked into", name, do)
            return import_torchvision(name, size=(self.size, self.size)) if self.size else import_torchvision(name)
        from detkit import api

        return api.load(name, size=self.size)


@app.command()
def filters(network: _Network, out: _Folder = None, overwrite: options.Overwrite = False) -> Printed:
    """Draw the filters of the first layer.

    Grey is 0, and each filter's largest weight is as bright as can be.
    """
    from detkit.explain.drawings import draw_filters

    return _save(draw_filters(network.load()), out, overwrite)


@app.command()
def maps(
    network: _Network,
    image: _Image,
    stage: Annotated[int | None, Option(help="Only this stage, from 0 (default: each).")] = None,
    count: Annotated[int, Option("--count", "-n", min=1, help="Maps of a stage: those that vary most.")] = 35,
    out: _Folder = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Draw what each stage makes of an image.

    A file per stage; each map from its lowest answer (black) to its highest.
    """
    from detkit.explain.drawings import draw_maps
    from detkit.io.images import read_image

    pixels = read_image(image)
    return _save(draw_maps(network.load(), pixels, stage, count), out, overwrite)


@app.command()
def patches(
    network: _Network,
    labelled: options.LabelledData,
    stage: Annotated[int, Option(help="Stage of the backbone, from 0.")] = 2,
    channels: Annotated[str | None, Option(help="0,5,17 (default: eight that stand out most).")] = None,
    count: Annotated[int, Option("--count", "-n", "--pictures", min=1, help="Images to look at.")] = 300,
    window: Annotated[int | None, Option(min=1, help="Input pixels to cut out (default: what a cell sees).")] = None,
    seed: options.Seed = 0,
    out: _Folder = None,
    overwrite: options.Overwrite = False,
) -> tuple[Printed, int]:
    """Draw the patches of images that excite a channel most.

    Nine per channel, of different images, in a row, the strongest first. A patch is what a cell sees (its receptive
    field, or --window of it), the frame in it the cell itself.
    """
    from detkit.data.dataset import Dataset
    from detkit.explain.drawings import draw_patches
    from detkit.io.files import refuse_existing

    words = names_in(channels or "")
    if not all(word.isdecimal() for word in words):
        raise DetkitError(f"no list of channels: {channels}", "--channels", "give numbers, as 0,5,17")
    if out is not None:  # looking at the images takes long
        refuse_existing(out / f"stage{stage}-patches.jpg", overwrite)
    dataset = Dataset(labelled.read())
    chosen = [int(word) for word in words]
    detector = network.load()
    drawn = draw_patches(detector, dataset, stage, channels=chosen, images=count, window=window, seed=seed)
    return _save(drawn, out, overwrite), 3 if drawn.facts["failed"] else 0


@app.command()
def cam(
    network: _Network,
    image: _Image,
    classes: Annotated[str | None, Option(help="Which, by name: cat,dog (default: that of highest score).")] = None,
    stage: Annotated[int | None, Option(help="From 0 (default: the deepest that the answer comes through).")] = None,
    out: _Folder = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Draw where an image speaks for a class: Grad-CAM.

    From blue to red; of classifiers and of detectors.
    """
    from detkit.explain.drawings import draw_cam

    return _save(draw_cam(network.load(), image, names_in(classes or ""), stage), out, overwrite)


@app.command()
def edges(
    image: Annotated[str | None, Argument(metavar="IMAGE", help="Default: 6 x 6 numbers, as in textbooks.")] = None,
    learn: Annotated[str, Option(help="The filter that gradient descent is to find.")] = "sobel",
    seed: options.Seed = 0,
    out: _Folder = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Filter an image by edge filters, made by hand and learned.

    The last one is what gradient descent learns from the answers of another (--learn).
    """
    from detkit.explain.drawings import draw_edges

    return _save(draw_edges(image, learn, seed), out, overwrite)


def _save(drawn: Drawing, out: Path | None, overwrite: bool) -> Printed:
    """Writes the images; prints what is said and their paths."""
    for note in drawn.notes:
        message(note)
    files = drawn.save(out, overwrite=overwrite)
    return Printed({"files": files, **drawn.facts}, [*drawn.text, *map(str, files)])
