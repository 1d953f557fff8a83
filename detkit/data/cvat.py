"""CVAT's own xml for images (version 1.1): one file for all images.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/: boxes and other shapes with corners in pixels,
counted from 0; labels of the task with their names.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.data.annotations import Findings
from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, find_label_files
from detkit.data.xml_files import number_in, parse_xml
from detkit.io.files import reading

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_START = re.compile(rb"<annotations[\s>]")
_CORNERS = ("xtl", "ytl", "xbr", "ybr")


class CvatFormat(LabelFilesFormat):
    """An annotations.xml, or a folder that holds it, or one for each part."""

    name = "cvat"
    looked_for = "an xml of CVAT for images (annotations.xml)"

    def places(self, path: Path) -> dict[str, Path]:
        """The xml of each part."""
        return find_label_files(path, ".xml", _is_cvat)

    def listed(self, path: Path) -> list[str]:
        """The labels of the tasks."""
        roots = [parse_xml(place, Findings()) for place in self.places(path).values()]
        return [name.text or "" for root in roots if root is not None for name in root.findall("meta//label/name")]

    def table(self, place: Path) -> LabelTable:
        """One xml."""
        table = LabelTable(place)
        root = parse_xml(place, table.findings)
        for image in [] if root is None else root.findall("image"):
            size = (number_in(image.get(key, "")) for key in ("width", "height"))
            index = table.image(image.get("name", ""), *size)
            for number, shape in enumerate(one for one in image if one.tag != "tag"):
                where = f"{place}: {image.get('name')}, shape {number}"
                upright = "rotated box" if number_in(shape.get("rotation", "0")) else "rectangle"
                box = table.shape(upright if shape.tag == "box" else shape.tag, _box(shape), where)
                if box is not None:
                    table.add(index, shape.get("label", ""), box, where)
        for track in [] if root is None else root.findall("track"):
            name = "track of a video (dropped; export the task as COCO)"
            table.findings.add(name, f"{place}: track {track.get('id')}")
        return table


def _is_cvat(path: Path) -> bool:
    with reading(str(path)), open(path, "rb") as file:
        return bool(_START.search(file.read(1 << 10)))


def _box(shape: Element) -> Box | None:
    """The box around a box (rotated about its middle, in degrees), a polygon or an ellipse; None for what has none."""
    if shape.tag == "box":
        x1, y1, x2, y2 = (number_in(shape.get(key, "")) for key in _CORNERS)
        angle = math.radians(number_in(shape.get("rotation", "0")))
        w, h = (x2 - x1) / 2, (y2 - y1) / 2
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        x, y, half_w, half_h = x1 + w, y1 + h, w * cos + h * sin, w * sin + h * cos
        return x - half_w, y - half_h, x + half_w, y + half_h
    if shape.tag == "ellipse":
        x, y, rx, ry = (number_in(shape.get(key, "")) for key in ("cx", "cy", "rx", "ry"))
        return x - rx, y - ry, x + rx, y + ry
    if shape.tag == "mask":
        x, y, w, h = (number_in(shape.get(key, "")) for key in ("left", "top", "width", "height"))
        return x, y, x + w, y + h
    if shape.tag == "polygon":
        points = [[number_in(value) for value in pair.split(",")] for pair in shape.get("points", "").split(";")]
        if all(len(pair) == 2 for pair in points):
            xs, ys = zip(*points, strict=True)
            return min(xs), min(ys), max(xs), max(ys)
    return None
