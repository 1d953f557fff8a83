"""VGG Image Annotator's exports (versions 1 and 2): json of regions, a saved project, or csv.

https://www.robots.ox.ac.uk/~vgg/software/via: a region has a shape and attributes, one of which is its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from detkit.data.csv_tables import csv_lines
from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, decode_json, find_label_files
from detkit.errors import DetkitError

_CSV = {"filename", "region_shape_attributes", "region_attributes"}
_CLASS_NAMES = ("class", "label", "name", "type", "category", "object")  # attributes that are the class, if present
_NUMBERS = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "polygon": ("all_points_x", "all_points_y"),
    "polyline": ("all_points_x", "all_points_y"),
}


class _Region(msgspec.Struct):
    shape_attributes: dict[str, object] = {}
    region_attributes: dict[str, object] = {}


class _Image(msgspec.Struct):
    filename: str
    regions: list[_Region] | dict[str, _Region] = []


class _Found(NamedTuple):
    image: str
    region: _Region | None
    where: str


class ViaFormat(LabelFilesFormat):
    """A json or csv of VIA's, or a folder that holds it, or one for each part."""

    name = "via"
    looked_for = "a json or csv of the VGG Image Annotator"

    def places(self, path: Path) -> dict[str, Path]:
        """The file of each part; json, where there are both."""
        return super().places(path) or find_label_files(path, ".csv", _is_csv)

    def table(self, place: Path) -> LabelTable:
        """One file."""
        table = LabelTable(place)
        found = list(_csv_regions(place, table) if place.suffix.lower() == ".csv" else _json_regions(place))
        attribute = _class_attribute([one.region for one in found if one.region is not None], place)
        for one in found:
            image = table.image(one.image)
            if one.region is None:
                continue
            shape = one.region.shape_attributes
            kind = str(shape.get("name"))
            box = _box(kind, shape)
            if box is None and kind in _NUMBERS:
                table.findings.add("region without its numbers (dropped)", one.where)
            elif table.shape(kind, box, one.where) and box is not None:
                table.add(image, _chosen(one.region.region_attributes.get(attribute)), box, one.where)
        return table


def _is_csv(path: Path) -> bool:
    return any(set(_header(row)) >= _CSV for _, row in islice(csv_lines(path), 1))


def _header(row: Sequence[str]) -> list[str]:
    return [name.lstrip("#").strip() for name in row]


def _json_regions(place: Path) -> Iterator[_Found]:
    value = decode_json(place, dict[str, object], "a json of VIA's")
    images = value.get("_via_img_metadata", {}) if any(key.startswith("_via_") for key in value) else value
    try:
        found = msgspec.convert(images, dict[str, _Image])
    except msgspec.ValidationError as error:
        do = "export the annotations again from VIA 2 (VIA 3 writes COCO, too)"
        raise DetkitError(f"this is not a json of VIA's: {error}", str(place), do) from None
    for image in found.values():
        regions = image.regions.values() if isinstance(image.regions, dict) else image.regions
        yield _Found(image.filename, None, "")
        for number, region in enumerate(regions):
            yield _Found(image.filename, region, f"{place}: {image.filename}, region {number}")


def _csv_regions(place: Path, table: LabelTable) -> Iterator[_Found]:
    columns, *rows = (row for _, row in csv_lines(place))
    for cells in (dict(zip(_header(columns), row, strict=False)) for row in rows):
        if not cells.get("filename"):
            continue
        where = f"{place}: {cells['filename']}, region {cells.get('region_id', '')}"
        yield _Found(cells["filename"], None, "")
        texts = [(cells.get(name) or "{}").encode() for name in ("region_shape_attributes", "region_attributes")]
        try:
            shape, attributes = (msgspec.json.decode(text, type=dict[str, object]) for text in texts)
        except (msgspec.DecodeError, RecursionError):
            table.findings.add("region's attributes are not JSON (dropped)", where)
            continue
        if shape:
            yield _Found(cells["filename"], _Region(shape, attributes), where)


def _class_attribute(regions: Sequence[_Region], place: Path) -> str:
    """The attribute that is the class: one of the usual names, or the only one; "" if there is none."""
    names = dict.fromkeys(name for region in regions for name in region.region_attributes)
    usual = [name for wanted in _CLASS_NAMES for name in names if name.lower() == wanted]
    if not usual and len(names) > 1:
        do = f"rename one of {', '.join(names)} to class, in VIA or in the file"
        raise DetkitError("which attribute of the regions is the class?", str(place), do)
    return next(iter(usual or names), "")


def _chosen(value: object) -> str:
    """The class of an attribute's value: text, or the box that is ticked of several."""
    if isinstance(value, Mapping):
        value = next((name for name, ticked in value.items() if ticked), None)
    return "" if value is None else str(value)


def _box(kind: str, shape: Mapping[str, object]) -> Box | None:
    try:
        if kind.startswith("poly"):
            xs, ys = (msgspec.convert(shape[name], list[float]) for name in _NUMBERS[kind])
            return min(xs), min(ys), max(xs), max(ys)
        values = [msgspec.convert(shape[name], float, strict=False) for name in _NUMBERS[kind]]
    except (KeyError, ValueError, msgspec.ValidationError):  # the last is a ValueError only in newer versions
        return None
    if kind == "rect":
        x, y, w, h = values
        return x, y, x + w, y + h
    cx, cy, rx, ry = (*values, values[2])[:4]
    return cx - rx, cy - ry, cx + rx, cy + ry
