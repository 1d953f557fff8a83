"""COCO's json: fast, typed reading over a memory map, and writing that keeps annotation records verbatim.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014; https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Findings, Objects, Source, assemble, concat_annotations, size_of
from detkit.errors import DetkitError

LOOKED_FOR = "a COCO .json file (or a folder with annotations/*.json)"

# An extra key of "info", relative to the json: other readers ignore it; with it a json finds images kept elsewhere.
IMAGE_FOLDER = "image_folder"

Id = int | str


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str = ""
    width: float | None = None
    height: float | None = None


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id | None = None
    category_id: Id | None = None
    bbox: tuple[float, float, float, float] | None = None
    id: Id | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    difficult: int | bool | None = 0
    keypoints: list[float] | None = None


class _File(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation] = []
    info: Any = None


class RawFile(msgspec.Struct):
    """The same file with every record as its own bytes; they point into the buffer that was decoded."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw] = []
    info: msgspec.Raw = msgspec.Raw(b"{}")
    licenses: msgspec.Raw = msgspec.Raw(b"[]")


def recognises(path: Path) -> bool:
    """True for a .json file and for a folder with annotations/*.json."""
    return bool(_parts(path))


def splits(path: Path) -> list[str]:
    """Parts of a COCO folder (stems of its files, without "instances_"); none for a single file."""
    return [] if path.is_file() else list(_parts(path))


def _parts(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.stem: path} if path.suffix.lower() == ".json" else {}
    found = sorted((path / "annotations").glob("*.json"))
    chosen = [p for p in found if p.stem.startswith("instances_")] or found
    return {p.stem.removeprefix("instances_"): p for p in chosen}


def read(path: Path, split: str | None, images: Path | None) -> Annotations:
    """Reads one json, or those of a folder (``split`` names one). See detkit.data.dataset.read."""
    parts = _parts(path)
    if path.is_file():
        if split is not None and split not in parts:
            raise DetkitError(f"a COCO json has no parts, so --split {split} means nothing", str(path), "leave it out")
        return _read_file(path, None, images)
    if split is not None:
        if split not in parts:
            raise DetkitError(f"no part {split!r}", str(path / "annotations"), f"the parts are {', '.join(parts)}")
        parts = {split: parts[split]}
    return concat_annotations([_read_file(file, name, images) for name, file in parts.items()])


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


def _decode(path: Path, findings: Findings) -> _File:
    with mapped(path) as data:
        try:
            return msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError:
            return _tolerant(load_json(path, data), path, findings)


def load_json(path: Path, data: memoryview) -> dict[str, Any]:
    """The file by the standard library, which takes NaN; slow, and only for files that the typed decoder refuses."""
    try:
        value = json.loads(bytes(data))
    except json.JSONDecodeError as error:
        raise DetkitError(
            f"this is not JSON: {error.msg}",
            f"{path}, line {error.lineno}, column {error.colno}",
            "the file may be cut short: download or export it again",
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DetkitError(f"this is not JSON: {error}", str(path), "download or export it again") from None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("images", "categories")):
        kind = "a list (of detections?)" if isinstance(value, list) else "no images and categories"
        raise DetkitError(
            f"this JSON is not a COCO data set: it holds {kind}",
            str(path),
            'a data set has the lists "images", "annotations" and "categories"',
        )
    return value


def _tolerant(value: dict[str, Any], path: Path, findings: Findings) -> _File:
    """Records one by one; what is malformed becomes None or NaN, and is counted."""

    def records(key: str) -> list[dict[str, Any]]:
        rows = value.get(key) or []
        bad = [i for i, row in enumerate(rows) if not isinstance(row, dict)]
        findings.add(f"record that is not an object in {key} (dropped)", *(f"{path}: {key}[{i}]" for i in bad),
                     count=len(bad))  # fmt: skip
        # A place holder keeps the rows aligned with the file.
        return [row if isinstance(row, dict) else {} for row in rows]

    pictures = [
        _Image(_id(r.get("id")), str(r.get("file_name", "")), _number(r.get("width")), _number(r.get("height")))  # type: ignore[arg-type]
        for r in records("images")
    ]
    categories = [_Category(_id(r.get("id")), str(r.get("name", r.get("id")))) for r in records("categories")]  # type: ignore[arg-type]
    annotations = [
        _Annotation(
            image_id=_id(r.get("image_id")),
            category_id=_id(r.get("category_id")),
            bbox=_box(r.get("bbox")),
            id=_id(r.get("id")),
            area=_number(r.get("area")),
            iscrowd=bool(r.get("iscrowd")),
            difficult=bool(r.get("difficult")),
            keypoints=_numbers(r.get("keypoints")),
        )
        for r in records("annotations")
    ]
    return _File(pictures, categories, annotations, value.get("info"))


def _id(value: Any) -> Id | None:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _box(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, w, h = (math.nan if (number := _number(v)) is None else number for v in value)
    return x, y, w, h


def _numbers(value: Any) -> list[float] | None:
    """The list as numbers; what is none becomes 0, which is not visible."""
    return [_number(v) or 0.0 for v in value] if isinstance(value, list) else None


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
        file = _decode(path, findings)
    except OSError as error:
        raise DetkitError(f"cannot read this file: {error.strerror}", str(path), "check the path") from error
    categories = _categories(file.categories, path, findings)
    names = _class_names(categories, path, findings)
    seen: dict[Id | None, int] = {}
    image_rows = []
    for row, picture in enumerate(file.images):
        if picture.id is None or picture.id in seen:
            name = "image without an id (dropped)" if picture.id is None else "image id used twice (later one dropped)"
            findings.add(name, f"{path}: image {picture.id} ({picture.file_name})")
            continue
        seen[picture.id] = len(seen)
        image_rows.append(row)
    pictures = [file.images[row] for row in image_rows]
    folder = image_folder(path, [p.file_name for p in pictures[:20]], images, file.info)
    files = [os.path.join(folder, p.file_name) for p in pictures]
    sizes = np.asarray([(_length(p.height), _length(p.width)) for p in pictures], dtype=np.int32).reshape(-1, 2)
    _fill_sizes(sizes, files, pictures, path, findings)
    objects = _objects(file.annotations, seen, {c.id: i for i, c in enumerate(categories)}, path, findings)
    return assemble(
        objects,
        [p.id for p in pictures],
        files,
        sizes,
        names,
        tuple(c.id for c in categories),
        findings,
        Source("coco", path, split, Path(folder)),
        np.asarray(image_rows, dtype=np.int64),
    )


def _objects(
    records: list[_Annotation],
    images: dict[Id | None, int],
    classes: dict[Id | None, int],
    path: Path,
    findings: Findings,
) -> Objects:
    n = len(records)

    def where(row: int) -> str:
        a = records[row]
        return f"{path}: annotation {a.id if a.id is not None else f'number {row}'} (image {a.image_id})"

    def column(name: str) -> Iterator[Any]:
        return map(attrgetter(name), records)

    boxes = list(column("bbox"))
    no_box = np.asarray([row for row, box in enumerate(boxes) if box is None] if None in boxes else [], np.int64)
    findings.add_rows("annotation without a box of four numbers (dropped)", no_box, where)
    for row in no_box.tolist():
        boxes[row] = (0.0, 0.0, 0.0, 0.0)
    xywh = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * n).reshape(n, 4)
    image = _look_up(list(column("image_id")), images)
    labels = _look_up(list(column("category_id")), classes)
    findings.add_rows("unknown image id (annotation dropped)", np.flatnonzero(image < 0), where)
    findings.add_rows("unknown category id (annotation dropped)", np.flatnonzero(labels < 0), where)
    labels[no_box] = -1
    area = np.asarray(list(column("area")), dtype=np.float64)  # None becomes NaN
    crowd = np.fromiter(map(bool, column("iscrowd")), bool, n)
    difficult = np.fromiter(map(bool, column("difficult")), bool, n)
    ids = _whole(list(column("id")))
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    findings.add_rows("annotation id used again (kept)", np.sort(again), where)
    return Objects(image, xywh, labels, where, crowd, difficult, area, ids, _points(list(column("keypoints"))))


def _look_up(values: list[Id | None], table: dict[Id | None, int]) -> np.ndarray:
    """(N,) int64: the table's number for each value, -1 where it has none; sorted search where all are integers."""
    keys = list(table)
    if not keys or set(map(type, values)) | set(map(type, keys)) != {int}:
        return np.fromiter(map(table.get, values, repeat(-1)), np.int64, len(values))
    try:
        wanted, known = np.asarray(values, dtype=np.int64), np.asarray(keys, dtype=np.int64)
    except OverflowError:
        return np.fromiter(map(table.get, values, repeat(-1)), np.int64, len(values))
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    found = order[place]
    numbers = np.fromiter(table.values(), np.int64, len(keys))
    return np.where(known[found] == wanted, numbers[found], -1)


def _whole(values: list[Id | None]) -> np.ndarray:
    """(N,) int64 ids for the metrics' table; where one is a name or missing, all become record numbers, from one."""
    if set(map(type, values)) <= {int}:
        try:
            return np.asarray(values, dtype=np.int64)
        except OverflowError:
            pass
    return np.arange(1, len(values) + 1, dtype=np.int64)


def _length(value: float | None) -> int:
    return int(value) if value is not None and 0 < value < 1 << 31 else 0


def _categories(categories: list[_Category], path: Path, findings: Findings) -> list[_Category]:
    """Those that an id tells apart from all others."""
    kept: dict[Id | None, _Category] = {}
    for category in categories:
        if category.id is None or category.id in kept:
            lacking = category.id is None
            name = "category without an id (dropped)" if lacking else "category id used twice (later one dropped)"
            findings.add(name, f"{path}: category {category.id} ({category.name})")
        else:
            kept[category.id] = category
    return list(kept.values())


def _class_names(categories: list[_Category], path: Path, findings: Findings) -> tuple[str, ...]:
    """Names, made unique: classes are told apart by name everywhere else."""
    names: list[str] = []
    for category in categories:
        name = category.name
        if name in names:
            name = f"{name} ({category.id})"
            findings.add("category name used twice (its id added)", f"{path}: category {category.id} ({category.name})")
        names.append(name)
    return tuple(names)


def _fill_sizes(
    sizes: np.ndarray, files: list[str], pictures: Sequence[_Image], path: Path, findings: Findings
) -> None:
    """Reads the image's header where the file gives no size."""
    for i in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        findings.add("image without width and height (read from the image)", f"{path}: image {pictures[i].id}")
        sizes[i] = size_of(files[i])


def image_folder(path: Path, names: list[str], images: Path | None, info: Any = None) -> str:
    """The folder of the images: ``images``, what the file says, beside the json, ../SPLIT, ../images (and below it).

    The first one that holds one of ``names``; the first of all if none does (labels can be used without images).
    """
    if images is not None:
        return str(images)
    beside = path.absolute().parent
    split = path.stem.removeprefix("instances_")
    folders = [beside, beside.parent / split, beside / split, beside.parent / "images", beside / "images"]
    folders += [beside.parent / "images" / split, beside / "images" / split]
    if isinstance(info, dict) and isinstance(info.get(IMAGE_FOLDER), str):
        folders.insert(0, beside / info[IMAGE_FOLDER])
    for folder in folders:
        if any(name and (folder / name).is_file() for name in names):
            return os.path.normpath(folder)
    return str(beside)
