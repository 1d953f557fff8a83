"""Label Studio's own json of tasks, and its short form JSON-MIN.

https://labelstud.io/guide/task_format: places and sizes are percents of the image; a rectangle is turned about its
upper left corner, an ellipse about its centre. Of several annotations of an image the latest is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from detkit.data.annotations import Findings
from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, decode_json
from detkit.data.listing import of_suffix


class _Annotation(msgspec.Struct):
    result: list[dict[str, object]] = []
    was_cancelled: bool = False
    created_at: str | None = None


class _Task(msgspec.Struct):
    data: dict[str, object] = {}
    annotations: list[_Annotation] | None = None


class _Region(msgspec.Struct):
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    radiusX: float | None = None
    radiusY: float | None = None
    rotation: float = 0.0
    original_width: float = 100.0
    original_height: float = 100.0


class _Polygon(msgspec.Struct):
    points: list[tuple[float, float]]


class LabelStudioFormat(LabelFilesFormat):
    """A json of tasks, or a folder that holds it, or one for each part."""

    name = "label_studio"
    looked_for = "a json of Label Studio's tasks"

    def table(self, place: Path) -> LabelTable:
        """One file."""
        table = LabelTable(place)
        table.fractions = True
        for name, done in _annotations(place, table.findings).items():
            where = f"{place}: {name}"
            if not done:
                table.findings.add("task without an annotation (left out)", where, note=True)
                continue
            again = "annotation of an image besides its latest (left out)"
            table.findings.add(again, where, count=len(done) - 1, note=True)
            image = table.image(name)
            for region in _regions(max(done, key=lambda one: one.created_at or "").result):
                _add(table, image, region, where)
        return table


def _annotations(place: Path, findings: Findings) -> dict[str, list[_Annotation]]:
    """Those of each image that were not skipped."""
    found: dict[str, list[_Annotation]] = {}
    for number, record in enumerate(decode_json(place, list[dict[str, object]], "a json of Label Studio's")):
        where = f"{place}: task {record.get('id', number)}"
        try:
            task = msgspec.convert(record, _Task)
        except msgspec.ValidationError as error:
            findings.add("task that cannot be read (dropped)", f"{where}: {error}")
            continue
        done = task.annotations
        if done is None:  # JSON-MIN: a record for each annotation
            lists = (value for value in record.values() if isinstance(value, list))
            created = record.get("created_at")
            regions = [one for value in lists for one in value if isinstance(one, dict)]
            done = [_Annotation(regions, created_at=created if isinstance(created, str) else None)]
        data = record if task.annotations is None else task.data
        texts = [value for value in data.values() if isinstance(value, str)]
        if name := next(iter(of_suffix(texts)), data.get("image")):
            found.setdefault(str(name), []).extend(one for one in done if not one.was_cancelled)
        else:
            findings.add("task without an image (dropped)", where)
    return found


def _regions(results: Iterable[Mapping[str, object]]) -> Iterable[dict[str, object]]:
    """The answers of one id as one: a shape and its class may be two."""
    found: dict[str, dict[str, object]] = {}
    for number, one in enumerate(results):
        value = one.get("value")
        known = found.setdefault(str(one.get("id", number)), {})
        known.update({**one, **(value if isinstance(value, dict) else {})})
    return found.values()


def _add(table: LabelTable, image: int, region: Mapping[str, Any], where: str) -> None:
    kinds = [key for key, value in region.items() if key.endswith("labels") and isinstance(value, list) and value]
    label = str(region[kinds[0]][0]) if kinds else ""
    try:
        if "points" in region:
            xs, ys = zip(*msgspec.convert(region, _Polygon).points, strict=True)
            kind, box = "polygon", (min(xs) / 100, min(ys) / 100, max(xs) / 100, max(ys) / 100)
        elif "height" in region or "radiusX" in region:
            kind, box = _box(msgspec.convert(region, _Region))
        elif kinds:  # key points and brushes
            table.shape(kinds[0].removesuffix("labels"), None, where)
            return
        else:
            table.findings.add("answer about the whole image (left out)", where, note=True)
            return
    except (msgspec.ValidationError, ValueError, ZeroDivisionError):
        table.findings.add("region without its numbers (dropped)", where)
        return
    table.shape(kind, box, where)
    table.add(image, label, box, where)


def _box(region: _Region) -> tuple[str, Box]:
    """Its kind, and the upright box around it, in parts of the image."""
    across, down = region.original_width / 100, region.original_height / 100  # pixels of a percent
    x, y, angle = region.x * across, region.y * down, math.radians(region.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    if region.radiusX is not None and region.radiusY is not None:
        rx, ry = region.radiusX * across, region.radiusY * down
        half = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        kind, xs, ys = "ellipse", [x - half[0], x + half[0]], [y - half[1], y + half[1]]
    else:
        w, h = region.width * across, region.height * down
        kind = "rotated box" if angle else "rectangle"
        xs = [x + i * w * cos - k * h * sin for i in (0, 1) for k in (0, 1)]
        ys = [y + i * w * sin + k * h * cos for i in (0, 1) for k in (0, 1)]
    width, height = region.original_width, region.original_height
    return kind, (min(xs) / width, min(ys) / height, max(xs) / width, max(ys) / height)
