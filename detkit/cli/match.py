"""``detkit match``: whose is this image, and which are like it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from detkit.cli import options
from detkit.errors import DetkitError, nearest_path
from detkit.printed import Printed, aligned, counted

if TYPE_CHECKING:
    import numpy as np

    from detkit.detector import Detector

app = Typer(help="Match images by their vectors.", no_args_is_help=True)

_GalleryFile = Annotated[Path, Argument(metavar="GALLERY", help="File of known identities, as vectors.")]


@dataclass(frozen=True)
class _Model:
    """What makes the vectors."""

    model: Annotated[
        str, Option("--model", "-m", help="Weights file, run folder or shipped name; best with head embed.")
    ] = "default"
    device: options.Device = None

    def load(self) -> Detector:
        from detkit.config.build import load_detector
        from detkit.devices import pick_device

        return load_detector(self.model).to(pick_device(self.device or "auto"))


@dataclass(frozen=True)
class _Threshold:
    """From when on two images are taken for one identity."""

    threshold: Annotated[float | None, Option(help="Least likeness (default: by --false-accepts).")] = None
    false_accepts: Annotated[
        float, Option(min=0.0, max=1.0, help="Share at most, of pairs of different identities of --data.")
    ] = 0.01
    data: Annotated[str | None, Option(help="Folders of identities (default: what the model was validated on).")] = None
    split: options.SplitName = None

    def of(self, model: Detector) -> float:
        from detkit.gallery import threshold_of

        if self.data is None and self.false_accepts != 0.01:
            do = "give --data too; the model itself knows the threshold of 0.01"
            raise DetkitError("a threshold is found on labelled images", "--false-accepts", do)
        return (
            threshold_of(model, self.data, self.split, self.false_accepts) if self.threshold is None else self.threshold
        )


def _vectors(model: Detector, files: list[str]) -> np.ndarray:
    from detkit.io.images import read_image

    return model.vectors([read_image(file) for file in files])


@app.command()
def verify(
    first: Annotated[str, Argument(metavar="IMAGE", help="Of an identity.")],
    second: Annotated[str, Argument(metavar="IMAGE", help="Of the same one, or of another.")],
    by: _Model = _Model(),
    limit: _Threshold = _Threshold(),
) -> tuple[Printed, int]:
    """Are two images of one identity? Exits with 0 if they are, else with 3."""
    from detkit.metrics.identities import likeness

    model = by.load()
    least = limit.of(model)
    table = _vectors(model, [first, second])
    alike = float(likeness(table[:1], table[1:], model.head.measure)[0, 0])
    same = alike >= least
    said = f"{'one identity' if same else 'two identities'}: likeness {alike:.3f}, threshold {least:.3f}"
    return Printed({"same": same, "likeness": alike, "threshold": least}, [said]), 0 if same else 3


@app.command()
def enrol(
    gallery: _GalleryFile,
    name: Annotated[str, Argument(help="Of the identity.")],
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="Of it; one is enough.")],
    by: _Model = _Model(),
) -> Printed:
    """Add an identity to a gallery. Nothing is trained, no image is kept; a new file is made where there is none."""
    from detkit.gallery import Gallery, weights_hash

    model = by.load()
    known = Gallery.load(gallery, model) if gallery.exists() else Gallery(weights_hash(model))
    known.enrol(name, _vectors(model, images))
    known.save(gallery)
    count = len(set(known.names))
    said = f"{gallery}: {counted(count, 'identity')}, {counted(len(known.names), 'image')}"
    return Printed({"identities": count, "images": len(known.names)}, [said])


@app.command()
def identify(
    gallery: _GalleryFile,
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="Of somebody who may be known.")],
    by: _Model = _Model(),
    limit: _Threshold = _Threshold(),
) -> Printed:
    """Whose is each image, of those in a gallery? Below the threshold it is not recognised."""
    from detkit.gallery import Gallery

    model = by.load()
    known, least = Gallery.load(gallery, model), limit.of(model)
    facts, lines = [], []
    for file, vector in zip(images, _vectors(model, images), strict=True):
        nearest, alike = known.identify(vector, model.head.measure)[0]
        name = nearest if alike >= least else None
        facts.append({"image": file, "identity": name, "nearest": nearest, "likeness": alike})
        lines.append(f"{file}: {name or 'not recognised'} ({nearest} {alike:.3f}, threshold {least:.3f})")
    return Printed({"threshold": least, "images": facts}, lines)


@app.command()
def search(
    crop: Annotated[str, Argument(metavar="CROP", help="An image.")],
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Of images.")],
    by: _Model = _Model(),
    count: Annotated[int, Option("-n", min=1, help="How many are shown.")] = 10,
) -> Printed:
    """Which images of a folder are most like this one? Most alike first."""
    import numpy as np

    from detkit.io.images import paths_in
    from detkit.metrics.identities import likeness

    if not folder.is_dir() or not (files := [str(path) for path in paths_in(folder)]):
        if folder.is_dir():
            do = "give one that holds them itself, not in folders of its own"
            raise DetkitError("there is no image in this folder", str(folder), do)
        raise DetkitError("there is no such folder", str(folder), nearest_path(folder, "give one with images"))
    model = by.load()
    alike = likeness(_vectors(model, [crop]), _vectors(model, files), model.head.measure)[0]
    best = [(files[i], float(alike[i])) for i in np.argsort(-alike, kind="stable")[:count]]
    rows = [[name, f"{score:.3f}"] for name, score in best]
    return Printed({"found": [{"image": name, "likeness": score} for name, score in best]}, aligned(rows))
