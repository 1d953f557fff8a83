"""YOLO's data sets: images, and one text file of labels per image, whose lines ``detkit.data.yolo_lines`` reads.

Which images, and what the classes are called, says a data.yaml (YOLOv5 and later), an obj.data (Darknet), or, where
there is neither, the folder itself: parts are folders or lists called train, val, test, and a classes.txt, obj.names
or _darknet.labels has a name per line.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.listing import count_skipped, files_in, of_suffix
from detkit.data.reading import ImageTable, assemble, check_part, short_names, size_of
from detkit.data.yolo_layout import YAML, has_labels, is_label, layout_of, said_by, tails_of
from detkit.data.yolo_lines import objects_of, parse_lines
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.files import text_of

_FOLDERS = {"images": "labels", "Images": "Labels", "JPEGImages": "labels"}  # of images, to that of their labels
_MOST = 10_000  # classes that have numbers, but no names


class YoloFormat(DatasetFormat):
    """A data.yaml, an obj.data, or a folder that holds one of them or images with their labels."""

    looked_for = "a YOLO data.yaml (or its folder, or one of images and .txt labels)"

    def recognises(self, path: Path) -> bool:
        """True for a .yaml or .data file, and for a folder with one, or with an image's label file."""
        if path.is_file():
            return path.suffix.lower() in (*YAML, ".data")
        return path.is_dir() and (bool(said_by(path)) or has_labels(path))

    def splits(self, path: Path) -> list[str]:
        """Those of train, val and test that there are."""
        return layout_of(path).splits()

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads all parts, or one of them; see ``DatasetFormat.read``."""
        layout = layout_of(path)
        layout.refuse_absent(split)
        check_part(split, layout.splits(), layout.file)
        findings = layout.findings
        listed: dict[str, None] = {}
        for place in [place for name in (layout.parts if split is None else [split]) for place in layout.parts[name]]:
            listed.update(dict.fromkeys(_images(images or place, layout.root, findings)))
        files = list(listed)
        if not files:
            named = f"{layout.file}: {', '.join(layout.splits())}".removesuffix(": ")
            raise DetkitError("this data set has no images", named, "check the folders it names, or give --images")
        labels = _labels_of(files, path if path.is_dir() else path.parent)
        _count_orphans(files, labels, findings)
        sizes = np.array([size_of(file) for file in files], dtype=np.int32)
        lines = parse_lines(labels, files, findings)
        names = layout.names
        if names is None:
            numbers = (line.number for line in lines if 0 <= line.number < _MOST)
            names = {number: str(number) for number in range(int(max(numbers, default=-1)) + 1)}
        classes = {float(number): i for i, number in enumerate(names)}
        objects = objects_of(lines, sizes, classes, findings, layout.keypoints)
        source = Source("yolo", layout.file, split, layout.root)
        table: dict[int | str, str] = dict(names.items())
        ids = short_names([Path(os.path.relpath(file, layout.root)).as_posix() for file in files])
        return assemble(objects, ImageTable(ids, files, sizes), table, findings, source)


def _images(place: Path, root: Path, findings: Findings) -> Iterator[str]:
    """Images of a folder and its sub-folders, of a list, or the one that the place is."""
    if place.is_dir():
        files = files_in(place)
        count_skipped((str(place / file) for file in files), findings)
        yield from (str(place / file) for file in of_suffix(files))
        return
    if of_suffix([place.name]):
        yield str(place)
        return
    for number, line in enumerate(text_of(place).splitlines(), 1):
        if not (line := line.strip()):
            continue
        if not of_suffix([line]) or "\0" in line:
            findings.add("listed file is not an image (dropped)", f"{place}:{number}: {line}")
            continue
        yield _listed(line.replace("\\", "/"), place, root)


def _listed(line: str, place: Path, root: Path) -> str:
    """The image of a list's line: "./" means beside the list, as the format's own loader has it; other relative names
    hang on the root, on its parent or on the list's folder, or begin with folders of another machine."""
    homes = [place.parent] if line.startswith("./") else [root, root.parent, place.parent]
    found = (home / line for home in homes if os.path.isfile(home / line))
    image = next(found, None) or next((tail for tail in tails_of(line, root) if os.path.isfile(tail)), homes[0] / line)
    return os.path.normpath(image)


def label_file(image: str) -> str:
    """The label file of an image: the last folder called images becomes labels, the suffix .txt."""
    folders = os.path.splitext(image)[0].split(os.sep)
    for i in range(len(folders) - 2, -1, -1):
        if folders[i] in _FOLDERS:
            folders[i] = _FOLDERS[folders[i]]
            break
    return os.sep.join(folders) + ".txt"


def _label_files(image: str) -> tuple[str, ...]:
    """Where an image's label file may be: in labels, beside it, in its folder's neighbour labels."""
    file = Path(image)
    return label_file(image), str(file.with_suffix(".txt")), str(file.parent.parent / "labels" / f"{file.stem}.txt")


def _labels_of(files: Sequence[str], folder: Path) -> list[str | None]:
    """The label file of each image; where it is in no usual place, the only one of its name in the data set's folder,
    unless several images have that name; None: there is none."""
    found = [next(filter(os.path.isfile, _label_files(file)), None) for file in files]
    if None in found:
        below = files_in(folder)
        images = Counter(Path(file).stem for file in of_suffix(below))
        texts = defaultdict[str, list[str]](list)
        for text in of_suffix(below, [".txt"]):
            texts[Path(text).stem].append(str(folder / text))
        for i, stem in enumerate(Path(file).stem for file in files):
            if found[i] is None and len(texts[stem]) == 1 and images[stem] <= 1:
                found[i] = texts[stem][0]
    return found


def _count_orphans(files: Iterable[str], labels: Iterable[str | None], findings: Findings) -> None:
    """Counts label files, in the folders in which some are used, that no image on the disk has."""
    known = {label for label in labels if label}
    folders = {os.path.dirname(label) for label in known}
    for home in {os.path.dirname(file) for file in files}:
        for name in of_suffix(os.listdir(home) if os.path.isdir(home) else ()):
            known.update(_label_files(os.path.join(home, name)))
    for label in (os.path.join(folder, name) for folder in sorted(folders) for name in sorted(os.listdir(folder))):
        file = Path(label)
        if file.suffix == ".txt" and label not in known and not file.name.startswith(".") and is_label(file):
            findings.add("label file without an image (left out)", label)
