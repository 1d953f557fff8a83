"""Detections in plain text: a folder of YOLO txt files with scores, and PASCAL VOC's result files, one a class."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.errors import DetkitError
from detkit.tables import Results

if TYPE_CHECKING:
    from detkit.metrics.detections import Labelled

Found = tuple[Results, Callable[[int], str], list[str]]
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
        return _Reader(data, _VOC_LINE).voc(voc)
    if not files:
        raise DetkitError("this folder holds no txt files", str(path), "give YOLO's labels folder, or VOC's results")
    return _Reader(data, _YOLO_LINE).yolo(path, [file for file in files if file.name != "classes.txt"])


class _Reader:
    def __init__(self, data: Labelled, form: str) -> None:
        self.data, self.form = data, form
        self.images: list[int] = []
        self.labels: list[int] = []
        self.numbers: list[list[float]] = []
        self.places: list[tuple[Path, int]] = []
        self.stems: dict[str, list[int]] = {}
        for i, file in enumerate(data.files):
            self.stems.setdefault(_stem(file), []).append(i)

    def yolo(self, folder: Path, files: list[Path]) -> Found:
        notes, names = [], _names(folder)
        if names is None:
            names = list(self.data.classes)
            notes.append(f"no classes.txt: class 0 is taken as {names[0] if names else 'nothing'}, and so on")
        table = [self.data.classes.index(name) if name in self.data.classes else -1 for name in names]
        for file in files:
            image = self._image(file.stem, str(file))
            for where, words in self._lines(file, 6):
                label = int(words[0]) if words[0].isdecimal() else -1
                if label < 0 or label >= len(names):
                    what = f"class {words[0]} is not one of the {len(names)}, 0 to {len(names) - 1}"
                    raise DetkitError(what, where, "put the names, one a line, into classes.txt beside the files")
                if table[label] < 0:
                    raise _unknown_class(names[label], where, self.data.classes)
                self._add(image, table[label], words[1:], where)
        missing = len(self.data.files) - len(files)
        if missing > 0:
            notes.append(f"{missing} of {len(self.data.files)} images have no file in {folder.name}")
        values = np.array(self.numbers, float).reshape(-1, 5)
        size = self._sizes()[np.array(self.images, np.int64)]
        wh = values[:, 2:4] * size
        return self._done(np.concatenate([values[:, :2] * size - wh / 2, wh], axis=1), values[:, 4], notes)

    def voc(self, files: list[Path]) -> Found:
        named: dict[int, Path] = {}
        for file in files:
            label = self._class_of(file)
            if label in named:
                what = f"two files of detections of {self.data.classes[label]}: {named[label].name} and {file.name}"
                raise DetkitError(what, str(file.parent), "keep one competition and one part of the data in a folder")
            named[label] = file
            for where, words in self._lines(file, 6):
                self._add(self._image(words[0], where), label, words[1:], where)
        without = [name for k, name in enumerate(self.data.classes) if k not in named]
        notes = [f"no file for {', '.join(without)}: every such object counts as missed"] if without else []
        values = np.array(self.numbers, float).reshape(-1, 5)
        # One-based and inclusive: only the upper left corner moves when that becomes zero-based and exclusive.
        corner = values[:, 1:3] - 1
        return self._done(np.concatenate([corner, values[:, 3:] - corner], axis=1), values[:, 0], notes)

    def _done(self, xywh: np.ndarray, score: np.ndarray, notes: list[str]) -> Found:
        results = Results(np.array(self.images, np.int64), np.array(self.labels, np.int64), xywh, score)
        return results, lambda row: "{}, line {}".format(*self.places[row]), notes

    def _lines(self, file: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DetkitError(f"cannot read these detections: {error}", str(file), "write plain text") from None
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words:
                continue
            if len(words) != columns:
                what = f"{len(words)} words in a line of {columns}"
                raise DetkitError(what, f"{file}, line {number}", f"write {self.form}")
            self.places.append((file, number))
            yield f"{file}, line {number}", words

    def _add(self, image: int, label: int, words: list[str], where: str) -> None:
        try:
            self.numbers.append([float(word) for word in words])
        except ValueError as error:
            raise DetkitError(str(error), where, f"write {self.form}") from None
        self.images.append(image)
        self.labels.append(label)

    def _image(self, name: str, where: str) -> int:
        found = self.stems.get(unicodedata.normalize("NFC", name)) or self.stems.get(_stem(name)) or []
        if len(found) == 1:
            return found[0]
        if found:
            what = f"{len(found)} images of the data are called {name}"
            raise DetkitError(what, where, "give detections as COCO results, which name images by their id")
        near = difflib.get_close_matches(name, self.stems, 1)
        do = f"is it {near[0]}?" if near else "is it the part (--split) of the data that was detected on?"
        raise DetkitError(f"image {name} is not in the data", where, do)

    def _class_of(self, file: Path) -> int:
        said = _VOC_NAME.fullmatch(file.name)
        rest = said.group(1) if said else ""
        ends = [name for name in self.data.classes if rest == name or rest.endswith(f"_{name}")]
        if not ends:
            raise _unknown_class(rest.rpartition("_")[2], str(file), self.data.classes)
        return list(self.data.classes).index(max(ends, key=len))

    def _sizes(self) -> np.ndarray:
        """(I, 2) width, height of the images, read from those whose size the data does not say."""
        from detkit.io.images import image_size

        sizes = np.array(self.data.sizes, float).reshape(-1, 2)[:, ::-1].copy()
        for i in {image for image in self.images if not sizes[image].all()}:
            sizes[i] = image_size(self.data.files[i])
        return sizes


def _stem(file: str) -> str:
    """The file's name without folders and ending; some systems write accents as two characters."""
    return re.sub(r"\.\w{1,5}$", "", re.split(r"[/\\]", unicodedata.normalize("NFC", file))[-1])


def _names(folder: Path) -> list[str] | None:
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _unknown_class(name: str, where: str, classes: Sequence[str]) -> DetkitError:
    near = difflib.get_close_matches(name, classes, 1)
    do = f"is it {near[0]!r}?" if near else f"the data has {', '.join(classes[:5])}{' ...' * (len(classes) > 5)}"
    return DetkitError(f"class {name!r} is not in the data", where, do)
