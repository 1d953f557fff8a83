"""PASCAL VOC folders: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. Its corners are one-based and inclusive;
subtracting 1 from xmin and ymin only makes them zero-based with exclusive x2 and y2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.reading import UNSAFE, ImageTable, ObjectTable, assemble, check_part, pixels, size_of
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
_NEEDED = ("name", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")


class _Object(NamedTuple):
    image: int
    file: Path
    number: int  # among the objects of the file
    name: str
    corners: list[float]  # xmin, ymin, xmax, ymax
    difficult: bool


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
        findings, xml = Findings(), path / "Annotations"
        stems = sorted(p.stem for p in xml.glob("*.xml"))
        if split is not None:
            lists = path / "ImageSets" / "Main"
            file = next((f for f in (lists / f"{split}.txt", Path(split)) if f.is_file()), None)
            check_part(split, self.splits(path) if file is None else [split], lists)
            stems = _listed(file or lists, set(stems), findings)
        folder = images or next((f for f in (path / "JPEGImages", path / "images") if f.is_dir()), path / "JPEGImages")
        present = folder.iterdir() if folder.is_dir() else ()
        by_stem = {p.stem: p.name for p in present if p.suffix.lower() in IMAGE_SUFFIXES}
        ids: list[int | str] = []
        files, sizes, objects = list[str](), list[tuple[int, int]](), list[_Object]()
        for stem in stems:
            file = xml / f"{stem}.xml"
            if (tree := _parse(file, findings)) is None:
                continue
            ids.append(stem)
            files.append(str(folder / by_stem.get(stem, _text(tree, "filename") or f"{stem}.jpg")))
            size = pixels(_number(_text(tree, "size/height"))), pixels(_number(_text(tree, "size/width")))
            if not all(size):
                findings.add("size missing (read from the image)", str(file))
            sizes.append(size if all(size) else size_of(files[-1]))
            for number, element in enumerate(tree.findall("object")):
                texts = {field.removeprefix("bndbox/"): _text(element, field) for field in _NEEDED}
                if missing := " or ".join(field for field, text in texts.items() if not text):
                    findings.add(f"object without {missing} (dropped)", _where(file, number))
                    continue
                name, *corners = texts.values()
                difficult = _text(element, "difficult") in ("1", "true", "True")
                objects.append(_Object(len(ids) - 1, file, number, name, list(map(_number, corners)), difficult))
        if not ids:
            faults = [f"{one.name}: {one.examples[0]}" for one in findings.as_list()]
            do = faults[0] if faults else "the list of images is empty"
            raise DetkitError("no annotation of this data set could be read", str(xml), do)
        classes = _classes(path, {one.name for one in objects})
        found = ImageTable(ids, files, np.array(sizes, np.int32))
        columns = _columns(objects, classes, findings)
        return assemble(columns, found, dict(enumerate(classes, 1)), findings, Source("voc", path, split, folder))


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


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _where(file: Path, number: int) -> str:
    """The file and the line where its object of this number starts."""
    data = file.read_bytes()
    starts = [match.start() for match in re.finditer(rb"<object[\s>]", data)]
    line = data.count(b"\n", 0, starts[number]) + 1 if number < len(starts) else 1
    return f"{file}:{line}"


def _columns(objects: list[_Object], classes: tuple[str, ...], findings: Findings) -> ObjectTable:
    def where(row: int) -> str:
        return _where(objects[row].file, objects[row].number)

    index = {name: i for i, name in enumerate(classes)}
    labels = np.asarray([index.get(one.name, -1) for one in objects], dtype=np.int64)
    unnamed = "object of a class that classes.txt does not name (dropped)"
    findings.add_rows(unnamed, labels < 0, lambda row: f"{where(row)}: {objects[row].name}")
    xywh = np.asarray([one.corners for one in objects], dtype=np.float64).reshape(-1, 4)
    xywh[:, :2] -= 1
    xywh[:, 2:] -= xywh[:, :2]
    image = np.asarray([one.image for one in objects], dtype=np.int64)
    difficult = np.asarray([one.difficult for one in objects], dtype=bool)
    return ObjectTable(image, xywh, labels, where, difficult=difficult)


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
