"""PASCAL VOC's xml files, one per image: Annotations, JPEGImages and ImageSets/Main, or as other tools lay them out.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. Its corners are one-based and inclusive;
subtracting 1 from xmin and ymin only makes them zero-based with exclusive x2 and y2. Some tools write zero-based
corners: where more of a folder's lowest corners are 0 than 1, nothing is subtracted, and that is said.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.listing import IMAGE_FOLDERS, ImageIndex, count_skipped, files_in, of_suffix, part_of
from detkit.data.reading import ImageTable, ObjectTable, assemble, pixels, short_names, size_of
from detkit.data.voc_layout import VocFiles, is_voc, voc_files
from detkit.data.xml_files import number_in, parse_xml
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.files import names_in

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PARTS = ("head", "hand", "foot")  # VOC's person layout names these inside <part>
_NEEDED = ("name", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
_NAME = re.compile(rb"<name>\s*([^<]*?)\s*</name>")
_EDGE = re.compile(rb"<[xy]min>\s*([01])(?:\.0*)?\s*</[xy]min>")


class _Object(NamedTuple):
    image: int
    file: Path
    number: int  # among the objects of the file
    name: str
    corners: list[float]  # xmin, ymin, xmax, ymax
    difficult: bool


class VocFormat(DatasetFormat):
    """A folder with an xml per image, in Annotations or beside the images, and perhaps lists in ImageSets/Main."""

    looked_for = "a PASCAL VOC folder (an xml per image)"

    def recognises(self, path: Path) -> bool:
        """True for a folder with xml files in Annotations, or that begin with <annotation>."""
        return path.is_dir() and is_voc(path)

    def splits(self, path: Path) -> list[str]:
        """Names of the lists in ImageSets/Main, but those of one class; without any, of folders train, val, test."""
        return voc_files(path).splits()

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads the folder, or one part of it; ``split`` may also be the path of a list. See ``DatasetFormat.read``."""
        findings, found = Findings(), voc_files(path)
        chosen = found.chosen(split, findings)
        homes = (found.root / name for name in IMAGE_FOLDERS[:3] if (found.root / name).is_dir())
        folder, index = images or next(homes, found.root), ImageIndex(images or found.root)
        files, sizes, objects, read = list[str](), list[tuple[int, int]](), list[_Object](), list[str]()
        for xml in chosen:
            file = found.root / xml
            if (tree := _parse(file, findings)) is None:
                continue
            read.append(xml)
            name = _text(tree, "filename")
            files.append(str(index.find(xml, name) or folder / (Path(name).name or f"{file.stem}.jpg")))
            size = pixels(number_in(_text(tree, "size/height"))), pixels(number_in(_text(tree, "size/width")))
            if not all(size):
                findings.add("size missing (read from the image)", str(file), note=True)
            sizes.append(size if all(size) else size_of(files[-1]))
            for number, element in enumerate(tree.findall("object")):
                texts = {field.removeprefix("bndbox/"): _text(element, field) for field in _NEEDED}
                if missing := " or ".join(field for field, text in texts.items() if not text):
                    findings.add(f"object without {missing} (dropped)", _where(file, number))
                    continue
                name, *corners = texts.values()
                difficult = _text(element, "difficult") in ("1", "true", "True")
                objects.append(_Object(len(read) - 1, file, number, name, list(map(number_in, corners)), difficult))
        if not read:
            do = findings.first("the list of images is empty")
            raise DetkitError("no annotation of this data set could be read", str(found.root), do)
        if not found.lists:
            _count_rest(index.root, set(files), split, findings)
        names, zero_based = _survey(found)
        names |= {one.name for one in objects}
        listed = found.root / "classes.txt"
        classes = tuple(names_in(listed) if listed.is_file() else ()) or _classes(names)
        if zero_based:
            findings.add("corners count from 0, not from 1 as VOC's (taken as they are)", str(found.root), note=True)
        columns = _columns(objects, classes, findings, 0 if zero_based else 1)
        table = ImageTable(short_names(read), files, np.array(sizes, np.int32))
        source = Source("voc", found.root, split, folder)
        return assemble(columns, table, dict(enumerate(classes, 1)), findings, source)


def _count_rest(root: Path, used: set[str], split: str | None, findings: Findings) -> None:
    """Counts the images without an xml, and what is no image, in the folders where some have one."""
    folders = {str(Path(file).parent) for file in used}
    files = [file for file in files_in(root) if split is None or part_of(file) == split]
    beside = [path for path in (str(root / file) for file in files) if os.path.dirname(path) in folders]
    count_skipped(beside, findings)
    for file in (file for file in of_suffix(beside) if file not in used):
        findings.add("image without an annotation file (left out)", file, note=True)


def _parse(file: Path, findings: Findings) -> Element | None:
    """The file's root; None, counted, where it cannot be read or is another xml."""
    root = parse_xml(file, findings)
    if root is not None and root.tag != "annotation":
        findings.add("xml file that is no VOC annotation (left out)", f"{file}: <{root.tag}>")
        return None
    return root


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _where(file: Path, number: int) -> str:
    """The file and the line where its object of this number starts."""
    data = file.read_bytes()
    starts = [match.start() for match in re.finditer(rb"<object[\s>]", data)]
    line = data.count(b"\n", 0, starts[number]) + 1 if number < len(starts) else 1
    return f"{file}:{line}"


def _columns(objects: list[_Object], classes: tuple[str, ...], findings: Findings, first: int) -> ObjectTable:
    """The table of the objects; ``first`` is the lowest corner in the files' counting."""

    def where(row: int) -> str:
        return _where(objects[row].file, objects[row].number)

    index = {name: i for i, name in enumerate(classes)}
    labels = np.asarray([index.get(one.name, -1) for one in objects], dtype=np.int64)
    unnamed = "object of a class that classes.txt does not name (dropped)"
    findings.add_rows(unnamed, labels < 0, lambda row: f"{where(row)}: {objects[row].name}")
    xywh = np.asarray([one.corners for one in objects], dtype=np.float64).reshape(-1, 4)
    xywh[:, :2] -= first
    xywh[:, 2:] -= xywh[:, :2]
    image = np.asarray([one.image for one in objects], dtype=np.int64)
    difficult = np.asarray([one.difficult for one in objects], dtype=bool)
    return ObjectTable(image, xywh, labels, where, difficult=difficult)


def _survey(found: VocFiles) -> tuple[set[str], bool]:
    """Names of all classes of the whole folder, so that every part of a data set has the same labels, and whether its
    corners are zero-based: more of them lie at 0 than at 1."""
    names, edges = set[str](), list[bytes]()
    for file in (found.root / xml for xml in found.xml):
        try:
            text = file.read_bytes()
        except OSError:
            continue  # counted where it is read
        edges += _EDGE.findall(text)
        words = {name.decode("utf-8", "replace") for name in _NAME.findall(text)}
        # Only what is not known yet is worth parsing: parts, entities and comments are no classes.
        if not words <= names | set(_PARTS) and (tree := _parse(file, Findings())) is not None:
            names |= {_text(one, "name") for one in tree.findall("object")} - {""}
    return names, 2 * edges.count(b"0") > len(edges)


def _classes(names: set[str]) -> tuple[str, ...]:
    """VOC's twenty, in their order, where the data holds most of them and no other; else the names, sorted."""
    return CLASSES if names <= set(CLASSES) and 2 * len(names) > len(CLASSES) else tuple(sorted(names))
