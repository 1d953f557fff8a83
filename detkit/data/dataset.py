"""One way in to every labelled data set: ``read`` recognises the format, ``Dataset`` hands out samples."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from detkit.data.annotations import UNSAFE, Annotations, Finding, Findings, Source, concat_annotations, fills
from detkit.errors import DetkitError
from detkit.structures import Sample, Target

__all__ = ["FORMATS", "Annotations", "Dataset", "Finding", "Findings", "Source", "concat", "read", "splits"]

# Each module has recognises(path) -> bool, read(path, split, images) -> Annotations, splits(path) -> list[str],
# and LOOKED_FOR, the sentence that says what it recognises.
FORMATS = {
    "coco": "detkit.data.coco",
    "voc": "detkit.data.voc",
    "yolo": "detkit.data.yolo",
    "folders": "detkit.data.folders",
}


def format_of(path: str | Path) -> tuple[str, ModuleType]:
    """Name and reader module of the format that ``path`` holds.

    Raises DetkitError, saying what was looked for, if nothing is there or it is none of the known formats.
    """
    path = Path(path)
    for name, place in FORMATS.items():  # most data is of the first format: the other readers are not imported then
        module = importlib.import_module(place)
        if module.recognises(path):
            return name, module
    wanted = "DATA is " + "; or ".join(importlib.import_module(place).LOOKED_FOR for place in FORMATS.values())
    if not path.exists():
        raise DetkitError("there is no such data set", str(path), wanted)
    kind = "folder" if path.is_dir() else "file"
    raise DetkitError(f"this {kind} is not a data set that detkit knows", str(path), wanted)


def splits(path: str | Path) -> list[str]:
    """Names of the parts that the data set has (train, val, ...); empty if it is one piece."""
    return list(format_of(path)[1].splits(Path(path)))


def read(
    path: str | Path, *, split: str | None = None, images: str | Path | None = None, refuse: bool = True
) -> Annotations:
    """Reads a COCO json, a PASCAL VOC folder, a YOLO data.yaml or a folder of class folders, recognised by looking.

    split: one part; None reads all of them. images: folder of the images, if not where the format puts them.
    Raises DetkitError for a path, part or image folder that is not there, for a file that cannot be read, and for
    labels that are not safe to read (``refuse=False`` counts these only); single bad records are counted in
    ``Annotations.findings``.
    """
    path = Path(path)
    module = format_of(path)[1]
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DetkitError("there is no such image folder", str(folder), "give --images the folder of the images")
    result: Annotations = module.read(path, split, folder)
    for unsafe in (found for found in result.findings if refuse and found.name == UNSAFE):
        what = f"{unsafe.count} label files declare XML entities, which can exhaust the memory"
        raise DetkitError(what, unsafe.examples[0], "remove such a file, or the <!DOCTYPE ...> at its top")
    return result


class Dataset:
    """Samples of annotations: images are read when asked for.

    annotations: see there; proposals: called with (image, path) in the process that loads, returns (R, 4) float32 xyxy
    boxes of the original image; None: samples have no proposals.
    """

    def __init__(
        self, annotations: Annotations, *, proposals: Callable[[np.ndarray, str], np.ndarray] | None = None
    ) -> None:
        self.annotations = annotations
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.annotations.classes

    @property
    def class_ids(self) -> tuple[int | str, ...]:
        """The file's own ids of the classes, by label."""
        return self.annotations.class_ids

    def load(self, i: int, reduce_to: int | None = None) -> Sample:
        """Image ``i`` as stored, with its objects (boxes clipped to the image).

        reduce_to: an image whose longer side is at least twice as many pixels may come at 1/2, 1/4 or 1/8 of its
        size, decoded in less time, its objects with it. Raises DetkitError if the image is missing or broken.
        """
        from detkit.io.images import image_size, read_image

        path = self.annotations.files[i]
        # Proposals are found in, and cached for, the image as it is.
        image = read_image(path, reduce_to=reduce_to if self.proposals is None else None)
        height, width = image.shape[:2]
        proposals = None if self.proposals is None else self.proposals(image, path)
        if reduce_to is not None and self.proposals is None:
            width, height = image_size(path)
        target = self.target(i, (height, width))
        if (height, width) != image.shape[:2]:
            target = _scaled(target, image.shape[1] / width, image.shape[0] / height)
        return Sample(image, target, proposals, self.annotations.image_ids[i], path)

    def target(self, i: int, size: tuple[int, int] | None = None) -> Target:
        """The objects of image ``i``, clipped to ``size`` (height, width in pixels; None: not clipped).

        An image whose only object fills it is labelled as a whole too (``image_label``).
        """
        a = self.annotations
        rows = slice(int(a.offsets[i]), int(a.offsets[i + 1]))
        xywh = a.xywh[rows]
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        label = None
        if size is not None:
            if len(xywh) == 1 and fills(xywh, np.asarray([size])).all():
                label = int(a.labels[rows.start])
            limit = np.asarray([size[1], size[0], size[1], size[0]], dtype=np.float64)
            boxes = np.clip(boxes, 0, limit)
        # In float32, as a model sees it: a sliver may vanish by the rounding.
        boxes = boxes.astype(np.float32)
        points = None if a.points is None else a.points[rows].astype(np.float32)
        flags = a.crowd[rows], a.difficult[rows]
        target = Target(boxes, a.labels[rows], *flags, a.area[rows], points=points, image_label=label)
        return target[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]

    def labels_of(self, i: int) -> np.ndarray:
        """Labels of the objects of image ``i`` without reading the image."""
        a = self.annotations
        return a.labels[a.offsets[i] : a.offsets[i + 1]]

    def wh(self) -> np.ndarray:
        """(N, 2) float64 widths and heights in pixels of all objects that are not crowds."""
        return self.annotations.xywh[~self.annotations.crowd, 2:]

    def with_proposals(self, proposals: Callable[[np.ndarray, str], np.ndarray]) -> Dataset:
        """The same images with this source of proposals."""
        return Dataset(self.annotations, proposals=proposals)

    def subset(self, images: Sequence[int] | np.ndarray) -> Dataset:
        """These images, in this order."""
        return Dataset(self.annotations.subset(images), proposals=self.proposals)


def _scaled(target: Target, x: float, y: float) -> Target:
    boxes = target.boxes * np.asarray([x, y, x, y], dtype=np.float32)
    points = None if target.points is None else target.points * np.asarray([x, y, 1], dtype=np.float32)
    return replace(target, boxes=boxes, area=target.area * x * y, points=points)


def concat(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one; classes are united by name."""
    if not datasets:
        raise ValueError("concat needs at least one data set")
    return Dataset(concat_annotations([d.annotations for d in datasets]), proposals=datasets[0].proposals)
