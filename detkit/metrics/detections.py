"""Detections from files: COCO results json, the JSON lines that ``detkit detect --json`` prints, or plain text.

Whatever would silently change a score is an error that names the file, the entry and what to do.
"""

from __future__ import annotations

import difflib
import gzip
import io
import mmap
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np

from detkit.errors import DetkitError
from detkit.metrics.detection_texts import Found, is_text, read_texts
from detkit.metrics.doubts import doubts
from detkit.metrics.scanner import places, scan_results
from detkit.tables import Results

_GZIP = b"\x1f\x8b"
_FORMS = (
    "give COCO results json ([{image_id, category_id, bbox, score}, ...]), the lines of detkit detect --json, a folder "
    "of YOLO txt files with scores, or VOC's comp4 files"
)


class Labelled(Protocol):
    """What a detections file is matched with; ``detkit.data`` annotations are this.

    image_ids and files (paths of the images), one an image; sizes (I, 2) height, width in pixels, 0 if unknown;
    classes: names; class_ids: the data's own ids of them.
    """

    @property
    def image_ids(self) -> Sequence[int | str]: ...
    @property
    def files(self) -> Sequence[str]: ...
    @property
    def sizes(self) -> np.ndarray: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def class_ids(self) -> Sequence[int | str]: ...


class _Entry(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float]
    score: float
    file_name: str | None = None  # detkit's own files have it


class _Found(msgspec.Struct, gc=False):
    label: str
    score: float
    box: tuple[float, float, float, float]


class _Line(msgspec.Struct, gc=False):
    source: str
    detections: list[_Found]
    frame: int | None = None
    width: int = 0
    height: int = 0


def read_detections(path: str | Path, data: Labelled) -> tuple[Results, list[str]]:
    """The detections of a file, in file order, and notes for the reader (what is unusual, with counts).

    A folder holds text files (see ``read_texts``); a file's form is told by its first character. COCO entries name
    images and categories by the data's own ids (an image of an unknown id by its file_name, if words are among the
    ids); JSON lines by file name and class name. Raises DetkitError (code 2) for a file that is missing, empty, cut
    off (with the byte) or of another form; wrong types; unknown images or classes; numbers that are not finite; scores
    outside 0..1; boxes of negative size; two lines for one image; a line whose image has another size.
    """
    path = Path(path)
    results, where, notes = read_texts(path, data) if is_text(path) else _read_json(path, data)
    _check(results, where)
    flat = int(np.count_nonzero((results.xywh[:, 2] == 0) | (results.xywh[:, 3] == 0)))
    if flat:
        notes.append(f"{flat} detections of zero width or height (they match nothing)")
    return results, notes + doubts(results, data.sizes)


def _read_json(path: Path, data: Labelled) -> Found:
    raw = _content(path)
    start = bom = 3 if raw[:3] == b"\xef\xbb\xbf" else 0
    while raw[start : start + 1].isspace():
        start += 1
    first = raw[start : start + 1]
    if not first:
        raise DetkitError("the detections file is empty", str(path), "if nothing was found, COCO's form is []")
    if first not in b"[{":
        raise DetkitError("this is not a detections file", f"{path}, byte 0", _FORMS)
    return _read_coco(path, raw, start, data) if first == b"[" else _read_lines(path, raw, bom, data)


def _content(path: Path) -> bytes | mmap.mmap:
    """The file's bytes: unpacked if it is gzip, mapped if it is an ordinary file."""
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or not about.st_size:
                raw = file.read()
                return gzip.decompress(raw) if raw[:2] == _GZIP else raw
            packed = file.read(2) == _GZIP
            file.seek(0)
            return (
                gzip.GzipFile(fileobj=file).read() if packed else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DetkitError(f"the compressed detections file is damaged: {error}", str(path), "copy it again") from None
    except OSError as error:
        raise DetkitError("cannot read the detections file", f"{path}: {error.strerror}", "check the path") from None


def _read_coco(path: Path, raw: bytes | mmap.mmap, start: int, data: Labelled) -> Found:
    def where(row: int) -> str:
        return f"{path}, entry {row} (counted from 0)"

    def known(index: np.ndarray, key: str, named: Callable[[int], int | str], hint: str) -> None:
        if len(bad := np.flatnonzero(index < 0)):
            what = f"{key} {named(int(bad[0]))!r} is not in the data ({len(bad)} such)"
            raise DetkitError(what, where(int(bad[0])), hint)

    def same_name(row: int, entry: _Entry | None) -> None:
        if entry is None or entry.file_name is None or image[row] < 0:
            return
        name = _Images.parts(data.files[image[row]])[0]
        if _Images.parts(entry.file_name)[0] != name:
            what = f"image {entry.image_id!r} is {entry.file_name} here, in the data it is {name}"
            raise DetkitError(what, where(row), "the images were numbered anew: use the data that was detected on")

    image_hint = _id_hint(data.image_ids, "the part (--split) of the data it was made on")
    if (found := scan_results(raw, start)) is not None:
        image, label = places(found.image, data.image_ids), places(found.category, data.class_ids)
        known(image, "image_id", lambda row: int(found.image[row]), image_hint)
        known(label, "category_id", lambda row: int(found.category[row]), _class_hint(found.category, data.class_ids))
        results = Results(image, label, found.box, found.score)
        if len(results):  # of the file's many names two are looked at
            same_name(0, _one_entry(raw, raw.find(b"{", start)))
            same_name(len(results) - 1, _one_entry(raw, raw.rfind(b"{")))
    else:
        view = memoryview(raw)[start:]
        _decode(view, msgspec.Raw, path, start)  # a large file that is cut off fails here, before it fills the memory
        entries: list[_Entry] = _decode(view, list[_Entry], path, start)
        images = {key: i for i, key in reversed(list(enumerate(data.image_ids)))}
        labels = {key: k for k, key in reversed(list(enumerate(data.class_ids)))}
        pictures, image = _Images(data), np.full(len(entries), -1, np.int64)
        for row, entry in enumerate(entries):
            if entry.image_id not in images and entry.file_name is not None:
                images[entry.image_id] = pictures.find(entry.file_name, where(row))
            image[row] = images.get(entry.image_id, -1)
            same_name(row, entry)
        label = np.array([labels.get(e.category_id, -1) for e in entries], np.int64)
        known(image, "image_id", lambda row: entries[row].image_id, image_hint)
        numbers = np.array([e.category_id if isinstance(e.category_id, int) else -1 for e in entries], object)
        known(label, "category_id", lambda row: entries[row].category_id, _class_hint(numbers, data.class_ids))
        boxes, scores = [e.bbox for e in entries], [e.score for e in entries]
        results = Results(image, label, np.array(boxes, float).reshape(-1, 4), np.array(scores, np.float64))
    missing = len(data.image_ids) - int(np.count_nonzero(np.bincount(image, minlength=len(data.image_ids))))
    notes = [f"{missing} of {len(data.image_ids)} images have no detection in {path.name}"] if missing else []
    return results, where, notes


def _read_lines(path: Path, raw: bytes | mmap.mmap, offset: int, data: Labelled) -> Found:
    pictures = _Images(data)
    labels = {name: k for k, name in enumerate(data.classes)}
    image: list[int] = []
    label: list[int] = []
    boxes: list[tuple[float, ...]] = []
    scores: list[float] = []
    numbers: list[int] = []
    seen: dict[int, int] = {}
    stream = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    stream.seek(offset)
    for number, text in enumerate(iter(stream.readline, b""), 1):
        begin, offset = offset, offset + len(text)
        if not text.strip():
            continue
        line: _Line = _decode(text.rstrip(), _Line, path, begin, number)
        where = f"{path}, line {number}"
        if line.frame is not None:
            what = f"line {number} is a frame of a video, {line.source}"
            raise DetkitError(what, where, "evaluate images: detkit detect --json FOLDER > FILE")
        index = pictures.find(line.source, where)
        if index in seen:
            what = f"two lines for {line.source}: {seen[index]} and {number}"
            raise DetkitError(what, where, "keep one line an image")
        seen[index] = number
        _check_size(line, data.sizes[index], where)
        for found in line.detections:
            if found.label not in labels:
                near = difflib.get_close_matches(found.label, labels, 1)
                do = f"is it {near[0]!r}?" if near else f"the data has {_some(data.classes)}"
                raise DetkitError(f"class {found.label!r} is not in the data", where, do)
            image.append(index)
            label.append(labels[found.label])
            boxes.append(found.box)
            scores.append(found.score)
            numbers.append(number)
    xywh = np.array(boxes, float).reshape(-1, 4)
    xywh[:, 2:] -= xywh[:, :2]
    missing = len(data.image_ids) - len(seen)
    notes = [f"{missing} of {len(data.image_ids)} images have no line in {path.name}"] if missing else []
    results = Results(np.array(image, np.int64), np.array(label, np.int64), xywh, np.array(scores, np.float64))
    return results, lambda row: f"{path}, line {numbers[row]}", notes


def _check(results: Results, where: Callable[[int], str]) -> None:
    score, least = results.score, min(results.xywh[:, axis].min(initial=0) for axis in (2, 3))
    if np.isfinite(results.xywh.sum()) and least >= 0 and score.min(initial=0) >= 0 and score.max(initial=0) <= 1:
        return  # a few quick passes; the rules below tell what is wrong where
    finite = np.isfinite(results.score) & np.isfinite(results.xywh).all(axis=1)
    rules = (
        (~finite, "a box or score is not a finite number", "the model's output holds NaN or infinity: repair it first"),
        ((results.score < 0) | (results.score > 1), "a score lies outside 0..1", "write probabilities, not logits"),
        (
            (results.xywh[:, 2:] < 0).any(axis=1),
            "a box of negative size",
            "COCO's bbox is x, y, width, height; box is x1, y1, x2, y2",
        ),
    )
    for bad, what, do in rules:
        if bad.any():
            row = int(np.argmax(bad))
            box = [round(float(v), 3) for v in results.xywh[row]]
            detail = f"score {results.score[row]:g}, x y width height {box}; {np.count_nonzero(bad)} such"
            raise DetkitError(what, f"{where(row)}: {detail}", do)


def _check_size(line: _Line, size: np.ndarray, where: str) -> None:
    height, width = (int(v) for v in size)
    if line.width and line.height and width and height and (line.width, line.height) != (width, height):
        what = f"{line.source} was {line.width} x {line.height} pixels, in the data it is {width} x {height}"
        raise DetkitError(what, where, "detect on the same images that the data describes")


class _Images:
    """Finds the image that a source names: by file name, and where several share it by the folders before it."""

    def __init__(self, data: Labelled) -> None:
        self._by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for i, file in enumerate(data.files):
            parts = self.parts(file)
            self._by_name.setdefault(parts[0], []).append((parts, i))

    @staticmethod
    def parts(path: str) -> tuple[str, ...]:
        """File name first, then its folder, and so on; some systems write accents as two characters."""
        parts = PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")).parts
        return tuple(reversed(parts)) or ("",)

    def find(self, source: str, where: str) -> int:
        parts = self.parts(source)
        found = self._by_name.get(parts[0], [])
        if not found:
            near = difflib.get_close_matches(parts[0], self._by_name, 1)
            do = f"is it {near[0]}?" if near else "is it the part (--split) of the data that was detected on?"
            raise DetkitError(f"image {parts[0]} is not in the data", where, do)
        shared = [_common(parts, other) for other, _ in found]
        if shared.count(max(shared)) > 1:
            what = f"{shared.count(max(shared))} images of the data are called {source}"
            raise DetkitError(what, where, "run detect on the data's folder, so that the folders tell them apart")
        return found[shared.index(max(shared))][1]


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def _decode(raw: bytes | memoryview, kind: Any, path: Path, offset: int, line: int | None = None) -> Any:
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
    except msgspec.DecodeError as error:
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


def _one_entry(raw: bytes | mmap.mmap, begin: int) -> _Entry | None:
    """The entry whose bytes start there, None for one that holds other objects."""
    try:
        return msgspec.json.decode(raw[begin : raw.find(b"}", begin) + 1], type=_Entry)
    except msgspec.DecodeError:
        return None


def _class_hint(numbers: np.ndarray, ids: Sequence[int | str]) -> str:
    hint = _id_hint(ids, "the data's own category ids")
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low >= 0 and high <= len(ids):
        first = 0 if (numbers == 0).any() else 1
        return f"they look like places in the list of classes, counted from {first}: {hint}"
    return hint


def _id_hint(ids: Sequence[int | str], use: str) -> str:
    return f"use {use}; the data has {_some(ids)}"


def _some(values: Sequence[int | str]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (f" ... ({len(values)})" if len(values) > 5 else "")
