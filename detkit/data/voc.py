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
from detkit.data.reading import UNSAFE, ImageTable, ObjectTable, assemble, check_part, fill_sizes
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
_FIELDS = (*_NEEDED, "difficult")


class _Object(NamedTuple):
    image: int
    file: Path
    number: int  # among the objects of the file
    values: dict[str, str]  # the texts of ``_FIELDS``

    @property
    def where(self) -> str:
        """The file and the line where the object starts."""
        data = self.file.read_bytes()
        starts = [match.start() for match in re.finditer(rb"<object[\s>]", data)]
        line = data.count(b"\n", 0, starts[self.number]) + 1 if self.number < len(starts) else 1
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
            lists = path / "ImageSets" / "Main"
            file = next((f for f in (lists / f"{split}.txt", Path(split)) if f.is_file()), None)
            check_part(split, self.splits(path) if file is None else [split], lists)
            stems = _listed(file or lists, set(stems), findings)
        folder = images or next((f for f in (path / "JPEGImages", path / "images") if f.is_dir()), path / "JPEGImages")
        present = folder.iterdir() if folder.is_dir() else ()
        by_stem = {p.stem: p.name for p in present if p.suffix.lower() in IMAGE_SUFFIXES}
        found, objects = ImageTable([], [], np.zeros((len(stems), 2), np.int32)), []
        for stem in stems:
            file = path / "Annotations" / f"{stem}.xml"
            if (tree := _parse(file, findings)) is None:
                continue
            i = len(found.ids)
            size = [_whole(_text(tree, f"size/{key}")) for key in ("height", "width")]
            found.sizes[i] = size if all(size) else 0
            found.ids.append(stem)
            found.files.append(str(folder / by_stem.get(stem, _text(tree, "filename") or f"{stem}.jpg")))
            for number, element in enumerate(tree.findall("object")):
                values = {field: _text(element, field) for field in _FIELDS}
                objects.append(_Object(i, file, number, values))
        if not found.ids:
            faults = [f"{one.name}: {one.examples[0]}" for one in findings.as_list()]
            do = faults[0] if faults else "the list of images is empty"
            raise DetkitError("no annotation of this data set could be read", str(path / "Annotations"), do)
        found = found._replace(sizes=found.sizes[: len(found.ids)])
        xml = path / "Annotations"
        unsized = "size missing (read from the image)"
        fill_sizes(found.sizes, found.files, lambda i: findings.add(unsized, str(xml / f"{found.ids[i]}.xml")))
        classes = _classes(path, {one.values["name"] for one in objects} - {""})
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


def _whole(text: str) -> int:
    number = _number(text)
    return int(number) if 0 < number < 1 << 31 else 0


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _columns(objects: list[_Object], classes: tuple[str, ...], findings: Findings) -> ObjectTable:
    index = {name: i for i, name in enumerate(classes)}
    labels = np.full(len(objects), -1, dtype=np.int64)
    corners = np.zeros((len(objects), 4))
    difficult = np.zeros(len(objects), dtype=bool)
    for row, one in enumerate(objects):
        name = one.values["name"]
        missing = [field.removeprefix("bndbox/") for field in _NEEDED if not one.values[field]]
        if missing:
            findings.add("object without " + " or ".join(missing) + " (dropped)", one.where)
        elif name not in index:
            findings.add("object of a class that classes.txt does not name (dropped)", f"{one.where}: {name}")
        else:
            labels[row] = index[name]
            corners[row] = [_number(one.values[field]) for field in _NEEDED[1:]]
            difficult[row] = one.values["difficult"] in ("1", "true", "True")
    low = corners[:, :2] - 1
    xywh = np.concatenate([low, corners[:, 2:] - low], axis=1)
    image = np.asarray([one.image for one in objects], dtype=np.int64)
    return ObjectTable(image, xywh, labels, lambda row: objects[row].where, difficult=difficult)


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
