"""``detkit quickstart``: from nothing to boxes in real photos, offline, with the shipped model."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import message
from detkit.printed import Printed

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
    images: Annotated[list[Path] | None, Argument(metavar="IMAGE...", help="Instead of the packages' own.")] = None,
    train: Annotated[bool, Option("--train", help="First train a small one on toy images: a minute.")] = False,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Detect in photos that packages bring along, or in yours. Prints what is there and draws quickstart.jpg."""
    from detkit import api
    from detkit.data.toy import toy_sample
    from detkit.io.files import refuse_existing
    from detkit.io.images import read_image, write_image

    refuse_existing(OUT, overwrite)
    named = [(str(path), read_image(path)) for path in images or ()]
    if train:
        named = [("a new toy image", toy_sample(NEW_IMAGE, 320).image), *named]
        detector = _trained()
    else:
        named = named or [(path.name, read_image(path)) for path in installed_photos()]
        detector = api.load(device="cpu")
    found = [(image, detector.predict(image)) for _, image in named]
    write_image(OUT, _side_by_side(found), overwrite=overwrite)
    records, lines = [], []
    for (name, _), (_, detections) in zip(named, found, strict=True):
        rows = detections.to_records()
        records.append({"source": name, "detections": rows})
        lines.append(f"{name}: {len(rows)} found")
        lines += [f"  {row['label']:<12} {row['score']:.3f}  box {row['box']}" for row in rows]
    return Printed({"image": OUT, "found": records}, [*lines, f"drawn: {OUT}"])


def installed_photos() -> list[Path]:
    """Those of PHOTOS whose package is installed; no package is imported."""
    places = [(find_spec(package), file) for package, file in PHOTOS]
    paths = [Path(spec.origin).parent / file for spec, file in places if spec is not None and spec.origin]
    return [path for path in paths if path.is_file()]


def _trained() -> Detector:
    """A detector of toy shapes; says how good it is on those kept apart."""
    import detkit

    message("Training a small detector of circles, squares and triangles on images that are drawn for it.")
    with tempfile.TemporaryDirectory(prefix="detkit-") as folder:
        detkit.train("toy", out=Path(folder) / "run")
        detector = detkit.load(Path(folder) / "run", device="cpu")
    message(f"AP50 on 32 toy images that it was not trained on: {detector.scores['AP50']:.3f}")
    return detector


def _side_by_side(images: list[tuple[np.ndarray, Detections]]) -> np.ndarray:
    """One image of all, scaled to the first one's height and then drawn on, so that all labels are of one size."""
    import numpy as np

    from detkit.io.draw import draw_detections, scaled_to

    height, drawn = images[0][0].shape[0], []
    for image, found in images:
        factor = height / image.shape[0]
        scaled = scaled_to(image, round(factor * max(image.shape[:2])))
        drawn.append(draw_detections(scaled, replace(found, boxes=found.boxes * np.float32(factor))))
    return np.concatenate(drawn, axis=1)
