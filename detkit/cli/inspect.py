"""``detkit inspect``: what a network looks at, as images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import message, names_in, print_json
from detkit.errors import DetkitError

if TYPE_CHECKING:
    import numpy as np

    from detkit.detector import Detector

app = typer.Typer(help="Show what a network looks at, as images.", no_args_is_help=True)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL|BACKBONE", help="Model file, run folder, shipped name, or a backbone's name.")
]
ImageArgument = Annotated[str, typer.Argument(metavar="PICTURE", help="An image.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Of a backbone: imagenet (the default), none or a file.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the images (default: a new one in runs/).")
]
_SIDE = 360  # pixels along the longer side of what is drawn over or filtered


@app.command()
def filters(
    model: ModelArgument,
    weights: WeightsOption = None,
    out: FolderOption = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Draw the filters of the first layer.

    Grey is 0, and each filter's largest weight is as bright as can be.
    """
    import numpy as np

    from detkit.explain.features import first_filters
    from detkit.io.draw import sheet

    found = first_filters(_load(model, weights))
    largest = np.abs(found).max(axis=(1, 2, 3), keepdims=True)
    tiles = [_enlarged(tile, 48) for tile in np.rint(127.5 + 127.5 * found / np.maximum(largest, 1e-12))]
    count, high, wide = found.shape[:3]
    said = f"{count} filters of {high} x {wide}"
    return _write({"filters.png": sheet(tiles)}, out, overwrite, as_json, {"filters": found.shape[:3]}, said)


@app.command()
def maps(
    model: ModelArgument,
    picture: ImageArgument,
    stage: Annotated[int | None, typer.Option("--stage", help="Only this stage, from 0 (default: each).")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Maps of a stage: those that vary most.")] = 35,
    weights: WeightsOption = None,
    size: options.Size = None,
    out: FolderOption = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Draw what each stage makes of an image.

    A file a stage; each map from its lowest answer (black) to its highest.
    """
    import numpy as np

    from detkit.explain.features import stage_maps, stages_of
    from detkit.io.draw import sheet
    from detkit.io.images import read_image

    image = read_image(picture)
    detector = _load(model, weights, size)
    made, shapes = {}, {}
    for number in range(len(stages_of(detector))) if stage is None else [stage]:
        found = stage_maps(detector, image, number)
        shapes[f"stage {number}"] = found.shape
        channels = np.sort(np.argsort(-found.std(axis=(1, 2)), kind="stable")[:count])
        low, high = (f(found[channels], axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        shades = np.rint(255 * (found[channels] - low) / np.maximum(high - low, 1e-12))
        tiles = [_enlarged(np.repeat(tile[..., None], 3, axis=2), 112) for tile in shades]
        made[f"stage{number}.png"] = sheet(tiles, [str(k) for k in channels])
    said = "; ".join(f"{name}: {c} maps of {h} x {w}" for name, (c, h, w) in shapes.items())
    return _write(made, out, overwrite, as_json, {"maps": shapes}, said)


@app.command()
def patches(
    model: ModelArgument,
    data: options.Data,
    stage: Annotated[int, typer.Option("--stage", help="Stage of the backbone, from 0.")] = 2,
    channels: Annotated[
        str | None, typer.Option("--channels", help="0,5,17 (default: eight that stand out most).")
    ] = None,
    pictures: Annotated[int, typer.Option("--images", min=1, help="How many to look at, drawn by --seed.")] = 300,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Pixels of the input to cut out (default: what a cell sees).")
    ] = None,
    weights: WeightsOption = None,
    size: options.Size = None,
    split: options.Split = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    out: FolderOption = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Draw the patches of images that excite a channel most.

    Nine a channel, of different images, in a row, the strongest first. A patch is what a cell sees (its receptive
    field, or --window of it), the frame in it the cell itself.
    """
    from detkit.data.dataset import Dataset, read
    from detkit.explain.features import patches as cut
    from detkit.explain.features import peaks
    from detkit.io.draw import sheet
    from detkit.io.files import refuse_existing

    words = names_in(channels or "")
    if not all(word.isdecimal() for word in words):
        raise DetkitError(f"no list of channels: {channels}", "--channels", "give numbers, as 0,5,17")
    name = f"stage{stage}-patches.jpg"
    if out is not None:  # looking at the images takes long
        refuse_existing(out / name, overwrite)
    dataset = Dataset(read(data, split=split, images=images))
    detector = _load(model, weights, size)
    found = peaks(detector, dataset, stage, images=pictures, seed=seed)
    for line in found.failed:
        message(f"left out: {line}")
    chosen = [int(word) for word in words] or found.choose(8)
    rows = {channel: cut(found, detector, dataset, channel, window=window) for channel in chosen}
    tiles = [patch.image for row in rows.values() for patch in row]
    captions = [f"{channel}: {patch.value:.3g}" for channel, row in rows.items() for patch in row]
    made = {name: sheet(tiles, captions, len(tiles) // len(rows))}
    listed = {k: [{"value": p.value, "path": p.path} for p in row] for k, row in rows.items()}
    facts = {"field": found.field.size, "stride": found.field.stride, "images": len(found.images)}
    said = f"a cell sees {found.field.size:g} pixels, stride {found.field.stride:g}; {len(found.images)} images"
    code = _write(made, out, overwrite, as_json, facts | {"channels": listed, "failed": found.failed}, said)
    return 3 if found.failed else code


@app.command()
def cam(
    model: ModelArgument,
    picture: ImageArgument,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Which, by name: cat,dog (default: the one of highest score).")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", help="From 0 (default: the deepest that the answer comes through).")
    ] = None,
    weights: WeightsOption = None,
    size: options.Size = None,
    out: FolderOption = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Draw where an image speaks for a class: Grad-CAM.

    From blue to red; of classifiers and of detectors.
    """
    from detkit.explain.gradcam import grad_cam, overlaid
    from detkit.io.draw import sheet
    from detkit.io.images import read_image

    image = read_image(picture)
    detector = _load(model, weights, size)
    labels = detector.limits(classes=names_in(classes or "")).classes or (None,)
    drawn, rows = [_at_most(image)], []
    for label in labels:
        found = grad_cam(detector, image, label, stage)
        if not found.heat.any():
            message(f"nothing in this image speaks for {detector.classes[found.label]} at stage {found.stage}")
        drawn.append(_at_most(overlaid(image, found.heat)))
        rows.append({"class": detector.classes[found.label], "score": found.score, "stage": found.stage})
    lines = [f"{row['class']} {row['score']:.2f}, stage {row['stage']}" for row in rows]
    made = {f"{Path(picture).stem}-cam.jpg": sheet(drawn, ["image", *lines], min(len(drawn), 4))}
    return _write(made, out, overwrite, as_json, {"cam": rows}, "\n".join(lines))


@app.command()
def edges(
    picture: Annotated[
        str | None, typer.Argument(metavar="PICTURE", help="An image (default: 6 x 6 numbers, as in textbooks).")
    ] = None,
    learn: Annotated[str, typer.Option("--learn", help="The filter that gradient descent is to find.")] = "sobel",
    seed: options.Seed = 0,
    out: FolderOption = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Filter an image by edge filters, made by hand and learned.

    The last one is what gradient descent learns from the answers of another (--learn).
    """
    import numpy as np

    from detkit.explain import edges as made_by
    from detkit.io.draw import sheet
    from detkit.io.images import read_image

    if learn not in made_by.FILTERS:
        raise DetkitError(f"no filter {learn!r}", "--learn", f"choose one of {', '.join(made_by.FILTERS)}")
    if picture is None:
        pixels = np.repeat(made_by.example()[..., None], 3, axis=2)
    else:
        pixels = _at_most(read_image(picture, reduce_to=_SIDE)).astype(np.float64)
        if min(pixels.shape[:2]) < 3:
            raise DetkitError("the image is smaller than a filter of 3 x 3", picture, "give a larger one")
    learned = made_by.learn(pixels, made_by.FILTERS[learn], seed=seed)
    table = {**made_by.FILTERS, "learned": learned.weights}
    answers = {name: made_by.response(pixels, weights) for name, weights in table.items()}
    off = float(np.abs(learned.weights - made_by.FILTERS[learn]).max())
    if picture is None and not as_json:
        for name, values in {"image": pixels[..., 0], **answers}.items():
            print(name)
            for row in values:
                print("  " + " ".join(f"{value + 0.0:5.0f}" for value in row))
    said = f"learned from {learn}'s answers in {learned.steps} steps: error {learned.error:.2g} of their size, "
    said += f"weights within {off:.2g} of {learn}'s:\n{np.round(learned.weights, 3) + 0.0}"  # no "-0."
    facts = {
        "answers": {name: value if picture is None else value.shape for name, value in answers.items()},
        "learned": {"from": learn, "weights": learned.weights, "error": learned.error, "steps": learned.steps},
    }
    grey = pixels if picture else 25.5 * pixels
    tiles = [grey.astype(np.uint8), *(made_by.as_image(value) for value in answers.values())]
    tiles = [_enlarged(tile, 60) for tile in tiles]
    name = "edges.jpg" if picture else "edges.png"
    return _write({name: sheet(tiles, ["image", *answers], 4)}, out, overwrite, as_json, facts, said)


def _load(name: str, weights: str | None, size: int | None = None) -> Detector:
    from detkit.backbones import BACKBONES
    from detkit.registry import renamed

    name = renamed(name)
    if name in BACKBONES:
        from detkit.explain.features import published

        try:
            return published(name, weights or "imagenet", size)
        except DetkitError as error:  # which may speak of a config's keys
            key = r"(model\.)?backbone\.weights:?"
            where, do = (re.sub(key, "--weights", text) for text in (error.where, error.do))
            raise DetkitError(error.what, where, do, code=error.code) from None
    if weights is not None:
        raise DetkitError("--weights is for a backbone; a model has its own", name, "leave it out")
    if name.startswith("torchvision/") and not Path(name).exists():
        from detkit.importers.torchvision import NAME, import_torchvision

        if name != f"torchvision/{NAME}":
            do = f"give torchvision/{NAME}, a model file or a backbone's name"
            raise DetkitError(f"of torchvision's detectors only {NAME} can be looked into", name, do)
        return import_torchvision(name, size=(size, size)) if size else import_torchvision(name)
    from detkit import api

    return api.load(name, size=size)


def _enlarged(tile: np.ndarray, side: int) -> np.ndarray:
    """Each pixel of (h, w, 3), 0..255, several times, to about ``side`` pixels; larger ones are made that small."""
    import numpy as np

    from detkit.io.images import scaled_to

    pixels, longer = tile.astype(np.uint8), max(tile.shape[:2])
    if longer > 3 * side:
        return scaled_to(pixels, 3 * side)
    times = max(1, round(side / longer))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _at_most(image: np.ndarray) -> np.ndarray:
    from detkit.io.images import scaled_to

    return scaled_to(image, _SIDE) if max(image.shape[:2]) > _SIDE else image


def _write(
    made: Mapping[str, np.ndarray], out: Path | None, overwrite: bool, as_json: bool, facts: dict[str, Any], said: str
) -> int:
    """Writes the images; prints what is said and their paths, or the facts as JSON."""
    from detkit.io.files import numbered_folder, refuse_existing
    from detkit.io.images import write_image

    folder = out or numbered_folder("runs", "inspect")
    files = {folder / name: picture for name, picture in made.items()}
    for file in files:  # all of them before the first is written
        refuse_existing(file, overwrite)
    for file, picture in files.items():
        write_image(file, picture, overwrite=overwrite)
    if as_json:
        print_json({"files": list(files), **facts})
    else:
        print(said, *files, sep="\n")
    return 0
