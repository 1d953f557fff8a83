"""YOLO's data.yaml: image folders or lists, and one text file of labels per image.

A label line is "class x y w h": the centre and size as fractions of the image; or "class x1 y1 x2 y2 x3 y3 ...", a
polygon, whose bounding box is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.reading import ImageTable, ObjectTable, assemble, check_part, size_of
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.images import IMAGE_SUFFIXES

PARTS = ("train", "val", "test")


class YoloFormat(DatasetFormat):
    """A data.yaml, or a folder that holds one."""

    looked_for = "a YOLO data.yaml (or its folder)"

    def recognises(self, path: Path) -> bool:
        """True for a .yaml file and for a folder with data.yaml."""
        return _yaml(path) is not None

    def splits(self, path: Path) -> list[str]:
        """Those of train, val and test that the file names."""
        return list(_load(path)[2])

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads the parts that the file names, or one of them; see ``DatasetFormat.read``."""
        file, value, parts = _load(path)
        table = _names(value["names"], file)
        check_part(split, parts, file)
        findings = Findings()
        root = file.absolute().parent / str(value.get("path") or ".")
        if not root.is_dir():
            # Exported files often carry another machine's path; the file's own folder is what they mean.
            root = file.absolute().parent
        listed: dict[str, None] = {}
        for name in parts if split is None else [split]:
            places = parts[name]
            for place in places if isinstance(places, list) else [places]:
                where = images if images is not None and split is not None else _place(root, str(place), file, name)
                listed.update(dict.fromkeys(_images(where, root, findings)))
        files = list(listed)
        if not files:
            named = f"{file}: {', '.join(parts)}"
            raise DetkitError("this data set has no images", named, "check the folders it names")
        sizes = np.array([size_of(file) for file in files], dtype=np.int32)
        objects = _read_labels(files, sizes, {float(number): i for i, number in enumerate(table)}, findings)
        found = ImageTable(_ids(files, root), files, sizes)
        return assemble(objects, found, table, findings, Source("yolo", file, split, root))


def _yaml(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    return next((path / name for name in ("data.yaml", "data.yml") if (path / name).is_file()), None)


def _load(path: Path) -> tuple[Path, dict[str, object], dict[str, object]]:
    """The file, what it holds, and the places of each part."""
    import yaml

    file = _yaml(path) or path
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise DetkitError(f"cannot read this file: {error}", str(file), "check the path") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DetkitError(f"this is not YAML: {getattr(error, 'problem', error)}", f"{file}{line}", "mend it") from None
    value = value if isinstance(value, dict) else {}
    parts = {name: value[name] for name in PARTS if value.get(name)}
    if "val" not in parts and value.get("valid"):
        parts["val"] = value["valid"]
    if "names" not in value or not parts:
        missing = "train, val or test" if "names" in value else "names"
        raise DetkitError(f"this data.yaml has no {missing}", str(file), "it needs names and at least one part")
    return file, value, parts


def _names(value: object, file: Path) -> dict[int | str, str]:
    """Number to class name, in the order of the numbers."""
    try:
        items = value if isinstance(value, dict) else dict(enumerate(value))  # type: ignore[arg-type]
        table: dict[int | str, str] = {int(number): str(name) for number, name in items.items()}
    except (TypeError, ValueError):
        do = "names is a list, or one number: name per class"
        raise DetkitError("names of this data.yaml cannot be read", f"{file}, names", do) from None
    names = list(table.values())
    for twice in {name for name in names if names.count(name) > 1}:
        raise DetkitError(f"class name {twice!r} is used twice", f"{file}, names", "give every class its own name")
    return dict(sorted(table.items()))


def _place(root: Path, text: str, file: Path, part: str) -> Path:
    # "../train/images" beside a data.yaml whose folder has train/images is a common slip of exporters.
    for name in (text, text.removeprefix("../")):
        if (root / name).exists():
            return Path(os.path.normpath(root / name))
    where = f"{file}: looked for {root / text}"
    raise DetkitError(f"{part} of this data.yaml is not there", where, "correct path or that entry")


def _images(place: Path, root: Path, findings: Findings) -> Iterator[str]:
    if place.is_dir():
        yield from sorted(str(p) for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        if not (line := line.strip()):
            continue
        # "./" means beside the list, as the format's own loader has it; other relative names hang on the root.
        image = os.path.normpath(place.parent / line if line.startswith("./") else root / line)
        if os.path.splitext(image)[1].lower() not in IMAGE_SUFFIXES:
            findings.add("listed file is not an image (dropped)", f"{place}:{number}: {line}")
            continue
        yield image


def _ids(files: list[str], root: Path) -> list[int | str]:
    """File names without suffix; with their folders if that is not unique."""
    stems: list[int | str] = [Path(f).stem for f in files]
    if len(set(stems)) == len(stems):
        return stems
    return [Path(os.path.splitext(os.path.relpath(f, root))[0]).as_posix() for f in files]


def label_file(image: str) -> str:
    """The label file of an image: the last folder called images becomes labels, the suffix .txt."""
    stem = os.path.splitext(image)[0]
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return (os.path.join(before, "labels", after) if found else stem) + ".txt"


def _read_labels(files: list[str], sizes: np.ndarray, classes: Mapping[float, int], findings: Findings) -> ObjectTable:
    rows: list[tuple[float, ...]] = []
    places: list[str] = []
    for i, image in enumerate(files):
        name = label_file(image)
        try:
            lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            findings.add("image without a label file (taken as without objects)", image)
            continue
        except (OSError, UnicodeError) as error:
            findings.add("label file cannot be read (image kept without objects)", f"{name}: {error}")
            continue
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            row = _parse(line, classes, where, findings) if line.strip() else None
            if row is not None and not sizes[i].all():
                findings.add("image's size is unknown (its boxes dropped)", where)
            elif row is not None:
                rows.append((i, *row))
                places.append(where)
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 6)
    index, labels = table[:, :2].astype(np.int64).T
    xywh = table[:, 2:] * sizes[index][:, [1, 0, 1, 0]].astype(np.float64)
    return ObjectTable(index, xywh, labels, places.__getitem__)


def _parse(line: str, classes: Mapping[float, int], where: str, findings: Findings) -> tuple[float, ...] | None:
    """(label, x, y, w, h), the corner and size as fractions; None, counted, if the line makes no sense."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        findings.add("line that is not numbers (dropped)", f"{where}: {line[:60]}")
        return None
    n = len(values)
    polygon = n >= 7 and n % 2 == 1
    if n != 5 and not polygon:
        findings.add("wrong number of columns (line dropped)", f"{where}: {n} columns, expected 5")
        return None
    label = classes.get(values[0])
    if label is None:
        findings.add("unknown class number (line dropped)", f"{where}: {line.split()[0]}")
        return None
    if not polygon:
        x, y, w, h = values[1:]
        return label, x - w / 2, y - h / 2, w, h
    findings.add("polygon made into a box", where)
    corners = np.array(values[1:]).reshape(-1, 2)
    return label, *corners.min(axis=0), *np.ptp(corners, axis=0)
