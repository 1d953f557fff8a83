"""labelme's files, one .json for each image; those of X-AnyLabeling are the same.

https://github.com/wkentaro/labelme: a shape has a label, points in pixels, and a shape_type; shapes of one label and
group are one object, as in its own converter to COCO.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import msgspec

from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, image_folders, json_kind
from detkit.data.listing import PARTS, count_skipped, files_in
from detkit.io.files import names_in
from detkit.io.images import IMAGE_SUFFIXES

CLASS_LIST = "labels.txt"  # what labelme --labels reads
_NOT_CLASSES = ("__ignore__", "_background_")
_WITHOUT_AREA = ("point", "points", "line", "linestrip", "lines")


class _Shape(msgspec.Struct):
    label: str | int | float | None = None
    points: list[tuple[float, float]] = []
    shape_type: str | None = None
    group_id: int | str | None = None
    flags: dict[str, object] | None = None
    difficult: bool | None = None  # X-AnyLabeling's

    @property
    def kind(self) -> str:
        """How it was drawn."""
        return self.shape_type or "polygon"


class _File(msgspec.Struct):
    shapes: list[_Shape]
    imagePath: str | None = None
    imageWidth: float | None = None
    imageHeight: float | None = None


class LabelmeFormat(LabelFilesFormat):
    """A folder with a .json for each image, or with such a folder for each part."""

    name = "labelme"
    looked_for = "a folder of labelme's .json files"

    def places(self, path: Path) -> dict[str, Path]:
        """The folder, or those of its parts."""
        parts = {name: path / name for name in PARTS if _has_labels(path / name)}
        return parts or ({path.stem: path} if _has_labels(path) else {})

    def listed(self, path: Path) -> list[str]:
        """Those of labels.txt."""
        file = path / CLASS_LIST
        return [name for name in names_in(file) if name not in _NOT_CLASSES] if file.is_file() else []

    def table(self, place: Path) -> LabelTable:
        """The folder, with its sub-folders."""
        home = place if place.is_dir() else place.parent
        table = LabelTable(place, image_folders(home))
        files = sorted(home.rglob("[!.]*.json")) if place.is_dir() else [place]
        for file, content in table.decoded(files, _File, "a file of labelme"):
            name = _image_name(file, content.imagePath or "", home)
            _add_shapes(table, table.image(name, content.imageWidth, content.imageHeight), content.shapes, file)
        count_skipped(files_in(home), table.findings)
        return table


def _has_labels(path: Path) -> bool:
    """True for a file of labelme's, and for a folder among whose first .json files, or its folders', is one."""
    if path.is_file():
        return path.suffix.lower() == ".json" and json_kind(path) == "labelme"
    return any(json_kind(p) == "labelme" for p in islice(chain(path.glob("*.json"), path.glob("[!.]*/*.json")), 5))


def _image_name(file: Path, name: str, home: Path) -> str:
    """The image of a label file, relative to ``home``: what it says, or else the one beside it, of its name."""
    name = name.replace("\\", "/")
    said, beside = file.parent / name, file.parent / Path(name).name
    own = (file.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES))
    # Only images: a label file brings nothing else into a copy of the data.
    usable = (p for p in (said, beside, *own) if p.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(p))
    found = next(usable, beside)
    return found.relative_to(home).as_posix() if found.is_relative_to(home) else name


def _add_shapes(table: LabelTable, image: int, shapes: Sequence[_Shape], file: Path) -> None:
    groups: dict[object, list[tuple[int, _Shape]]] = {}
    for number, shape in enumerate(shapes):
        key = number if shape.group_id is None else (shape.label, shape.group_id)
        groups.setdefault(key, []).append((number, shape))
    for group in groups.values():
        places = [f"{file}: shapes[{number}]" for number, _ in group]
        boxes = [table.shape(one.kind, _box(one), at) for at, (_, one) in zip(places, group, strict=True)]
        if not (corners := [box for box in boxes if box is not None]):
            continue
        table.findings.add("shape of a group made into one box", places[0], count=len(corners) - 1, note=True)
        left, top, right, bottom = zip(*corners, strict=True)
        label, flags = group[0][1].label, [one.flags or {} for _, one in group]
        crowd, difficult = (any(flag.get(name) is True for flag in flags) for name in ("crowd", "difficult"))
        difficult = difficult or any(one.difficult for _, one in group)
        box = min(left), min(top), max(right), max(bottom)
        table.add(image, "" if label is None else str(label), box, places[0], crowd=crowd, difficult=difficult)


def _box(shape: _Shape) -> Box | None:
    if shape.kind in _WITHOUT_AREA or not shape.points:
        return None
    xs, ys = zip(*shape.points, strict=True)
    if shape.kind == "circle":  # its centre, and a point on it
        radius = math.dist(shape.points[0], shape.points[-1])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    last = 1 if shape.kind == "mask" else 0  # its points are its first and last pixels
    return min(xs), min(ys), max(xs) + last, max(ys) + last
