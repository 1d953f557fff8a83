"""Detections as COCO results, as the JSON lines that ``detkit detect --json`` prints, and as its csv and shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby, repeat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import numpy as np

from detkit.errors import DetkitError, some
from detkit.io.detections.lookup import Found, Lookup, Row, found_rows, path_parts
from detkit.io.files import reading
from detkit.io.shards import Shards
from detkit.tables import Results, other_spelling

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations

T = TypeVar("T")
_FORMS = (
    "give COCO results json ([{image_id, category_id, bbox, score}, ...]), the lines or csv of detkit detect, a folder "
    "of YOLO txt files with scores, or VOC's comp4 files"
)


class _Entry(msgspec.Struct, gc=False):
    image_id: int | float | str  # pandas writes 3 as 3.0
    category_id: int | float | str
    bbox: tuple[float, float, float, float]
    score: float
    file_name: str | None = None  # detkit's own files have it, and the class's
    category_name: str | None = None


class _Found(msgspec.Struct, gc=False):
    label: str
    score: float
    box: tuple[float, float, float, float]


class DetectedLine(msgspec.Struct, gc=False):
    """What ``detect --json`` prints of an image or a frame."""

    source: str
    detections: list[_Found]
    frame: int | None = None
    width: int = 0
    height: int = 0


def read_json(path: Path, data: Annotations) -> Found:
    """The detections of a JSON file, or of the csv that ``detect`` writes; see ``read_detections``."""
    raw = _content(path)
    bom = 3 if raw[:3] == b"\xef\xbb\xbf" else 0
    start = re.compile(rb"\s*").match(raw, bom).end()  # type: ignore[union-attr]
    first = raw[start : start + 1]
    if raw.startswith(b"source,frame,width,height,label,", start):
        return _found_in(path, _csv_lines(path, raw[start:].decode("utf-8", "replace")), "line", data)
    if not first:
        raise DetkitError("the detections file is empty", str(path), "if nothing was found, COCO's form is []")
    if first not in b"[{":
        raise DetkitError("this is not a detections file", f"{path}, byte 0", _FORMS)
    return (
        _read_coco(path, raw, start, data)
        if first == b"["
        else _found_in(path, detected_lines(path, raw, bom), "line", data)
    )


def _content(path: Path) -> bytes:
    with reading(str(path)):
        raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DetkitError(f"the compressed detections file is damaged: {error}", str(path), "copy it again") from None


def _read_coco(path: Path, raw: bytes, start: int, data: Annotations) -> Found:
    def where(row: int) -> str:
        return f"{path}, entry {row} (counted from 0)"

    def column(name: str) -> Iterator[Any]:  # at C's speed: there may be millions of entries
        return map(attrgetter(name), entries)

    entries = _decode(memoryview(raw)[start:], list[_Entry], path, start)
    images = _first_places(data.image_ids)
    if any(column("file_name")):
        _check_file_names(entries, images, data, where)
    notes: list[str] = []
    image = _places("image_id", list(column("image_id")), images, notes)
    kinds, names = list(column("category_id")), list(column("category_name"))
    table = _first_places(data.class_ids)
    if named := None not in names:
        kinds, lookup = names, Lookup(data)
        table = {name: -1 if (place := lookup.place(name)) is None else place for name in set(names)}
    label = _places("category_id", kinds, table, notes)
    unknown = np.flatnonzero(label < 0)
    counted = Counter(kinds[row] for row in unknown)
    refused = _class_hint(kinds, data.class_ids) if counted and not named else ""
    hint = _id_hint(data.image_ids, "the part (--split) of the data it was made on")
    wrong = {"image_id": (np.flatnonzero(image < 0), hint), "category_id": (unknown, refused)}
    for key, (bad, hint) in wrong.items():
        if len(bad) and hint:
            what = f"{key} {getattr(entries[bad[0]], key)!r} is not in the data ({len(bad)} such)"
            raise DetkitError(what, where(int(bad[0])), hint)
    boxes = np.fromiter(chain.from_iterable(column("bbox")), np.float64, 4 * len(entries))
    score = np.fromiter(column("score"), np.float64, len(entries))
    missing = len(data.image_ids) - int(np.count_nonzero(np.bincount(image, minlength=len(data.image_ids))))
    notes += [f"{missing} of {len(data.image_ids)} images have no detection in {path.name}"] if missing else []
    return Found(Results(image, label, boxes.reshape(-1, 4), score), where, notes, counted)


def _places(
    name: str, keys: list[int | float | str], table: dict[int | float | str, int], notes: list[str]
) -> np.ndarray:
    """(N,) int64: what ``table`` has for each id, -1 for nothing; other spellings of an id are told in ``notes``."""
    found = np.fromiter(map(table.get, keys, repeat(-1)), np.int64, len(keys))
    if floats := Counter(map(type, keys))[float]:
        notes.append(f"{floats} {name} have a decimal point (taken as whole numbers)")
        # Beyond 2^53 a float stands for several numbers.
        found[[row for row, key in enumerate(keys) if isinstance(key, float) and abs(key) >= 1 << 53]] = -1
    missing = np.flatnonzero(found < 0)
    found[missing] = [table.get(other_spelling(keys[row]), -1) for row in missing.tolist()]
    if respelt := np.count_nonzero(found[missing] >= 0):
        notes.append(f"{respelt} {name} are text here and a number in the data, or the reverse (taken as the same)")
    return found


def _first_places(ids: Sequence[int | str]) -> dict[int | float | str, int]:
    return {key: i for i, key in reversed(list(enumerate(ids)))}


def _check_file_names(
    entries: Sequence[_Entry], images: dict[int | float | str, int], data: Annotations, where: Callable[[int], str]
) -> None:
    """Raises DetkitError where a file_name is not the image's; adds unknown ids, if words are among them, by name."""
    named: dict[tuple[int | float | str, str], int] = {}
    for row, entry in enumerate(entries):
        if entry.file_name is not None:
            named.setdefault((entry.image_id, entry.file_name), row)
    lookup = Lookup(data) if any(isinstance(key, str) for key, _ in named) else None
    for (key, file_name), row in named.items():
        if key not in images:
            if lookup is None:
                continue
            images[key] = lookup.image(file_name, where(row))
        name = path_parts(data.files[images[key]])[0]
        if path_parts(file_name)[0] != name:
            what = f"image {key!r} is {file_name} here, in the data it is {name}"
            raise DetkitError(what, where(row), "the images were numbered anew: use the data that was detected on")


def detected_lines(path: Path, raw: bytes, offset: int = 0) -> Iterator[tuple[int, DetectedLine]]:
    """The lines of ``detect --json`` in a file's content from an offset on, with their numbers.

    Raises:
        DetkitError: The first that is none.
    """
    for number, text in enumerate(io.BytesIO(raw[offset:]), 1):
        begin, offset = offset, offset + len(text)
        if text.strip():
            yield number, _decode(text.rstrip(), DetectedLine, path, begin, number)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, DetectedLine]]:
    """The rows of ``detect --out found.csv``: those of an image as one line, with the first one's number."""
    table = enumerate(csv.DictReader(io.StringIO(text, newline="")), 2)
    for (_, frame), rows in groupby(table, key=lambda row: (row[1]["source"], row[1]["frame"])):
        (number, first), *more = rows
        found = [
            {**row, "box": [row[key] for key in ("x1", "y1", "x2", "y2")]} for row in (first, *dict(more).values())
        ]
        line = {**first, "frame": frame or None, "detections": found}
        try:
            yield number, msgspec.convert(line, DetectedLine, strict=False)
        except msgspec.ValidationError as error:
            raise DetkitError(f"wrong detections: {error}", f"{path}, line {number}", _FORMS) from None


def read_shards(path: str, data: Annotations) -> Found:
    """The detections of a folder of ``detect --shards``; see ``read_detections``."""
    failed: list[str] = []

    def lines() -> Iterator[tuple[int, DetectedLine]]:
        for number, row in enumerate(Shards(path).rows(), 1):
            if row["error"] is None:
                yield number, msgspec.convert(row, DetectedLine)
            else:
                failed.append(row["source"])

    found = _found_in(path, lines(), "row", data)
    if failed:
        found.notes.append(f"images that could not be read when they were detected on: {some(failed)}")
    return found


def _found_in(path: str | Path, lines: Iterable[tuple[int, DetectedLine]], unit: str, data: Annotations) -> Found:
    lookup, rows = Lookup(data), list[Row]()
    seen: dict[int, int] = {}
    for number, line in lines:
        where = f"{path}, {unit} {number}"
        if line.frame is not None:
            what = f"line {number} is a frame of a video, {line.source}"
            raise DetkitError(what, where, "evaluate images: detkit detect --json FOLDER > FILE")
        index = lookup.image(line.source, where)
        if index in seen:
            what = f"two lines for {line.source}: {seen[index]} and {number}"
            raise DetkitError(what, where, "keep one line per image")
        seen[index] = number
        _check_size(line, data.sizes[index], where)
        for found in line.detections:
            x1, y1, x2, y2 = found.box
            rows.append((index, lookup.label(found.label), (x1, y1, x2 - x1, y2 - y1), found.score, where))
    missing = len(data.image_ids) - len(seen)
    notes = [f"{missing} of {len(data.image_ids)} images have no line in {Path(path).name}"] if missing else []
    return found_rows(rows, notes, lookup)


def _check_size(line: DetectedLine, size: np.ndarray, where: str) -> None:
    height, width = (int(v) for v in size)
    if line.width and line.height and width and height and (line.width, line.height) != (width, height):
        what = f"{line.source} was {line.width} x {line.height} pixels, in the data it is {width} x {height}"
        raise DetkitError(what, where, "detect on the same images that the data describes")


def _decode(raw: bytes | memoryview, kind: type[T], path: Path, offset: int, line: int | None = None) -> T:
    """Typed JSON, or a DetkitError with the entry or byte; offset: where ``raw`` begins in the file."""
    place = f"{path}, line {line}" if line else str(path)
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at ")
        if line and what.startswith("Object missing required field"):
            raise DetkitError(f"not a line of detections: {what}", place, _FORMS) from None
        entry = re.sub(r"^\$", "", at.strip("`"))
        raise DetkitError(f"wrong detections: {what}", f"{place}{', at ' if entry else ''}{entry}", _FORMS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        with suppress(ValueError, RecursionError):  # Python's json writes NaN, which JSON has not
            return msgspec.convert(json.loads(bytes(raw)), kind)
        _malformed(str(error), raw, place, offset)


def _malformed(problem: str, raw: bytes | memoryview, place: str, offset: int) -> NoReturn:
    byte = re.search(r"\(byte (\d+)\)", problem)
    at = int(byte.group(1)) if byte else 0
    if "truncated" in problem or ("invalid number" in problem and at >= len(raw)):
        end = offset + len(raw)
        do = "it was cut off while being written or copied: make it again"
        raise DetkitError("the detections file ends too early", f"{place}, byte {end}", do) from None
    at -= bytes(raw[max(at - 1, 0) : at]) == b"-"
    word = re.match(rb"-?(NaN|Infinity)", bytes(raw[at : at + 10]))
    what = f"{word.group(0).decode()} is not a number" if word else f"the detections file is not JSON: {problem}"
    do = "the model's output holds NaN or infinity: repair it first" if word else _FORMS
    raise DetkitError(what, f"{place}, byte {offset + at}", do) from None


def _class_hint(kinds: Sequence[int | float | str], ids: Sequence[int | str]) -> str:
    """What to do about category ids some of which the data lacks; empty where the others' meaning is plain."""
    numbers = {int(kind) if isinstance(kind, (int, float)) and math.isfinite(kind) else -1 for kind in kinds}
    hint, first = _id_hint(ids, "the data's own category ids"), int(0 not in numbers)
    if min(numbers) >= 0 and max(numbers) < len(ids) + first:
        return f"they look like places in the list of classes, counted from {first}: {hint}"
    return "" if set(kinds) & set(ids) else hint


def _id_hint(ids: Sequence[int | str], use: str) -> str:
    return f"use {use}; the data has {some(ids)}"
