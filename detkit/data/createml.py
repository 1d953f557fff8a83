"""Create ML's json: for each image its boxes by their centre and size in pixels.

https://developer.apple.com/documentation/createml/building-an-object-detector-data-source; Roboflow and supervision
write it with the keys image and annotations.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from detkit.data.label_files import LabelFilesFormat, LabelTable, decode_json


class _Coordinates(msgspec.Struct):
    x: float
    y: float
    width: float
    height: float


class _Object(msgspec.Struct):
    coordinates: _Coordinates
    label: str = ""


class _Image(msgspec.Struct):
    image: str = ""
    imagefilename: str = ""
    annotations: list[_Object] = []
    annotation: list[_Object] = []


class CreateMLFormat(LabelFilesFormat):
    """A json, or a folder that holds it, or one for each part."""

    name = "createml"
    looked_for = "a json of Create ML's"

    def table(self, place: Path) -> LabelTable:
        """One file."""
        table = LabelTable(place)
        for number, one in enumerate(decode_json(place, list[_Image], "a json of Create ML's")):
            if not (name := one.image or one.imagefilename):
                table.findings.add("record without an image (dropped)", f"{place}: record {number}")
                continue
            image = table.image(name)
            for found in one.annotations or one.annotation:
                c = found.coordinates
                x, y = c.x - c.width / 2, c.y - c.height / 2
                table.add(image, found.label, (x, y, x + c.width, y + c.height), f"{place}: {name}")
        return table
