"""Toy images with labels, drawn from a seed: coloured shapes on textured ground.

They stand in for photos where none may be shipped: ``quickstart --train`` and the tests learn from them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import cv2
import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.coco import CocoFormat
from detkit.data.convert import write_coco_json
from detkit.data.reading import ImageTable, ObjectTable, assemble
from detkit.interfaces import DatasetFormat
from detkit.io.cache import cache_folder
from detkit.io.images import write_image
from detkit.structures import Sample, Target
from detkit.tables import truth_of

CLASSES = ("circle", "square", "triangle")


def toy_sample(seed: int, size: int = 160, most: int = 4) -> Sample:
    """One image of ``size`` x ``size`` pixels with 1 to ``most`` shapes that do not overlap much."""
    rng = np.random.default_rng(seed)
    image = _ground(rng, size)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, most + 1))):
        side = int(rng.integers(size // 6, size // 2))
        x, y = (int(v) for v in rng.integers(0, size - side, 2))
        box = (x, y, x + side, y + side)
        if any(x < x2 and x1 < x + side and y < y2 and y1 < y + side for x1, y1, x2, y2 in boxes):
            continue
        label = int(rng.integers(len(CLASSES)))
        _draw(image, label, box, _colour(rng, image, box))
        boxes.append(box)
        labels.append(label)
    return Sample(image, Target(np.array(boxes, np.float32), np.array(labels)), image_id=seed, path=f"{seed:04d}.png")


def write_toy_data(folder: Path, *, train: int = 64, val: int = 16, size: int = 160, seed: int = 0) -> Path:
    """Writes toy images and one COCO json per part.

    Args:
        folder: Where to; returned.
        train: Images of the part train.
        val: Images of the part val.
        size: Side of the images in pixels.
        seed: Of the first image.
    """
    for part, count, start in (("train", train, seed), ("val", val, seed + 100_000)):
        samples = [toy_sample(start + i, size) for i in range(count)]
        files = [str(folder / part / sample.path) for sample in samples]
        for file, sample in zip(files, samples, strict=True):
            write_image(file, sample.image)
        truth = truth_of([sample.target for sample in samples], CLASSES)
        images = ImageTable(list(range(count)), files, np.full((count, 2), size, np.int32))
        objects = ObjectTable(truth.image, truth.xywh, truth.label, str)
        made = assemble(objects, images, dict(enumerate(CLASSES, 1)), Findings(), Source("toy", folder))
        write_coco_json(made, folder / "annotations" / f"instances_{part}.json")
    return folder


class ToyFormat(DatasetFormat):
    """The word ``toy``, where nothing is called so: toy images, drawn once into the cache folder."""

    looked_for = "the word toy (shapes that are drawn for it)"

    def recognises(self, path: Path) -> bool:
        """True for the word, unless a file or folder is called so."""
        return path == Path("toy") and not path.exists()

    def splits(self, path: Path) -> list[str]:
        """Its two parts."""
        return ["train", "val"]

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Draws 256 images for train and 32 for val, unless they are there; see ``DatasetFormat.read``."""
        folder = cache_folder() / "toy-160"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            drawn = write_toy_data(Path(mkdtemp(dir=folder.parent)), train=256, val=32)
            with suppress(OSError):  # another process was quicker
                drawn.rename(folder)
        return CocoFormat().read(folder, split, images)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = rng.integers(60, 190, (6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 6, (size, size, 1))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, image: np.ndarray, box: tuple[int, int, int, int]) -> list[int]:
    """A colour far enough from the ground behind the shape to be seen."""
    x1, y1, x2, y2 = box
    behind = image[y1:y2, x1:x2].reshape(-1, 3).mean(axis=0)
    tries = rng.integers(0, 256, (8, 3))
    return [int(v) for v in tries[np.abs(tries - behind).sum(axis=1).argmax()]]


def _draw(image: np.ndarray, label: int, box: tuple[int, int, int, int], colour: list[int]) -> None:
    x1, y1, x2, y2 = box
    if label == 0:
        radius = (x2 - x1) // 2
        cv2.circle(image, (x1 + radius, y1 + radius), radius - 1, colour, -1, cv2.LINE_AA)
    elif label == 1:
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour, -1)
    else:
        corners = np.array([[(x1 + x2) // 2, y1], [x1, y2 - 1], [x2 - 1, y2 - 1]], np.int32)
        cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)
