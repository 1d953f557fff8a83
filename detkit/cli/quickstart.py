"""``detkit quickstart``: from nothing to boxes in a picture, offline, in under two minutes.

No general model is shipped yet, so it trains a small detector on toy pictures that it draws itself, and says so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli.common import JsonOption, OverwriteOption, message, print_json

if TYPE_CHECKING:
    from detkit.detector import Detector

OUT = Path("quickstart.jpg")
NEW_PICTURE = 424242  # a seed that no training picture has


def quickstart(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Your own pictures to detect in as well.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train a small detector on toy pictures, detect in a new one (and in yours), draw quickstart.jpg."""
    from detkit.data.toy import toy_sample
    from detkit.io.draw import draw_detections
    from detkit.io.files import refuse_existing
    from detkit.io.images import read_image, write_image

    refuse_existing(OUT, overwrite)
    images = [("a new toy picture", toy_sample(NEW_PICTURE, 320).image)]
    images += [(str(path), read_image(path)) for path in pictures or ()]
    message("No general model is shipped yet: training a small one on toy pictures, about a minute on two cores.")
    detector, ap50 = _train()
    message(f"AP50 on 32 toy pictures that it was not trained on: {ap50:.3f}")
    found = [(name, image, detector.predict(image)) for name, image in images]
    write_image(OUT, _side_by_side([draw_detections(image, d) for _, image, d in found]), overwrite=overwrite)
    if as_json:
        print_json(
            {"ap50": ap50, "picture": OUT, "found": [{"source": n, "detections": d.to_records()} for n, _, d in found]}
        )
        return 0
    for name, _, detections in found:
        print(f"{name}: {len(detections)} found")
        for r in detections.to_records():
            print(f"  {r['label']:<10} {r['score']:.3f}  box {r['box']}")
    if pictures:
        print("It knows circles, squares and triangles only: detkit train --data DATA makes one for your own classes.")
    print(f"drawn: {OUT}")
    return 0


def _train() -> tuple[Detector, float]:
    """A detector of toy shapes, and its AP50 on those kept apart."""
    from detkit import api
    from detkit.data.toy import write_toy_data

    with tempfile.TemporaryDirectory(prefix="detkit-") as folder:
        data = write_toy_data(Path(folder) / "toy", train=256, val=32)
        run = Path(folder) / "run"
        done = api.train("toy", data=data, out=run, on_event=_tell)
        return api.load(run, device="cpu"), done.row["AP50"]


def _tell(event: Any) -> None:
    from detkit.engine.events import EpochDone

    if isinstance(event, EpochDone):
        message(f"epoch {event.epoch + 1} of {event.epochs}: AP50 {event.row.get('AP50', float('nan')):.3f}")


def _side_by_side(pictures: list[Any]) -> Any:
    """One picture of all, scaled to the first one's height."""
    import cv2
    import numpy as np

    height = pictures[0].shape[0]
    scaled = [cv2.resize(p, (max(1, round(p.shape[1] * height / p.shape[0])), height)) for p in pictures]
    return np.concatenate(scaled, axis=1)
