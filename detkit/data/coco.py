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
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Findings, Source, concat_annotations
from detkit.data.label_files import json_kind, label_files, named_parts
from detkit.data.reading import ImageTable, ObjectTable, assemble, check_part, fill_sizes, pixels
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat

# An extra key of "info", relative to the json: other readers ignore it; with it a json finds images kept elsewhere.
IMAGE_FOLDER = "image_folder"

Id = int | str
Record = TypeVar("Record", "_Image", "_Category", "_Annotation")


class _Image(msgspec.Struct, gc=False):
    id: Id | None = None
    file_name: str = ""
    width: float | None = None
    height: float | None = None


class _Category(msgspec.Struct, gc=False):
    id: Id | None = None
    name: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id | None = None
    category_id: Id | None = None
    bbox: tuple[float, float, float, float] | None = None
    id: Id | None = None
    area: float | None = None
    iscrowd: object = 0
    difficult: object = 0
    keypoints: list[float] | None = None


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


class CocoFormat(DatasetFormat):
    """One json, or a folder whose annotations/ has one per part."""

    looked_for = "a COCO .json file (or a folder with annotations/*.json)"

    def recognises(self, path: Path) -> bool:
        """True for a .json file and for a folder with annotations/*.json."""
        return bool(_parts(path))

    def splits(self, path: Path) -> list[str]:
        """Parts of a folder (stems of its files, without "instances_"); none for a single file."""
        return [] if path.is_file() else named_parts(_parts(path))

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads one json, or those of a folder; see ``DatasetFormat.read``."""
        parts = _parts(path)
        check_part(split, parts if path.is_dir() or split in parts else (), path)
        if path.is_file():
            return _read_file(path, None, images)
        chosen = parts if split is None else [split]
        return concat_annotations([_read_file(parts[name], name, images) for name in chosen])


def _parts(path: Path) -> dict[str, Path]:
    # A single json that is nothing else is taken for COCO's, so that what is wrong with it can be said.
    known = ("coco",) if path.is_dir() else ("coco", "")
    return label_files(path, ".json", lambda p: json_kind(p) in known)


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


def load_json(path: Path, data: memoryview) -> dict[str, list[object] | None]:
    """The file by the standard library, which takes NaN; slow, and only for files that the typed decoder refuses."""
    try:
        value = json.loads(bytes(data))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        do = "the file may be cut short: download or export it again"
        raise DetkitError(f"this is not JSON: {error.msg}", where, do) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DetkitError(f"this is not JSON: {error}", str(path), "download or export it again") from None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("images", "categories")):
        kind = "a list (of detections?)" if isinstance(value, list) else "no images and categories"
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
        with suppress(msgspec.ValidationError):
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


def _read_file(path: Path, split: str | None, images: Path | None) -> Annotations:
    findings = Findings()
    try:
        with mapped(path) as data:
            try:
                file = msgspec.json.decode(data, type=_File)
            except msgspec.DecodeError:
                file = _tolerant(load_json(path, data), path, findings)
    except OSError as error:
        raise DetkitError(f"cannot read this file: {error.strerror}", str(path), "check the path") from error
    category_rows = _by_id(file.categories, "category", lambda c: c.name, path, findings)
    image_rows = _by_id(file.images, "image", lambda image: image.file_name, path, findings)
    kept = [file.images[row] for row in image_rows.values()]
    folder = image_folder(path, [image.file_name for image in kept[:20]], images, file.info)
    files = [os.path.join(folder, image.file_name) for image in kept]
    sizes = np.asarray([(pixels(p.height), pixels(p.width)) for p in kept], dtype=np.int32).reshape(-1, 2)
    for i in fill_sizes(sizes, files):
        findings.add("image without width and height (read from the image)", f"{path}: image {kept[i].id}")
    classes: dict[Id, str] = {}  # names made unique: classes are told apart by name everywhere else
    for number, row in category_rows.items():
        name = file.categories[row].name or str(number)
        if name in classes.values():
            findings.add("category name used twice (its id added)", f"{path}: category {number} ({name})")
            name = f"{name} ({number})"
        classes[number] = name
    image_index, label_of = ({number: i for i, number in enumerate(rows)} for rows in (image_rows, category_rows))
    found = ImageTable(list(image_rows), files, sizes, np.asarray(list(image_rows.values()), dtype=np.int64))
    objects = _objects(file.annotations, image_index, label_of, path, findings)
    return assemble(objects, found, classes, findings, Source("coco", path, split, Path(folder)))


def _by_id(
    records: Sequence[Record], kind: str, name_of: Callable[[Record], str], path: Path, findings: Findings
) -> dict[Id, int]:
    """Row of each record that an id tells apart from all others."""
    rows: dict[Id, int] = {}
    for row, record in enumerate(records):
        if record.id is None or record.id in rows:
            fault = "without an id (dropped)" if record.id is None else "id used twice (later one dropped)"
            findings.add(f"{kind} {fault}", f"{path}: {kind} {record.id} ({name_of(record)})")
        else:
            rows[record.id] = row
    return rows


def _objects(
    records: list[_Annotation], images: dict[Id, int], classes: dict[Id, int], path: Path, findings: Findings
) -> ObjectTable:
    n = len(records)

    def where(row: int) -> str:
        a = records[row]
        return f"{path}: annotation {a.id if a.id is not None else f'number {row}'} (image {a.image_id})"

    def column(name: str) -> Iterator[Any]:
        return map(attrgetter(name), records)

    def numbers(name: str, table: dict[Id, int]) -> np.ndarray:
        found = np.fromiter(map(table.get, column(name), repeat(-1)), np.int64, n)
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
    crowd, difficult = (np.fromiter(map(bool, column(name)), bool, n) for name in ("iscrowd", "difficult"))
    ids = _whole(list(column("id")))
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    findings.add_rows("annotation id used again (kept)", np.sort(again), where)
    return ObjectTable(image, xywh, labels, where, crowd, difficult, area, ids, _points(list(column("keypoints"))))


def _whole(values: list[Id | None]) -> np.ndarray:
    """(N,) int64 ids for the metrics' table; where one is a name or missing, all become record numbers, from one."""
    if set(map(type, values)) <= {int}:
        with suppress(OverflowError):
            return np.asarray(values, dtype=np.int64)
    return np.arange(1, len(values) + 1, dtype=np.int64)


def image_folder(path: Path, names: list[str], images: Path | None, info: object = None) -> str:
    """The folder of the images: the first of the usual ones that holds one of ``names``, else the json's own.

    These are what the file says, the json's own, ../SPLIT, SPLIT, ../images, images, and SPLIT in the last two.

    Args:
        path: The json.
        names: File names of some images.
        images: What a person says, which is taken as it is; None: nothing.
        info: The file's "info".
    """
    if images is not None:
        return str(images)
    beside = path.absolute().parent
    split = path.stem.removeprefix("instances_")
    folders = [beside, beside.parent / split, beside / split, beside.parent / "images", beside / "images"]
    folders += [beside.parent / "images" / split, beside / "images" / split]
    if isinstance(info, dict) and isinstance(named := info.get(IMAGE_FOLDER), str):
        folders.insert(0, beside / named)
    for folder in folders:
        if any(name and (folder / name).is_file() for name in names):
            return os.path.normpath(folder)
    return str(beside)
