"""Detections in plain text: a folder of YOLO txt files with scores, and PASCAL VOC's result files, one per class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.detections.lookup import Found, Labelled, Lookup, Row, found_rows, row_boxes
from detkit.io.images import image_size

_VOC_NAME = re.compile(r"comp\d_det_(.+)\.txt")
_YOLO_LINE = "class centre-x centre-y width height score, as fractions of the image"
_VOC_LINE = "image score left top right bottom, in one-based inclusive pixels"


def is_text(path: Path) -> bool:
    """True for a folder and for a file with the name of PASCAL's results."""
    return path.is_dir() or _VOC_NAME.fullmatch(path.name) is not None


def read_texts(path: Path, data: Labelled) -> Found:
    """The detections of a folder or file, where each one came from, and notes.

    A folder with files called comp3_det_PART_CLASS.txt (any digit), or such a file, is read as PASCAL VOC's: the class
    is in the name. Any other folder is YOLO's: each file is called as its image; classes.txt, if it is there, names
    the classes, else the numbers are those of ``data.classes``. Raises DetkitError as ``read_detections``.
    """
    files = sorted(file for file in path.glob("*.txt") if file.is_file()) if path.is_dir() else [path]
    voc = [file for file in files if _VOC_NAME.fullmatch(file.name)]
    if voc:
        return _read_voc(voc, data)
    if not files:
        raise DetkitError("this folder holds no txt files", str(path), "give YOLO's labels folder, or VOC's results")
    return _read_yolo(path, [file for file in files if file.name != "classes.txt"], data)


def _read_yolo(folder: Path, files: list[Path], data: Labelled) -> Found:
    lookup, rows, notes = Lookup(data, endings=False), list[Row](), list[str]()
    names, listed = list(data.classes), folder / "classes.txt"
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    else:
        notes.append(f"no classes.txt: class 0 is taken as {names[0] if names else 'nothing'}, and so on")
    for file in files:
        image = lookup.image(file.stem, str(file))
        for where, (word, *rest) in _lines(file, _YOLO_LINE):
            number = int(word) if word.isdecimal() else len(names)
            if number >= len(names):
                what = f"class {word} is not one of the {len(names)}, 0 to {len(names) - 1}"
                raise DetkitError(what, where, "put the names, one per line, into classes.txt beside the files")
            *box, score = _numbers(rest, where, _YOLO_LINE)
            rows.append((image, lookup.label(names[number], where), box, score, where))
    missing = len(data.files) - len(files)
    if missing > 0:
        notes.append(f"{missing} of {len(data.files)} images have no file in {folder.name}")
    boxes, size = row_boxes(rows), _image_sizes(data, [row[0] for row in rows])
    wh = boxes[:, 2:] * size
    return found_rows(rows, np.concatenate([boxes[:, :2] * size - wh / 2, wh], axis=1), notes)


def _read_voc(files: list[Path], data: Labelled) -> Found:
    lookup, rows = Lookup(data, endings=False), list[Row]()
    named: dict[int, Path] = {}
    for file in files:
        label = _class_of(file, lookup)
        if label in named:
            what = f"two files of detections of {data.classes[label]}: {named[label].name} and {file.name}"
            raise DetkitError(what, str(file.parent), "keep one competition and one part of the data in a folder")
        named[label] = file
        for where, (word, *rest) in _lines(file, _VOC_LINE):
            score, *box = _numbers(rest, where, _VOC_LINE)
            rows.append((lookup.image(word, where), label, box, score, where))
    without = [name for k, name in enumerate(data.classes) if k not in named]
    notes = [f"no file for {', '.join(without)}: every such object counts as missed"] if without else []
    boxes = row_boxes(rows)
    # One-based and inclusive: only the upper left corner moves when that becomes zero-based and exclusive.
    corner = boxes[:, :2] - 1
    return found_rows(rows, np.concatenate([corner, boxes[:, 2:] - corner], axis=1), notes)


def _lines(file: Path, form: str) -> Iterator[tuple[str, list[str]]]:
    """Place and words of each line that is not blank; all have six."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DetkitError(f"cannot read these detections: {error}", str(file), "write plain text") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) not in (0, 6):
            raise DetkitError(f"{len(words)} words in a line of 6", f"{file}, line {number}", f"write {form}")
        if words:
            yield f"{file}, line {number}", words


def _numbers(words: list[str], where: str, form: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise DetkitError(str(error), where, f"write {form}") from None


def _class_of(file: Path, lookup: Lookup) -> int:
    """The class in a file's name; the longest one, since a name may end in another."""
    rest = file.stem.partition("_det_")[2]
    ends = [name for name in lookup.data.classes if rest == name or rest.endswith(f"_{name}")]
    return lookup.label(max(ends, key=len) if ends else rest.rpartition("_")[2], str(file))


def _image_sizes(data: Labelled, images: Sequence[int]) -> np.ndarray:
    """(M, 2) width, height of these images, read from those whose size the data does not say."""
    sizes = np.array(data.sizes, float).reshape(-1, 2)[:, ::-1].copy()
    for i in {image for image in images if not sizes[image].all()}:
        sizes[i] = image_size(data.files[i])
    return sizes[np.array(images, np.int64)]
