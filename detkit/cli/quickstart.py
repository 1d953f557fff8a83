"""``detkit quickstart``: from nothing to boxes in real photos, offline, with the shipped model."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import message, print_json

if TYPE_CHECKING:
    import numpy as np

    from detkit.detector import Detector
    from detkit.structures import Detections

OUT = Path("quickstart.jpg")
# Photos in the public domain that come inside packages: matplotlib is always there, scikit-image may be.
PHOTOS = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
)
NEW_IMAGE = 424242  # a seed that no training image has


def quickstart(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Your own images, instead of the packages'.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="First train a small detector on toy images, about a minute.")
    ] = False,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Detect in photos that come inside installed packages (or in yours), print what is there, draw quickstart.jpg."""
    from detkit import api
    from detkit.data.toy import toy_sample
    from detkit.io.files import refuse_existing
    from detkit.io.images import read_image, write_image

    refuse_existing(OUT, overwrite)
    images = [(str(path), read_image(path)) for path in pictures or ()]
    if train:
        images = [("a new toy image", toy_sample(NEW_IMAGE, 320).image), *images]
        message("Training a small detector of circles, squares and triangles on images that are drawn for it.")
        detector, ap50 = _train()
        message(f"AP50 on 32 toy images that it was not trained on: {ap50:.3f}")
    else:
        images = images or [(path.name, read_image(path)) for path in _installed_photos()]
        detector = api.load(device="cpu")
    found = [(name, image, detector.predict(image)) for name, image in images]
    write_image(OUT, _side_by_side([(image, d) for _, image, d in found]), overwrite=overwrite)
    if as_json:
        print_json({"image": OUT, "found": [{"source": n, "detections": d.to_records()} for n, _, d in found]})
        return 0
    for name, _, detections in found:
        print(f"{name}: {len(detections)} found")
        for r in detections.to_records():
            print(f"  {r['label']:<12} {r['score']:.3f}  box {r['box']}")
    print(f"drawn: {OUT}")
    return 0


def _installed_photos() -> list[Path]:
    """Those of PHOTOS whose package is installed; no package is imported."""
    places = [(find_spec(package), file) for package, file in PHOTOS]
    paths = [Path(spec.origin).parent / file for spec, file in places if spec is not None and spec.origin]
    return [path for path in paths if path.is_file()]


def _train() -> tuple[Detector, float]:
    """A detector of toy shapes, and its AP50 on those kept apart."""
    from detkit import api

    with tempfile.TemporaryDirectory(prefix="detkit-") as folder:
        run = Path(folder) / "run"
        api.train("toy", out=run, on_event=_tell)
        detector = api.load(run, device="cpu")
        return detector, detector.scores["AP50"]


def _tell(event: Any) -> None:
    from detkit.engine.events import EpochDone

    if isinstance(event, EpochDone):
        message(f"epoch {event.epoch + 1} of {event.epochs}: AP50 {event.row.get('AP50', float('nan')):.3f}")


def _side_by_side(pictures: list[tuple[np.ndarray, Detections]]) -> np.ndarray:
    """One image of all, scaled to the first one's height and then drawn on, so that all labels are of one size."""
    import numpy as np

    from detkit.io.draw import draw_detections
    from detkit.io.images import scaled_to

    height, drawn = pictures[0][0].shape[0], []
    for image, found in pictures:
        factor = height / image.shape[0]
        scaled = scaled_to(image, round(factor * max(image.shape[:2])))
        drawn.append(draw_detections(scaled, replace(found, boxes=found.boxes * np.float32(factor))))
    return np.concatenate(drawn, axis=1)
