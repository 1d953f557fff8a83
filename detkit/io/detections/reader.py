"""Detections from files, in whatever form; what would silently change a score is an error that names the place.

Text is read here: a folder of YOLO txt files with scores, and PASCAL VOC's result files, one per class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.errors import DetkitError, some
from detkit.io.detections.json_files import read_json, read_shards
from detkit.io.detections.lookup import Found, Lookup, Row, found_rows
from detkit.io.files import digits_in, names_in, text_of
from detkit.io.images import image_size
from detkit.io.shards import is_shards
from detkit.printed import counted
from detkit.tables import Results

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations

_FEW = 20  # detections that say nothing about a whole file
_VOC_NAME = re.compile(r"comp\d_det_(.+)\.txt")
_YOLO_LINE = "class centre-x centre-y width height score, as fractions of the image"
_VOC_LINE = "image score left top right bottom, in one-based inclusive pixels"
_ROUNDING = 1e-6  # of scores; float32's is a tenth of it
_SEARCHED = 20_000  # detections among which repeated ones are looked for, in a file that is in order


def read_detections(path: str | Path, data: Annotations) -> tuple[Results, list[str]]:
    """The detections of a file or folder, in file order.

    A file's form is told by its first character, and by PASCAL's names (comp4_det_test_CLASS.txt). COCO entries name
    images and categories by the data's own ids (an image of an unknown id by its file_name, if words are among the
    ids); JSON lines by file name and class name; for folders see ``read_texts``.

    Args:
        path: COCO results, lines of ``detect --json`` or its csv (all also gzip), text files, or a folder of shards,
            which may be an address (s3://...).
        data: What was detected on.

    Returns:
        The table, and notes for a person: what is unusual, with counts.

    Raises:
        DetkitError: A file that is missing, empty, cut off (with the byte) or of another form; wrong types; unknown
            images; classes that are all unknown; numbers of which most are not finite; scores outside 0..1; boxes of
            negative size; two lines for one image; a line whose image has another size.
    """
    if is_shards(path):
        found = read_shards(str(path), data)
    else:
        path = Path(path)
        found = read_texts(path, data) if is_text(path) else read_json(path, data)
    results, where, notes, unknown = found
    finite = np.isfinite(results.score) & np.isfinite(results.xywh).all(axis=1)
    _check(results, finite, where)
    if len(lost := np.flatnonzero(~finite)):
        what = f"{counted(len(lost), 'detection')} left out, whose box or score is no finite number"
        notes.append(f"{what}: {where(int(lost[0]))}")
    if unknown:
        names = some([*unknown])
        notes.append(f"{counted(sum(unknown.values()), 'detection')} left out, since the data has no class {names}")
    if rounded := int((results.score > 1).sum() + (results.score < 0).sum()):
        notes.append(f"{counted(rounded, 'score')} outside 0..1 by rounding only (taken as they are)")
    if len(lost) or unknown:
        results = results[finite & (results.label >= 0)]
    flat = int(np.count_nonzero((results.xywh[:, 2:] == 0).any(axis=1)))
    if flat:
        notes.append(f"{counted(flat, 'detection')} of zero width or height (matching nothing)")
    return results, notes + score_warnings(results, data.sizes)


def _check(results: Results, finite: np.ndarray, where: Callable[[int], str]) -> None:
    """Raises DetkitError for numbers that make no sense, with the first place and how many there are."""
    broken = ~finite & (2 * np.count_nonzero(finite) < len(finite))
    outside = finite & ((results.score < -_ROUNDING) | (results.score > 1 + _ROUNDING))
    negative = finite & (results.xywh[:, 2:] < 0).any(axis=1)
    rules = (
        (broken, "most boxes or scores are not a finite number", "the model's output holds NaN or infinity: repair it"),
        (outside, "a score lies outside 0..1", "write probabilities, not logits"),
        (negative, "a box of negative size", "COCO's bbox is x, y, width, height; box is x1, y1, x2, y2"),
    )
    for bad, what, do in rules:
        if bad.any():
            row = int(np.argmax(bad))
            box = [round(float(v), 3) for v in results.xywh[row]]
            detail = f"score {results.score[row]:g}, x y width height {box}; {np.count_nonzero(bad)} such"
            raise DetkitError(what, f"{where(row)}: {detail}", do)


def score_warnings(results: Results, sizes: np.ndarray) -> list[str]:
    """Sentences on boxes and scores that look like those of another kind of file, though nothing in it is wrong.

    Boxes that end outside their images (corners taken for a width and height, resized images) or are fractions;
    scores that were cut off or are all the same; detections that stand in the file twice.

    Args:
        results: The detections.
        sizes: (I, 2) height, width of the images in pixels, 0 if unknown.
    """
    if len(results) < _FEW:
        return []
    notes = []
    size = sizes[:, ::-1].astype(np.float64)
    size[(size == 0).any(axis=1)] = np.inf  # unknown
    ends = results.xywh[:, :2] + results.xywh[:, 2:]
    if ends.max() <= 1.01 < size.min():
        notes.append("all boxes lie within one pixel: are they fractions of the image? COCO's bbox is in pixels")
    outside = int((ends > size[results.image] + 1).any(axis=1).sum())
    if outside > len(results) / 4:
        what = f"{outside} of {len(results)} boxes end outside their images"
        notes.append(f"{what}: are they x1, y1, x2, y2 instead of x, y, width, height, or of resized images?")
    low, high = float(results.score.min()), float(results.score.max())
    if low == high:
        notes.append(f"all detections have the score {low:g}: AP depends on their order in the file")
    elif low > 0.1:
        notes.append(f"no detection scores below {low:.2g}: AP counts those too (detkit detect --conf 0.001)")
    looked_at = _worth_searching(results)
    if twice := _repeated(looked_at):
        what = f"{'at least ' * (len(looked_at) < len(results))}{counted(twice, 'detection')} once more in the file"
        notes.append(f"{what}, box, class and score: each counts as a false one")
    return notes


def _worth_searching(results: Results) -> Results:
    """All detections, but only the first ones of a file that keeps those of an image together."""
    runs = 1 + np.count_nonzero(results.image[1:] != results.image[:-1])
    in_order = runs == np.count_nonzero(np.bincount(results.image))
    return results[np.arange(_SEARCHED)] if in_order and len(results) > _SEARCHED else results


def _repeated(results: Results) -> int:
    """Detections that equal an earlier one: those of the same sum, each column having a weight of its own."""
    columns = (results.image, results.label, results.score, *results.xywh.T)
    weights = np.random.default_rng(0).random(len(columns))
    sums = sum(weight * column for weight, column in zip(weights, columns, strict=True))
    return len(results) - len(np.unique(sums))


def is_text(path: Path) -> bool:
    """True for a folder and for a file with the name of PASCAL's results."""
    return path.is_dir() or _VOC_NAME.fullmatch(path.name) is not None


def read_texts(path: Path, data: Annotations) -> Found:
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


def _read_yolo(folder: Path, files: list[Path], data: Annotations) -> Found:
    lookup, rows, notes = Lookup(data, endings=False), list[Row](), list[str]()
    names, listed = list(data.classes), folder / "classes.txt"
    if listed.is_file():
        names = names_in(listed)
    else:
        notes.append(f"no classes.txt: class 0 is taken as {names[0] if names else 'nothing'}, and so on")
    for file in files:
        image = lookup.image(file.stem, str(file))
        for where, word, (x, y, w, h, score) in _lines(file, _YOLO_LINE):
            number = digits_in(word)
            if number is None or number >= len(names):
                what = f"class {word} is not one of the {len(names)}, 0 to {len(names) - 1}"
                raise DetkitError(what, where, "put the names, one per line, into classes.txt beside the files")
            width, height = _image_size(data, image)
            w, h = w * width, h * height
            box = (x * width - w / 2, y * height - h / 2, w, h)
            rows.append((image, lookup.label(names[number]), box, score, where))
    missing = len(data.files) - len(files)
    if missing > 0:
        notes.append(f"{missing} of {len(data.files)} images have no file in {folder.name}")
    return found_rows(rows, notes, lookup)


def _read_voc(files: list[Path], data: Annotations) -> Found:
    lookup, rows = Lookup(data, endings=False), list[Row]()
    named: dict[int | str, Path] = {}
    for file in files:
        name = _class_of(file, data)
        place = lookup.place(name)
        twin = named.setdefault(name if place is None else place, file)
        if twin is not file:
            what = f"two files of detections of {name}: {twin.name} and {file.name}"
            raise DetkitError(what, str(file.parent), "keep one competition and one part of the data in a folder")
        for where, word, (score, left, top, right, bottom) in _lines(file, _VOC_LINE):
            # One-based and inclusive: only the upper left corner moves when that becomes zero-based and exclusive.
            x, y = left - 1, top - 1
            box = (x, y, right - x, bottom - y)
            rows.append((lookup.image(word, where), lookup.label(name), box, score, where))
    without = [name for place, name in enumerate(data.classes) if place not in named]
    notes = [f"no file for {', '.join(without)}: every such object counts as missed"] if without else []
    return found_rows(rows, notes, lookup)


def _lines(file: Path, form: str) -> Iterator[tuple[str, str, list[float]]]:
    """Place, first word and five numbers of each line that is not blank."""
    for number, line in enumerate(text_of(file).splitlines(), 1):
        where, words = f"{file}, line {number}", line.split()
        if len(words) not in (0, 6):
            raise DetkitError(f"{len(words)} words in a line of 6", where, f"write {form}")
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError as error:
            raise DetkitError(str(error), where, f"write {form}") from None
        if words:
            yield where, words[0], numbers


def _class_of(file: Path, data: Annotations) -> str:
    """The class in a file's name; the longest one, since a name may end in another."""
    rest = file.stem.partition("_det_")[2]
    ends = [name for name in data.classes if rest == name or rest.endswith(f"_{name}")]
    return max(ends, key=len) if ends else rest.rpartition("_")[2]


def _image_size(data: Annotations, image: int) -> tuple[int, int]:
    """(width, height), read from the image if the data does not say it."""
    height, width = data.sizes[image].tolist()
    return (width, height) if width and height else image_size(data.files[image])
