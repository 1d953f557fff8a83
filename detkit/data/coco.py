"""COCO's json: fast, typed reading over a memory map, and writing that keeps annotation records verbatim.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014; https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.label_files import LabelFilesFormat, find_label_files, image_folders, json_kind, place_images
from detkit.data.reading import ImageTable, ObjectTable, assemble, fill_sizes, pixels
from detkit.errors import DetkitError
from detkit.io.stored import is_address
from detkit.tables import other_spelling

# An extra key of "info", relative to the json: other readers ignore it; with it a json finds images kept elsewhere.
IMAGE_FOLDER = "image_folder"

Id = int | str | float  # as the file has it
Key = int | str
Record = TypeVar("Record", "_Image", "_Category", "_Annotation")


class _Image(msgspec.Struct, gc=False):
    id: Id | None = None
    file_name: str | None = ""
    width: float | None = None
    height: float | None = None
    coco_url: str | None = None
    not_exhaustive_category_ids: list[Id] | None = None  # LVIS

    @property
    def name(self) -> str:
        """The file's name; of LVIS, which gives none, the last two parts of the URL: val2017/000000000139.jpg."""
        return self.file_name or "/".join((self.coco_url or "").split("/")[-2:])


class _Category(msgspec.Struct, gc=False):
    id: Id | None = None
    name: str = ""
    supercategory: object = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id | None = None
    category_id: Id | None = None
    bbox: tuple[float, float, float, float] | None = None
    id: Id | None = None
    area: float | None = None
    iscrowd: object = 0
    difficult: object = 0
    keypoints: list[float] | None = None
    weight: float | None = None


class _File(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation] = []
    info: object = None


class RawFile(msgspec.Struct):
    """The same file with every record as its own bytes; they point into the buffer that was decoded."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw] = []
    info: msgspec.Raw = msgspec.Raw(b"{}")
    licenses: msgspec.Raw = msgspec.Raw(b"[]")


class CocoFormat(LabelFilesFormat):
    """One json, or a folder whose annotations/ has one per part."""

    name = "coco"
    looked_for = "a COCO .json file (or a folder with annotations/*.json)"
    keep_degenerate = False  # set before reading, see ``assemble``

    def places(self, path: Path) -> dict[str, Path]:
        """The json of each part, named by its stem without "instances_"."""
        # A single json that is nothing else is taken for COCO's, so that what is wrong with it can be said.
        known = ("coco",) if path.is_dir() else ("coco", "")
        return find_label_files(path, ".json", lambda p: json_kind(p) in known)

    def splits(self, path: Path) -> list[str]:
        """Parts of a folder; none for a single file."""
        return [] if path.is_file() else super().splits(path)

    def annotations(
        self, path: Path, places: Mapping[str, Path], chosen: Sequence[str], source: Source
    ) -> list[Annotations]:
        """Those of each file."""
        whole = path.is_file()
        return [_read_file(places[p], None if whole else p, source.images, self.keep_degenerate) for p in chosen]


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes as a memory map, without a byte order mark."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise DetkitError("this file is empty", str(path), "download or export it again")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Never closed by hand: raw records point into the map, which goes when the last of them does.
        view = memoryview(data)
        yield view[3:] if view[:3] == b"\xef\xbb\xbf" else view


def load_json(path: Path, data: memoryview, finite: bool = False) -> dict[str, list[object] | None]:
    """The file by the standard library, which takes NaN (``finite``: as null); slow, and only for files that the typed
    decoder refuses."""
    try:
        value = json.loads(bytes(data), parse_constant=(lambda word: None) if finite else None)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        do = "the file may be cut short: download or export it again"
        raise DetkitError(f"this is not JSON: {error.msg}", where, do) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits
        raise DetkitError(f"this is not JSON: {error}", str(path), "download or export it again") from None
    lists = isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("images", "categories"))
    if not lists or not isinstance(value.get("annotations") or [], list):
        kind = "a list (of detections?)" if isinstance(value, list) else "no images and categories"
        kind = "annotations that are no list" if lists else kind
        do = 'a data set has the lists "images", "annotations" and "categories"'
        raise DetkitError(f"this JSON is not a COCO data set: it holds {kind}", str(path), do)
    return value


def _tolerant(value: Mapping[str, list[object] | None], path: Path, findings: Findings) -> _File:
    """Records one by one; what is malformed has its default, or NaN in a box."""

    def records(kind: type[Record], key: str) -> list[Record]:
        found = []
        for i, row in enumerate(value.get(key) or []):
            if not isinstance(row, dict):
                findings.add(f"record that is not an object in {key} (dropped)", f"{path}: {key}[{i}]")
                row = {}  # a place holder keeps the rows aligned with the file
            found.append(_mended(row, kind))
        return found

    lists = records(_Image, "images"), records(_Category, "categories"), records(_Annotation, "annotations")
    return _File(*lists, value.get("info"))


def _mended(row: dict[str, object], kind: type[Record]) -> Record:
    record = kind()
    # A key point that is no number becomes 0, which is not visible.
    for name, instead in (("bbox", math.nan), ("keypoints", 0.0)):
        if isinstance(values := row.get(name), list):
            row = {**row, name: [v if isinstance(v, (int, float)) else instead for v in values]}
    for field in msgspec.structs.fields(kind):
        value = row.get(field.name)
        if field.type is str and value is not None:
            value = str(value)
        with suppress(msgspec.ValidationError, UnicodeEncodeError):  # half a character is none
            setattr(record, field.name, msgspec.convert(value, field.type))
    return record


def _points(lists: list[list[float] | None]) -> np.ndarray | None:
    """(N, K, 3) float64 of COCO's key points, x, y, visible; None if nothing has any.

    The file counts pixels; half a pixel more is the same place in coordinates of pixel edges, which boxes have.
    """
    width = max((len(values) // 3 for values in lists if values), default=0)
    if not width:
        return None
    points = np.zeros((len(lists), width, 3))
    for row, values in enumerate(lists):
        if values:
            known = np.asarray(values[: len(values) // 3 * 3], dtype=np.float64).reshape(-1, 3)
            points[row, : len(known)] = known + np.array([0.5, 0.5, 0])
    return points


def _read_file(path: Path, split: str | None, images: Path | None, keep_degenerate: bool = False) -> Annotations:
    findings = Findings()
    try:
        with mapped(path) as data:
            try:
                file = msgspec.json.decode(data, type=_File)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                file = _tolerant(load_json(path, data), path, findings)
    except OSError as error:
        raise DetkitError(f"cannot read this file: {error.strerror}", str(path), "check the path") from error
    category_rows = _by_id(file.categories, "category", lambda c: c.name, path, findings)
    _drop_root(file, category_rows, path, findings)
    image_rows = _by_id(file.images, "image", lambda image: image.name, path, findings)
    kept = [file.images[row] for row in image_rows.values()]
    named = file.info.get(IMAGE_FOLDER) if isinstance(file.info, dict) else None
    folders = [path.absolute().parent / named] if isinstance(named, str) else []
    folders = [images] if images is not None else folders + image_folders(path)
    found_in, names = place_images([image.name for image in kept], folders, findings)
    folder = os.path.normpath(found_in)
    files = [name if is_address(name) else os.path.join(folder, name) for name in names]
    nameless = np.array([not name for name in names], dtype=bool)
    findings.add_rows("image without a file_name", nameless, lambda row: f"{path}: image {kept[row].id}")
    partly = np.array([bool(image.not_exhaustive_category_ids) for image in kept], dtype=bool)
    lvis = "image some of whose objects may have no box (LVIS's not_exhaustive_category_ids)"
    findings.add_rows(lvis, partly, lambda row: f"{path}: image {kept[row].id}", note=True)
    sizes = np.asarray([(pixels(p.height), pixels(p.width)) for p in kept], dtype=np.int32).reshape(-1, 2)
    for i in fill_sizes(sizes, files):
        findings.add("image without width and height (read from the image)", f"{path}: image {kept[i].id}", note=True)
    classes: dict[Key, str] = {}  # names made unique: classes are told apart by name everywhere else
    for number, row in category_rows.items():
        name = file.categories[row].name or str(number)
        if name in classes.values():
            findings.add("category name used twice (its id added)", f"{path}: category {number} ({name})")
            name = f"{name} ({number})"
        classes[number] = name
    image_index, label_of = ({number: i for i, number in enumerate(rows)} for rows in (image_rows, category_rows))
    found = ImageTable(list(image_rows), files, sizes, np.asarray(list(image_rows.values()), dtype=np.int64))
    objects = _objects(file.annotations, image_index, label_of, path, findings)
    source = Source("coco", path, split, Path(folder))
    made = assemble(objects, found, classes, findings, source, keep_degenerate=keep_degenerate)
    return replace(made, masks=[str(path)] * len(made))


def _drop_root(file: _File, rows: dict[Key, int], path: Path, findings: Findings) -> None:
    """Takes out Roboflow's extra category: the project's name, over all others, of which there are no boxes."""
    for number, row in list(rows.items()):
        root = file.categories[row]
        if root.supercategory != "none" or len(rows) == 1:
            continue
        above_all = all(file.categories[one].supercategory == root.name for one in rows.values() if one != row)
        if above_all and all(one.category_id != number for one in file.annotations):
            del rows[number]
            where = f"{path}: category {number} ({root.name})"
            findings.add("category over all others, without boxes (Roboflow's; dropped)", where, note=True)


def _by_id(
    records: Sequence[Record], kind: str, name_of: Callable[[Record], str], path: Path, findings: Findings
) -> dict[Key, int]:
    """Row of each record that an id tells apart from all others."""
    rows: dict[Key, int] = {}
    for row, record in enumerate(records):
        key = key_of(record.id)
        if key is None or key in rows:
            fault = "without an id (dropped)" if key is None else "id used twice (later one dropped)"
            findings.add(f"{kind} {fault}", f"{path}: {kind} {record.id} ({name_of(record)})")
        else:
            rows[key] = row
    return rows


def _objects(
    records: list[_Annotation], images: dict[Key, int], classes: dict[Key, int], path: Path, findings: Findings
) -> ObjectTable:
    n = len(records)

    def where(row: int) -> str:
        a = records[row]
        return f"{path}: annotation {a.id if a.id is not None else f'number {row}'} (image {a.image_id})"

    def column(name: str) -> Iterator[Any]:
        return map(attrgetter(name), records)

    def numbers(name: str, table: dict[Key, int]) -> np.ndarray:
        found = np.fromiter(map(table.get, column(name), repeat(-1)), np.int64, n)
        unknown = np.flatnonzero(found < 0)
        found[unknown] = [table.get(other_spelling(getattr(records[row], name)), -1) for row in unknown]
        mended = unknown[found[unknown] >= 0]
        findings.add_rows(f"{name} is text here and a number there (taken as the same)", mended, where, note=True)
        findings.add_rows(f"unknown {name.replace('_', ' ')} (annotation dropped)", found < 0, where)
        return found

    boxes = list(column("bbox"))
    no_box = np.asarray([row for row, box in enumerate(boxes) if box is None] if None in boxes else [], np.int64)
    findings.add_rows("annotation without a box of four numbers (dropped)", no_box, where)
    for row in no_box.tolist():
        boxes[row] = (0.0, 0.0, 0.0, 0.0)
    xywh = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * n).reshape(n, 4)
    image, labels = numbers("image_id", images), numbers("category_id", classes)
    labels[no_box] = -1
    area = np.asarray(list(column("area")), dtype=np.float64)  # None becomes NaN
    crowd, difficult = (_flags(column(name), n) for name in ("iscrowd", "difficult"))
    ids = _whole(list(column("id")))
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    findings.add_rows("annotation id used again (kept)", np.sort(again), where, note=True)
    points, weight, weights = _points(list(column("keypoints"))), None, list(column("weight"))
    if weights.count(None) < n:
        weight = np.asarray([1.0 if value is None else value for value in weights], dtype=np.float64)
        bad = ~((weight >= 0) & np.isfinite(weight))
        findings.add_rows("weight that is no number of 0 or more (taken as 1)", bad, where)
        weight[bad] = 1.0
    return ObjectTable(image, xywh, labels, where, crowd, difficult, area, ids, points, weight)


def _flags(values: Iterator[Any], n: int) -> np.ndarray:
    """(N,) bool; of a text what it says, for PyLabel writes "0"."""
    found = list(values)
    flags = np.fromiter(map(bool, found), bool, n)
    for row in np.flatnonzero(flags):
        if isinstance(found[row], str):
            flags[row] = found[row].strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")
    return flags


def key_of(value: object) -> Key | None:
    """An id as ids are compared: 1.0, as pandas writes it, is 1; None for what is no id."""
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # half a character cannot be written
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(values: list[Id | None]) -> np.ndarray:
    """(N,) int64 ids for the metrics' table; where one is a name or missing, all become record numbers, from one."""
    kinds = set(map(type, values))
    if kinds <= {int} or (kinds <= {int, float} and all(float(value).is_integer() for value in values)):  # type: ignore
        with suppress(OverflowError):
            return np.asarray(values, dtype=np.int64)
    return np.arange(1, len(values) + 1, dtype=np.int64)
