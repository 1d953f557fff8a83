"""PASCAL VOC folders: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. Its corners are one-based and inclusive;
subtracting 1 from xmin and ymin only makes them zero-based with exclusive x2 and y2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detkit.data.annotations import (
    UNSAFE,
    Annotations,
    Findings,
    Images,
    Objects,
    Source,
    assemble,
    check_part,
    fill_sizes,
)
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PARTS = ("head", "hand", "foot")  # VOC's person layout names these inside <part>
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    image: int
    file: Path
    number: int  # among the objects of the file
    element: Element

    @property
    def where(self) -> str:
        """The file and the line where the object starts."""
        starts = list(re.finditer(rb"<object[\s>]", data := self.file.read_bytes()))
        line = data.count(b"\n", 0, starts[self.number].start()) + 1 if self.number < len(starts) else 1
        return f"{self.file}:{line}"


class VocFormat(DatasetFormat):
    """A folder with Annotations/*.xml, and lists of its parts in ImageSets/Main."""

    looked_for = "a PASCAL VOC folder (with Annotations/*.xml)"

    def recognises(self, path: Path) -> bool:
        """True for a folder with Annotations/*.xml."""
        return path.is_dir() and next((path / "Annotations").glob("*.xml"), None) is not None

    def splits(self, path: Path) -> list[str]:
        """Names of the lists in ImageSets/Main, without the lists of single classes (two columns)."""
        lists = sorted((path / "ImageSets" / "Main").glob("*.txt"))
        return [p.stem for p in lists if "_" not in p.stem or not _is_class_list(p)]

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads the folder, or one list of it; ``split`` may also be the path of a list. See ``DatasetFormat.read``."""
        findings = Findings()
        stems = sorted(p.stem for p in (path / "Annotations").glob("*.xml"))
        if split is not None:
            file = next((f for f in (_list_file(path, split), Path(split)) if f.is_file()), None)
            if file is None:
                check_part(split, self.splits(path), path / "ImageSets" / "Main")
            stems = _listed(file or _list_file(path, split), set(stems), findings)
        folder = images or next((f for f in (path / "JPEGImages", path / "images") if f.is_dir()), path / "JPEGImages")
        present = folder.iterdir() if folder.is_dir() else ()
        by_stem = {p.stem: p.name for p in present if p.suffix.lower() in IMAGE_SUFFIXES}
        trees: list[tuple[str, Path, Element]] = []
        for stem in stems:
            file = path / "Annotations" / f"{stem}.xml"
            if (tree := _parse(file, findings)) is not None:
                trees.append((stem, file, tree))
        if not trees:
            found = [f"{one.name}: {one.examples[0]}" for one in findings.as_list()]
            do = found[0] if found else "the list of images is empty"
            raise DetkitError("no annotation of this data set could be read", str(path / "Annotations"), do)
        files = [str(folder / by_stem.get(stem, _text(tree, "filename") or f"{stem}.jpg")) for stem, _, tree in trees]
        sizes = [[_whole(_text(tree, f"size/{key}")) for key in ("height", "width")] for *_, tree in trees]
        table = np.asarray([pair if all(pair) else (0, 0) for pair in sizes], dtype=np.int32)
        fill_sizes(table, files, lambda i: findings.add("size missing (read from the image)", str(trees[i][1])))
        objects = [
            _Object(i, file, number, element)
            for i, (_, file, tree) in enumerate(trees)
            for number, element in enumerate(tree.findall("object"))
        ]
        classes = _classes(path, {_text(one.element, "name") for one in objects} - {""})
        ids: list[int | str] = [stem for stem, *_ in trees]
        source = Source("voc", path, split, folder)
        columns = _columns(objects, classes, findings)
        return assemble(columns, Images(ids, files, table), dict(enumerate(classes, 1)), findings, source)


def _list_file(path: Path, split: str) -> Path:
    return path / "ImageSets" / "Main" / f"{split}.txt"


def _is_class_list(path: Path) -> bool:
    with open(path, encoding="utf-8") as file:
        return len(file.readline().split()) == 2


def _listed(file: Path, known: set[str], findings: Findings) -> list[str]:
    stems: dict[str, None] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        # Lists of one class carry a second column, -1 where the class is absent.
        if not words or (len(words) > 1 and words[-1] == "-1"):
            continue
        stem = words[0] if len(words) == 1 or words[-1] in ("0", "1") else line.strip()
        if stem not in known:
            findings.add("listed image without annotation (dropped)", f"{file}:{number}: {stem}")
        elif stem in stems:
            findings.add("image listed twice (once dropped)", f"{file}:{number}: {stem}")
        else:
            stems[stem] = None
    return list(stems)


def _parse(file: Path, findings: Findings) -> Element | None:
    """The file's root; None, counted, if it is not well-formed XML or not safe to read."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException, ElementTree

    try:
        root: Element = ElementTree.parse(str(file)).getroot()
    except DefusedXmlException:
        findings.add(UNSAFE, str(file))
    except (ParseError, UnicodeError, LookupError) as error:
        line = error.position[0] if isinstance(error, ParseError) else 1
        findings.add("annotation file is not XML (image dropped)", f"{file}:{line}: {error}")
    except OSError as error:
        findings.add("annotation file cannot be read (image dropped)", f"{file}: {error.strerror}")
    else:
        return root
    return None


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _whole(text: str) -> int:
    number = _number(text)
    return int(number) if 0 < number < 1 << 31 else 0


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _columns(objects: list[_Object], classes: tuple[str, ...], findings: Findings) -> Objects:
    index = {name: i for i, name in enumerate(classes)}
    labels = np.full(len(objects), -1, dtype=np.int64)
    corners = np.zeros((len(objects), 4))
    difficult = np.zeros(len(objects), dtype=bool)
    for row, one in enumerate(objects):
        name = _text(one.element, "name")
        box = {key: _text(one.element, f"bndbox/{key}") for key in _CORNERS}
        missing = [key for key, text in {"name": name, **box}.items() if not text]
        if missing:
            findings.add("object without " + " or ".join(missing) + " (dropped)", one.where)
        elif name not in index:
            findings.add("object of a class that classes.txt does not name (dropped)", f"{one.where}: {name}")
        else:
            labels[row] = index[name]
            corners[row] = [_number(text) for text in box.values()]
            difficult[row] = _text(one.element, "difficult") in ("1", "true", "True")
    low = corners[:, :2] - 1
    xywh = np.concatenate([low, corners[:, 2:] - low], axis=1)
    image = np.asarray([one.image for one in objects], dtype=np.int64)
    return Objects(image, xywh, labels, lambda row: objects[row].where, difficult=difficult)


def _classes(path: Path, found: set[str]) -> tuple[str, ...]:
    """classes.txt; else VOC's twenty if no file names another class; else all names of the whole folder, sorted.

    The whole folder counts, so that every part of a data set has the same labels.
    """
    listed = path / "classes.txt"
    if listed.is_file():
        return tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    names = set(found)
    for file in (path / "Annotations").glob("*.xml"):
        text = file.read_bytes()
        words = {name.decode("utf-8", "replace") for name in re.findall(rb"<name>\s*([^<]*?)\s*</name>", text)}
        if not words <= names | set(_PARTS) and (tree := _parse(file, Findings())) is not None:
            names |= {_text(one, "name") for one in tree.findall("object")} - {""}
    return CLASSES if names <= set(CLASSES) else tuple(sorted(names))
