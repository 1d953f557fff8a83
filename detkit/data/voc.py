"""PASCAL VOC folders: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. Its corners are one-based and inclusive;
subtracting 1 from xmin and ymin only makes them zero-based with exclusive x2 and y2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.handler import ContentHandler

import numpy as np

from detkit.data.annotations import UNSAFE, Annotations, Findings, Objects, Source, assemble, size_of
from detkit.errors import DetkitError

LOOKED_FOR = "a PASCAL VOC folder (with Annotations/*.xml)"

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PARTS = ("head", "hand", "foot")  # VOC's person layout names these inside <part>
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class _Object:
    line: int
    values: dict[str, str] = field(default_factory=dict)


class _Handler(ContentHandler):
    """Collects the text of leaves: the image's in ``values`` and each object's, with the line where it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.objects: list[_Object] = []
        self._path: list[str] = []
        self._text = ""
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:
        self._locator = locator

    def startElement(self, name: str, attrs: Any) -> None:
        if name == "object" and len(self._path) == 1:
            self.objects.append(_Object(self._locator.getLineNumber()))
        self._path.append(name)
        self._text = ""

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:
        inside = len(self._path) > 2 and self._path[1] == "object"
        place = self.objects[-1].values if inside else self.values
        place.setdefault("/".join(self._path[2:] if inside else self._path[1:]), self._text.strip())
        self._path.pop()
        self._text = ""


def recognises(path: Path) -> bool:
    """True for a folder with Annotations/*.xml."""
    return path.is_dir() and next((path / "Annotations").glob("*.xml"), None) is not None


def splits(path: Path) -> list[str]:
    """Names of the lists in ImageSets/Main, without the lists of single classes (two columns)."""
    lists = sorted((path / "ImageSets" / "Main").glob("*.txt"))
    return [p.stem for p in lists if "_" not in p.stem or not _is_class_list(p)]


def _is_class_list(path: Path) -> bool:
    with open(path, encoding="utf-8") as file:
        return len(file.readline().split()) == 2


def read(path: Path, split: str | None, images: Path | None) -> Annotations:
    """Reads the folder, or one list of it; ``split`` may also be the path of a list. See detkit.data.dataset.read."""
    findings = Findings()
    stems = _stems(path, split, findings)
    folder = images or next((f for f in (path / "JPEGImages", path / "images") if f.is_dir()), path / "JPEGImages")
    pictures = _by_stem(folder)
    ids: list[int | str] = []
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    objects: list[tuple[int, _Object, str]] = []
    for stem in stems:
        file = path / "Annotations" / f"{stem}.xml"
        parsed = _parse(file, findings)
        if parsed is None:
            continue
        picture = str(folder / pictures.get(stem, parsed.values.get("filename") or f"{stem}.jpg"))
        size = tuple(_whole(parsed.values.get(f"size/{key}")) for key in ("height", "width"))
        if not all(size):
            findings.add("size missing (read from the image)", str(file))
            size = size_of(picture)
        objects.extend((len(files), one, str(file)) for one in parsed.objects)
        ids.append(stem)
        files.append(picture)
        sizes.append((size[0], size[1]))
    if not files:
        raise DetkitError("no annotation of this data set could be read", str(path / "Annotations"), _first(findings))
    classes = _classes(path, {name for _, one, _ in objects if (name := one.values.get("name"))})
    return assemble(
        _columns(objects, classes, findings),
        ids,
        files,
        np.asarray(sizes, dtype=np.int32),
        classes,
        tuple(range(1, len(classes) + 1)),
        findings,
        Source("voc", path, split, folder),
    )


def _first(findings: Findings) -> str:
    found = findings.as_list()
    return f"{found[0].name}: {found[0].examples[0]}" if found else "the list of images is empty"


def _stems(path: Path, split: str | None, findings: Findings) -> list[str]:
    present = sorted(p.stem for p in (path / "Annotations").glob("*.xml"))
    if split is None:
        return present
    file = path / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        file = Path(split)
    if not file.is_file():
        names = splits(path)
        do = (
            f"the parts are {', '.join(names)}"
            if names
            else "the folder has no ImageSets/Main/*.txt: leave --split out"
        )
        raise DetkitError(f"no part {split!r}", str(path / "ImageSets" / "Main"), do)
    known = set(present)
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


def _by_stem(folder: Path) -> dict[str, str]:
    from detkit.io.images import IMAGE_SUFFIXES

    if not folder.is_dir():
        return {}
    return {p.stem: p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}


def _parse(file: Path, findings: Findings) -> _Handler | None:
    """The file's fields; None, counted, if it is not well-formed XML or not safe to read."""
    from xml.sax import SAXException, SAXParseException

    import defusedxml
    import defusedxml.sax

    handler = _Handler()
    try:
        defusedxml.sax.parse(str(file), handler)
    except defusedxml.DefusedXmlException:
        findings.add(UNSAFE, str(file))
        return None
    except (SAXException, UnicodeError) as error:
        line = error.getLineNumber() if isinstance(error, SAXParseException) else 1
        findings.add("annotation file is not XML (image dropped)", f"{file}:{line}: {error}")
        return None
    except OSError as error:
        findings.add("annotation file cannot be read (image dropped)", f"{file}: {error.strerror}")
        return None
    return handler


def _whole(text: str | None) -> int:
    number = _number(text)
    return int(number) if 0 < number < 1 << 31 else 0


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _columns(objects: list[tuple[int, _Object, str]], classes: tuple[str, ...], findings: Findings) -> Objects:
    index = {name: i for i, name in enumerate(classes)}
    labels = np.full(len(objects), -1, dtype=np.int64)
    corners = np.zeros((len(objects), 4))
    difficult = np.zeros(len(objects), dtype=bool)

    def where(row: int) -> str:
        return f"{objects[row][2]}:{objects[row][1].line}"

    for row, (_, one, _) in enumerate(objects):
        name = one.values.get("name")
        box = [one.values.get(f"bndbox/{key}") for key in _CORNERS]
        missing = [key for key, text in zip(("name", *_CORNERS), (name, *box), strict=True) if not text]
        if missing:
            findings.add("object without " + " or ".join(missing) + " (dropped)", where(row))
            continue
        if name not in index:
            findings.add("object of a class that classes.txt does not name (dropped)", f"{where(row)}: {name}")
            continue
        labels[row] = index[name]
        corners[row] = [_number(text) for text in box]
        difficult[row] = one.values.get("difficult") in ("1", "true", "True")
    low = corners[:, :2] - 1
    xywh = np.concatenate([low, corners[:, 2:] - low], axis=1)
    image = np.asarray([i for i, _, _ in objects], dtype=np.int64)
    return Objects(image, xywh, labels, where, difficult=difficult)


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
        if not words <= names | set(_PARTS):
            parsed = _parse(file, Findings())
            names |= {name for one in (parsed.objects if parsed else []) if (name := one.values.get("name"))}
    return CLASSES if names <= set(CLASSES) else tuple(sorted(names))
