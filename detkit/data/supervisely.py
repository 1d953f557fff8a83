"""Supervisely's projects: meta.json, and a folder per data set with ann/IMAGE.jpg.json and img/.

https://developer.supervisely.com/getting-started/supervisely-annotation-format. The corners are its first and last
pixels, as its own library counts width and height.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import msgspec

from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, decode_json

_WITHOUT_AREA = ("point", "line", "graph", "polyline", "point_3d")


class _Points(msgspec.Struct):
    exterior: list[tuple[float, float]] = []


class _Bitmap(msgspec.Struct):
    data: str
    origin: tuple[float, float]


class _Object(msgspec.Struct):
    classTitle: str = ""
    geometryType: str = "polygon"
    points: _Points | None = None
    bitmap: _Bitmap | None = None


class _Size(msgspec.Struct):
    width: float | None = None
    height: float | None = None


class _File(msgspec.Struct):
    objects: list[_Object]
    size: _Size = msgspec.field(default_factory=_Size)


class _Class(msgspec.Struct):
    title: str
    shape: str = "any"


class _Meta(msgspec.Struct):
    classes: list[_Class]


class SuperviselyFormat(LabelFilesFormat):
    """A project (its data sets are the parts), or one data set of it."""

    name = "supervisely"
    looked_for = "a Supervisely project (meta.json, DATASET/ann, DATASET/img)"

    def places(self, path: Path) -> dict[str, Path]:
        """The folders that hold ann/ with .json files."""
        homes = [path, *sorted(path.glob("[!.]*"))] if path.is_dir() else []
        return {p.name: p for p in homes if next((p / "ann").glob("*.json"), None) is not None}

    def listed(self, path: Path) -> list[str]:
        """Those of meta.json that can have boxes."""
        files = [p for p in (path / "meta.json", path.parent / "meta.json") if p.is_file()]
        classes = decode_json(files[0], _Meta, "a Supervisely project's meta.json").classes if files else []
        return [one.title for one in classes if one.shape not in _WITHOUT_AREA]

    def table(self, place: Path) -> LabelTable:
        """One data set."""
        table = LabelTable(place, [place / "img"])
        for file, content in table.decoded(sorted((place / "ann").glob("*.json")), _File, "a Supervisely annotation"):
            image = table.image(file.stem, content.size.width, content.size.height)
            for number, one in enumerate(content.objects):
                where = f"{file}: objects[{number}]"
                if (box := table.shape(one.geometryType, _box(one), where)) is not None:
                    table.add(image, one.classTitle, box, where)
        return table


def _box(one: _Object) -> Box | None:
    """x1, y1, x2, y2, exclusive; None if it has no area."""
    if one.bitmap is not None:
        try:  # a PNG of just the box, whose header has its size
            width, height = struct.unpack(">II", zlib.decompress(base64.b64decode(one.bitmap.data))[16:24])
        except (ValueError, zlib.error, struct.error):
            return None
        x, y = one.bitmap.origin
        return x, y, x + width, y + height
    if one.points is None or not one.points.exterior or one.geometryType in _WITHOUT_AREA:
        return None
    xs, ys = zip(*one.points.exterior, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1
