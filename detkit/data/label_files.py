"""What formats of json and csv files share: the files of each part, typed JSON, the table that they fill, and where the
images lie.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Findings, Source, concat_annotations
from detkit.data.listing import PARTS, of_suffix
from detkit.data.reading import ImageTable, ObjectTable, assemble, check_part, fill_sizes, pixels
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.files import reading
from detkit.io.images import paths_in
from detkit.io.stored import tar_members

T = TypeVar("T")
Box = tuple[float, float, float, float]  # x1, y1, x2, y2, exclusive
NO_CLASS = "object"  # the class of boxes that have none
_HEAD = 1 << 16
_MANY = 50  # files of a folder that are looked into for one of the format
_SAMPLE = 20  # images that are looked for in each folder, of all
_UPLOAD = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before an uploaded file's name


def json_kind(path: Path) -> str:
    """The format that the keys at the beginning of a .json file speak for; "": none of them."""
    with reading(str(path)), open(path, "rb") as file:
        head = file.read(_HEAD).decode("utf-8-sig", "ignore")
    keys = re.findall(r'"([^"\\]*)"\s*:', head)
    if head.lstrip().startswith("["):
        if "coordinates" in keys:
            return "createml"
        return "label_studio" if {"original_width", "was_cancelled", "annotation_id"} & set(keys) else ""
    if not head.lstrip().startswith("{") or not keys:
        return ""
    if "shapes" in keys and "images" not in keys:
        return "labelme"
    if not {"regions", "_via_settings", "_via_img_metadata"}.isdisjoint(keys):
        return "via"
    # Supervisely's meta.json has classes, too.
    if keys[0] in ("classes", "labels") and "labels" in keys and {"annotations", "images"}.isdisjoint(keys):
        return "fiftyone"
    # Label Studio's notes.json, beside YOLO's files, has categories and no images.
    known = {"images", "annotations", "categories"} & set(keys)
    return "coco" if known and ("images" in known or len(head) >= _HEAD // 2) else ""


def find_label_files(path: Path, suffix: str, holds: Callable[[Path], bool]) -> dict[str, Path]:
    """Label files by the name of their part.

    Args:
        path: Such a file; or a folder with them in it, in its annotations/ or labels/, or in a folder for each part.
        suffix: Of their names.
        holds: True for a file of the format, asked of those with the suffix.
    """

    def within(folder: Path) -> list[Path]:
        named = (p for p in folder.glob("[!.]*") if p.suffix.lower() == suffix)
        files = sorted(p for p in named if p.is_file())
        if not any(holds(p) for p in files[:_MANY]):  # a file for each image: to open them all takes long
            return []
        return [p for p in files if holds(p)]

    if not path.is_dir():
        return {_part_name(path): path} if path.suffix.lower() == suffix and path.is_file() and holds(path) else {}
    for folder in (path / "annotations", path, path / "labels"):
        if found := within(folder):
            chosen = [p for p in found if p.stem.startswith("instances_")] or found  # not COCO's captions
            names = [_part_name(p) for p in chosen]
            alike = len(set(names)) < len(names)
            return {p.stem if alike else name: p for p, name in zip(chosen, names, strict=True)}
    parts = sorted((p for p in path.iterdir() if p.name.lower() in PARTS), key=lambda p: PARTS.index(p.name.lower()))
    found_in = {p.name: within(p) or within(p / "labels") for p in parts}
    return {
        name if len(files) == 1 else f"{name}/{file.stem}": file for name, files in found_in.items() for file in files
    }


def _part_name(file: Path) -> str:
    return re.sub(r"^instances_|_labels$|_annotations$", "", file.stem)


def named_parts(parts: Collection[str]) -> list[str]:
    """Those names of parts; none where there is only one that is not called train, val or test: it is the whole."""
    alone = len(parts) == 1 and not next(iter(parts)).lower().startswith(("train", "val", "test"))
    return [] if alone else list(parts)


def decode_json(path: Path, kind: type[T], looked_for: str) -> T:
    """The file as ``kind``, a type that msgspec decodes.

    Args:
        path: The file.
        kind: Its type.
        looked_for: What the file should be, for errors.

    Raises:
        DetkitError: It cannot be read, is no JSON, or holds something else.
    """
    with reading(str(path)):
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise DetkitError(f"this is not {looked_for}: {error}", str(path), "export it again") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        do = "the file may be cut short: download or export it again"
        raise DetkitError(f"this is not JSON: {error}", str(path), do) from None


def place_images(names: Sequence[str], folders: Sequence[Path], findings: Findings) -> tuple[Path, list[str]]:
    """The folder of a data set's images, and their names in it.

    Exporters write paths of another machine, back slashes, upload prefixes, or names without their ending. Each way to
    mend them is tried on some of the names in every folder; the first that finds one goes for all, and is said.

    Args:
        names: As the labels have them.
        folders: Where they may lie, the likeliest first.
        findings: Names that had to be mended are added.
    """
    some = [name for name in names[:: max(len(names) // _SAMPLE, 1)] if name]
    depth = max((_tail(name).count("/") for name in some), default=0)
    drops = [partial(_tail, drop=k) for k in range(depth + 1)]
    mends: list[Callable[[str], str]] = [str, *drops, lambda name: _UPLOAD.sub("", drops[-1](name), count=1)]
    for mend in mends:
        tried = [mend(name) for name in some]
        for folder in folders:
            if any(os.path.isfile(folder / name) for name in tried):
                mended = [mend(name) for name in names]
                changed = [f"{name} is {new}" for name, new in zip(names, mended, strict=True) if name != new]
                found = "file name of another machine or upload (found by its last part)"
                findings.add(found, *changed, count=len(changed), note=True)
                return folder, mended
    for folder in folders:
        inside = tar_members(folder)
        for mend in mends if inside else ():
            if any(mend(name) in inside for name in some):
                return folder, [inside.get(mend(name), name) for name in names]
    if not of_suffix(some):  # some formats leave endings out
        plain = list(map(_tail, names))
        within = dict.fromkeys(map(os.path.dirname, plain))
        for folder in folders:
            homes = [home for home in within if os.path.isdir(folder / home)]
            files = [os.path.join(home, p.name) for home in homes for p in paths_in(folder / home)]
            endings = {os.path.splitext(file)[0]: file for file in files}
            if not endings.keys().isdisjoint(plain):
                return folder, [endings.get(name, name) for name in plain]
    return folders[0], list(names)


def _tail(name: str, drop: int = 0) -> str:
    """A relative path with slashes: no back slashes, drive, root, "..", of a URL's query only a path; and without so
    many folders at its beginning."""
    name = name.replace("\\", "/").rpartition("?d=")[2]
    words = re.sub(r"^(?:\w+:)?/*(?:\.{1,2}/+)*", "", name).split("/")
    return "/".join(words[min(drop, len(words) - 1) :])


def image_folders(place: Path) -> list[Path]:
    """Where the images of a label file, or of a folder of labels, may lie: the usual places, the likeliest first."""
    place = place.absolute()
    beside, part = (place, place.name) if place.is_dir() else (place.parent, _part_name(place))
    # zhiyuan_objv2_val.json speaks of val.
    names = [part, *(word for word in re.split(r"[_.\-]", part) if word in PARTS and word != part)]
    folders = [beside, *(home / name for name in names for home in (beside.parent, beside))]
    for images in (beside.parent / "images", beside / "images"):
        folders += [images, *(images / name for name in names)]
    folders.append(beside.parent)
    return folders + [home / name for name in ("data", "img", "JPEGImages") for home in (beside, beside.parent)]


def _with_unnamed(a: Annotations) -> Annotations:
    """Adds to the findings the images that lie among those of the data set and that no label names."""
    folders = [folder for folder in dict.fromkeys(map(os.path.dirname, a.files)) if os.path.isdir(folder)]
    there = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if name[0] != "."}
    unnamed = sorted(of_suffix(there - set(a.files)))
    findings = Findings(a.findings)
    findings.add("image that no label names (left out)", *unnamed, count=len(unnamed), note=True)
    return replace(a, findings=findings.as_list())


class LabelTable:
    """Images and objects of one part, as a reader finds them; ``annotations`` finds the images.

    Args:
        place: The label file, or the folder of the labels.
        folders: Where the images lie, if not in ``image_folders(place)``.

    Attributes:
        findings: What was dropped or repaired so far.
        names: Every class, in the order of their first objects.
        fractions: Corners are parts of the image, not pixels.
    """

    def __init__(self, place: Path, folders: Sequence[Path] = ()) -> None:
        self.place, self.folders = place, list(folders) or image_folders(place)
        self.findings = Findings()
        self.names: dict[str, None] = {}
        self.fractions = False
        self._index: dict[str, int] = {}
        self._sizes: list[tuple[int, int]] = []
        self._rows: list[tuple[int, str, Sequence[float], bool, bool, str]] = []

    def image(self, name: str, width: float | None = None, height: float | None = None) -> int:
        """The index of the image of this name; the labels may know its size in pixels."""
        index = self._index.setdefault(name, len(self._index))
        if index == len(self._sizes):
            self._sizes.append((pixels(height), pixels(width)))
        return index

    def add(
        self, image: int, name: str, box: Sequence[float], where: str, *, crowd: bool = False, difficult: bool = False
    ) -> None:
        """An object.

        Args:
            image: Index of its image.
            name: Its class.
            box: x1, y1, x2, y2, exclusive.
            where: Names it for a person.
            crowd: It is a group in one box.
            difficult: It is hard to see.
        """
        if not (name := name.strip()):
            self.findings.add(f"box without a class (called {NO_CLASS})", where, note=True)
        self.names.setdefault(name or NO_CLASS)
        self._rows.append((image, name or NO_CLASS, box, crowd, difficult, where))

    def shape(self, kind: str, box: Box | None, where: str) -> Box | None:
        """The box around a shape, whose kind is counted unless it is a rectangle; a shape without one is dropped."""
        if box is None:
            self.findings.add(f"{kind} has no area (dropped)", where)
        elif not kind.startswith("rect"):
            self.findings.add(f"{kind} made into a box", where, note=True)
        return box

    def decoded(self, files: Iterable[Path], kind: type[T], looked_for: str) -> Iterator[tuple[Path, T]]:
        """Each label file with what it holds, see ``decode_json``; those that cannot be read are counted."""
        for file in files:
            try:
                yield file, decode_json(file, kind, looked_for)
            except DetkitError as error:
                self.findings.add("label file cannot be read (image dropped)", f"{file}: {error.what}")

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float64 corners as they were added."""
        return np.array([row[2] for row in self._rows], dtype=np.float64).reshape(-1, 4)

    def annotations(self, source: Source, classes: Sequence[str]) -> Annotations:
        """The labels, with these classes, all of ``names`` among them; ``source.images``: the person's own folder."""
        if not self._index:
            do = self.findings.first("label some, and export it again")
            raise DetkitError("this data set names no image", str(self.place), do)
        folders = [source.images] if source.images else self.folders
        folder, names = place_images(list(self._index), folders, self.findings)
        files, sizes = [os.path.normpath(folder / name) for name in names], np.array(self._sizes, dtype=np.int32)
        fill_sizes(sizes, files)
        label_of = {name: label for label, name in enumerate(classes)}
        where = [row[5] for row in self._rows]
        image, labels = np.array([(row[0], label_of[row[1]]) for row in self._rows], dtype=np.int64).reshape(-1, 2).T
        boxes = self.boxes
        if self.fractions:
            boxes *= sizes[image][:, [1, 0, 1, 0]]
            unsized = (sizes[image] == 0).any(axis=1)
            self.findings.add_rows("image's size is unknown (its boxes dropped)", unsized, where.__getitem__)
            labels[unsized] = -1
        boxes[:, 2:] -= boxes[:, :2]
        crowd, difficult = (np.array([row[k] for row in self._rows], dtype=bool) for k in (3, 4))
        objects = ObjectTable(image, boxes, labels, where.__getitem__, crowd, difficult)
        found = ImageTable(list(self._index), files, sizes)
        # Images may lie beside the folder of the labels (../images), not elsewhere on the machine.
        beside = any(not Path(file).is_relative_to(folder) for file in files)
        source = replace(source, images=folder.parent if beside else folder)
        return assemble(objects, found, dict(enumerate(classes)), self.findings, source)


class LabelFilesFormat(DatasetFormat):
    """A label file, or a folder of them, for each part; what derives from it says how one is found and read.

    Attributes:
        name: The format's.
    """

    name: ClassVar[str]

    def places(self, path: Path) -> dict[str, Path]:
        """The label file, or folder of labels, of each part, here a json; empty: ``path`` is another format."""
        return find_label_files(path, ".json", lambda file: json_kind(file) == self.name)

    def table(self, place: Path) -> LabelTable:
        """What one of them holds; or else ``annotations`` is replaced."""
        raise NotImplementedError

    def listed(self, path: Path) -> list[str]:
        """Classes that the data set names, in their order; those of its objects follow, sorted."""
        return []

    def recognises(self, path: Path) -> bool:
        """True where ``places`` finds one."""
        return bool(self.places(path))

    def splits(self, path: Path) -> list[str]:
        """See ``named_parts``."""
        return named_parts(self.places(path))

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads all parts or one of them; all have the classes of the whole. See ``DatasetFormat.read``."""
        # A person has named the format of a file that does not look like it: what is wrong will be said.
        places = self.places(path) or ({path.stem: path} if path.is_file() else {})
        check_part(split, places if path.is_dir() or split in places else (), path)
        if not places:
            raise DetkitError(f"nothing of the format {self.name} is here", str(path), f"it is {self.looked_for}")
        chosen = list(places) if split is None else [split]
        found = concat_annotations(self.annotations(path, places, chosen, Source(self.name, path, split, images)))
        return found if split else _with_unnamed(found)

    def annotations(
        self, path: Path, places: Mapping[str, Path], chosen: Sequence[str], source: Source
    ) -> list[Annotations]:
        """Those of each chosen part; ``source.images`` is the person's own folder."""
        tables = {part: self.table(place) for part, place in places.items()}
        listed = list(dict.fromkeys(self.listed(path)))
        classes = [*listed, *sorted({name for table in tables.values() for name in table.names} - set(listed))]
        return [tables[part].annotations(source, classes) for part in chosen]
