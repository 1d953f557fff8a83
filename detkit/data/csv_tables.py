"""csv with a box in each line: image, corners and class, in the columns that tools name them by.

Among these are TensorFlow's (filename, width, height, class, xmin, ymin, xmax, ymax), keras-retinanet's without a
header (path, x1, y1, x2, y2, class; empty for an image without objects), Kaggle's (bbox: "[x, y, width, height]"), and
Open Images' (ImageID, LabelName, XMin, XMax, YMin, YMax as fractions, IsGroupOf; the names of its codes in
class-descriptions-boxable.csv), https://storage.googleapis.com/openimages/web/download_v7.html. Corners are taken as
zero-based with exclusive x2 and y2.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from detkit.data.label_files import Box, LabelFilesFormat, LabelTable, find_label_files
from detkit.errors import DetkitError
from detkit.io.files import digits_in, reading
from detkit.io.images import IMAGE_SUFFIXES

# What a column holds: its names, in lower case without other signs than letters and digits, the likeliest first.
_COLUMNS = {
    "image": ("filename", "image", "imagepath", "imagename", "filepath", "path", "file", "imageid", "img", "imgpath"),
    "label": ("class", "classname", "label", "labelname", "category", "categoryname", "name"),
    "x1": ("xmin", "x1", "left", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "bboxymin"),
    "x2": ("xmax", "x2", "right", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "bboxymax"),
    "bbox": ("bbox", "box"),
    "x": ("x", "bboxx", "boxx", "xmin", "x1", "left"),
    "y": ("y", "bboxy", "boxy", "ymin", "y1", "top"),
    "w": ("w", "bboxwidth", "boxwidth", "bboxw", "width"),
    "h": ("h", "bboxheight", "boxheight", "bboxh", "height"),
    "width": ("imagewidth", "imgwidth", "width"),
    "height": ("imageheight", "imgheight", "height"),
    "crowd": ("isgroupof", "iscrowd"),
    "difficult": ("difficult",),
    "score": ("score", "confidence"),
}
_BOXES = (("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("bbox",))
_BARE = ["image", "x1", "y1", "x2", "y2", "label"]  # the columns of a file without a header
_CLASS_FILES = ("classes.csv", "class-descriptions-boxable.csv", "class-descriptions.csv")


class CsvFormat(LabelFilesFormat):
    """A .csv of boxes, or a folder that holds it, or one for each part."""

    name = "csv"
    looked_for = "a .csv of boxes (image, x1, y1, x2, y2, label; Open Images)"

    def places(self, path: Path) -> dict[str, Path]:
        """The csv of each part."""
        # A single csv that is not VIA's is taken for one of boxes, so that what is wrong with it can be said.
        return find_label_files(path, ".csv", _holds_boxes if path.is_dir() else _is_not_via)

    def listed(self, path: Path) -> list[str]:
        """Those of classes.csv, which keras-retinanet reads: lines of a name and its number."""
        home = path if path.is_dir() else path.parent
        rows = list(csv_lines(home / "classes.csv")) if (home / "classes.csv").is_file() else []
        pairs = [(digits_in(row[1].strip()), row[0].strip()) for _, row in rows if len(row) == 2]
        numbered = [(number, name) for number, name in pairs if number is not None]
        return [name for _, name in sorted(numbered)] if len(numbered) == len(rows) else []

    def table(self, place: Path) -> LabelTable:
        """One file."""
        columns, table = _columns(place), LabelTable(place)
        if columns is None:
            do = "name the columns image, x1, y1, x2, y2, label in the first line"
            raise DetkitError("this csv has no columns for an image and a box", str(place), do)
        kind = next(names for names in _BOXES if columns.keys() >= set(names))
        codes = _codes(place)
        for line, row in islice(csv_lines(place), columns["first"], None):
            where = f"{place}:{line}"
            cells = {name: row[i].strip() for name, i in columns.items() if name != "first" and i < len(row)}
            if not cells.get("image"):
                table.findings.add("line without an image (dropped)", where)
                continue
            image = table.image(cells["image"], _number(cells.get("width")), _number(cells.get("height")))
            texts = [cells.get(name, "") for name in kind]
            if not any(texts):
                continue  # an image without objects
            if (box := _box(kind, texts)) is None:
                table.findings.add("line whose box is not four numbers (dropped)", where)
                continue
            if cells.get("score", "1") not in ("", "1", "1.0"):
                table.findings.add("score of a box (left out)", where, note=True)
            label = cells.get("label", "")
            flags = {name: cells.get(name, "").lower() in ("1", "1.0", "true") for name in ("crowd", "difficult")}
            table.add(image, codes.get(label, label), box, where, **flags)
        boxes = table.boxes
        table.fractions = bool(len(boxes) and (boxes <= 1).all() and (boxes >= 0).all())
        if table.fractions and not codes:  # Open Images' always are
            fractions = "coordinates are fractions of the image (made pixels)"
            table.findings.add(fractions, str(place), count=len(boxes), note=True)
        return table


def _holds_boxes(path: Path) -> bool:
    with suppress(DetkitError):  # some other table
        return _columns(path) is not None
    return False


def _is_not_via(path: Path) -> bool:
    return all("region_shape_attributes" not in row for _, row in islice(csv_lines(path), 1))


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    with reading(str(path)), open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter=max(",;\t", key=first.count))
        try:
            yield from ((rows.line_num, row) for row in rows if any(row))
        except csv.Error as error:
            raise DetkitError(f"this is not csv: {error}", f"{path}:{rows.line_num}", "export it again") from None


def _columns(path: Path) -> dict[str, int] | None:
    """Place of each column by what it holds, and, as "first", how many lines of header there are; None: no boxes."""
    row = next((row for _, row in csv_lines(path)), [])
    bare = len(row) == len(_BARE) and Path(row[0]).suffix.lower() in IMAGE_SUFFIXES
    if bare and (not any(row[1:]) or _box(_BOXES[0], row[1:5])):
        return {**{name: i for i, name in enumerate(_BARE)}, "first": 0}
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in row]
    found = {kind: plain.index(name) for kind, names in _COLUMNS.items() for name in reversed(names) if name in plain}
    if "x2" in found:  # "width" is the image's
        found = {kind: i for kind, i in found.items() if kind not in ("x", "y", "w", "h")}
    elif found.get("w") == found.get("width"):
        found = {kind: i for kind, i in found.items() if kind not in ("width", "height")}
    boxes = any(found.keys() >= set(names) for names in _BOXES)
    return {**found, "first": 1} if boxes and "image" in found else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _box(kind: Sequence[str], texts: Sequence[str]) -> Box | None:
    numbers = [_number(text) for text in (re.findall(r"[^\s,;\[\]()]+", texts[0]) if kind == ("bbox",) else texts)]
    if len(numbers) != 4 or None in numbers:
        return None
    a, b, c, d = (math.nan if number is None else number for number in numbers)
    return (a, b, c, d) if "x2" in kind else (a, b, a + c, b + d)


def _codes(place: Path) -> Mapping[str, str]:
    """Names of Open Images' codes (/m/01g317), where a file with them lies near."""
    homes = [place.parent, place.parent.parent, place.parent / "metadata", place.parent.parent / "metadata"]
    for file in (home / name for home in homes for name in _CLASS_FILES if (home / name).is_file()):
        if codes := {row[0]: row[1] for _, row in csv_lines(file) if len(row) == 2 and row[0].startswith("/")}:
            return codes
    return {}
