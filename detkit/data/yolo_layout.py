"""Where the images of a YOLO data set are, and what its classes are called: what says so, and what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detkit.data.annotations import Findings
from detkit.data.listing import PARTS, files_in, of_suffix, part_of, parts_of
from detkit.errors import DetkitError
from detkit.io.files import digits_in, names_in, refuse_deep_nesting, text_of

YAML = (".yaml", ".yml")
CLASSES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names")  # a name per line
_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")  # as exporters call them
_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # of a data.yaml or obj.data, to parts
_NOTHING = (None, "", "~", "null", "Null", "NULL")  # YAML's spellings of it
_LABEL = re.compile(r"\s*\d+(\.0*)?(\s+[-+]?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)


@dataclass(slots=True)
class Layout:
    """Where a data set's images are, and what its classes are called.

    ``file`` is what says so, ``parts`` has the places of each part ("": it is one piece); ``names`` is None where
    nothing gives them.
    """

    file: Path
    root: Path
    names: dict[int, str] | None
    parts: dict[str, list[Path]]
    keypoints: tuple[int, int] | None = None
    absent: dict[str, Path] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)

    def splits(self) -> list[str]:
        """Names of the parts."""
        return [name for name in self.parts if name]

    def refuse_absent(self, part: str | None) -> None:
        """Raises DetkitError if the part is named, but not there."""
        if part in self.absent:
            where = f"{self.file}: looked for {self.absent[part]}"
            raise DetkitError(f"{part} of this {self.file.name} is not there", where, "correct its path in that file")


def layout_of(path: Path) -> Layout:
    """The layout of a data.yaml, an obj.data or a folder.

    Raises:
        DetkitError: A file that makes no sense, or a folder with several of them.
    """
    files = [path] if path.is_file() else said_by(path)
    if len(files) > 1:
        do = f"give one of them as DATA: {', '.join(map(str, files))}"
        raise DetkitError(f"this folder holds {len(files)} YOLO data sets", str(path), do)
    if not files:
        return _from_folder(path)
    return _from_yaml(files[0]) if files[0].suffix.lower() in YAML else _from_darknet(files[0])


def said_by(folder: Path) -> list[Path]:
    """The yaml or .data file that says what a folder holds; several, where it is one of many."""
    for name in _FILES:
        if (folder / name).is_file():
            return [folder / name]
    beside = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (*YAML, ".data") and _names_classes(p)]
    return beside or [folder / file for file in files_in(folder) if file.rsplit("/", 1)[-1] in _FILES]


def _names_classes(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError):
        return False
    return all(re.search(rf"^\s*({keys})\s*[:=]", text, re.MULTILINE) for keys in ("names", "train|val|valid|test"))


def _from_yaml(file: Path) -> Layout:
    import yaml

    text = text_of(file)
    refuse_deep_nesting(text, str(file))
    try:
        # The base loader takes every value as the words it is written in: classes may be called no, 007 or 1e3.
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DetkitError(f"this is not YAML: {getattr(error, 'problem', error)}", f"{file}{line}", "mend it") from None
    value = value if isinstance(value, dict) else {}
    places = {key: _words(value[key], file, key) for key in _KEYS if value.get(key) not in _NOTHING}
    if "names" not in value:
        raise DetkitError("this data.yaml has no names", str(file), "give names: [cat, dog], a name per class")
    names = _names(value["names"], file)
    nc = value.get("nc", len(names))
    if str(nc) not in (str(len(names)), str(max(names, default=-1) + 1)):
        do = "correct the one that is wrong"
        raise DetkitError(f"nc is {nc}, but names has {len(names)} classes", f"{file}, nc and names", do)
    layout = Layout(file, file.absolute().parent, names, {}, _keypoints(value, file))
    if isinstance(own := value.get("path"), str) and own:
        if os.path.isdir(layout.root / own):
            layout.root = layout.root / own
        else:
            layout.findings.add("path of the data.yaml is not here (its own folder taken)", f"{file}: {own}", note=True)
    if places:
        _place_parts(layout, places)
    else:
        layout.parts = _parts_in(layout.root)
    return layout


def _from_darknet(file: Path) -> Layout:
    pairs = (line.split("=", 1) for line in text_of(file).splitlines() if "=" in line and not line.startswith("#"))
    value = {key.strip(): word.strip() for key, word in pairs}
    places = {key: [value[key]] for key in _KEYS if value.get(key)}
    if not value.get("names") or not places:
        missing = "train or valid" if value.get("names") else "names"
        raise DetkitError(f"this .data file has no {missing}", str(file), "it needs names and at least one list")
    root = file.absolute().parent
    names = _place(value["names"], root, Findings())
    if names is None:
        do = "correct its path in that file"
        raise DetkitError("the file of the class names is not there", f"{file}: {value['names']}", do)
    layout = Layout(file, root, _names(_named(names), names), {})
    _place_parts(layout, places)
    return layout


def _from_folder(folder: Path) -> Layout:
    """What a folder without a yaml holds: lists or folders of parts, or one piece."""
    named = [folder / name for name in files_in(folder) if name.rsplit("/", 1)[-1] in CLASSES]
    tables = {file: _names(_named(file), file) for file in named}
    for other in named[1:]:
        if tables[other] != tables[named[0]]:
            do = "give one of the folders as DATA, or keep the list that is right"
            raise DetkitError("two lists of class names differ", f"{named[0]}, {other}", do)
    layout = Layout(folder, folder.absolute(), tables[named[0]] if named else None, {})
    if not named:
        layout.findings.add("no list of class names, a classes.txt (classes are numbers)", str(folder), note=True)
    layout.parts = _parts_in(folder)
    return layout


def _parts_in(folder: Path) -> dict[str, list[Path]]:
    """Lists called as parts, else folders, else the whole."""
    files = files_in(folder)
    lists = [name for name in files if name.removesuffix(".txt") in PARTS and of_suffix(names_in(folder / name)[:1])]
    if lists:
        return {name.removesuffix(".txt"): [folder / name] for name in lists}
    images = of_suffix(files)
    places = dict[str, list[Path]]()
    for part in parts_of(images):
        # The paths up to the folders that are the part: images/train of images/train/a/1.jpg.
        homes = dict.fromkeys(file[: f"/{file}".index(f"/{part}/")] + part for file in images if part_of(file) == part)
        places[part] = [folder / home for home in homes]
    # Images outside of every part are read with the whole, and else said.
    stray = [folder / file for file in images if not part_of(file)]
    if stray or not places:
        places[""] = stray if places else [folder.absolute()]
    return places


def has_labels(folder: Path) -> bool:
    """True if a text file of the same name as an image, or beside a list of class names, holds label lines."""
    files = files_in(folder)
    images = {Path(file).stem for file in of_suffix(files)}
    named = any(file.rsplit("/", 1)[-1] in CLASSES for file in files)
    texts = (text for text in of_suffix(files, [".txt"]) if named or Path(text).stem in images)
    return any(is_label(folder / text) for text in texts)


def is_label(file: Path) -> bool:
    """True if the first line of a text file that is not empty is a label, and the file is no list of class names."""
    if file.name in CLASSES or not file.is_file():
        return False
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        return bool(_LABEL.fullmatch(next((line for line in lines if line.strip()), "")))


def _named(file: Path) -> list[str]:
    """A name per line; empty lines at the end are none."""
    return [line.strip() for line in text_of(file).rstrip().splitlines()]


def _words(value: object, file: Path, key: str) -> list[str]:
    words = value if isinstance(value, list) else [value]
    texts = [word for word in words if isinstance(word, str)]
    if len(texts) < len(words):
        raise DetkitError(f"{key} of this data.yaml cannot be read", f"{file}, {key}", "give a path, or a list of them")
    return texts


def _names(value: object, file: Path) -> dict[int, str]:
    """Number to class name, in the order of the numbers."""
    if isinstance(value, str) and os.path.isfile(file.absolute().parent / value):
        value = _named(file.absolute().parent / value)
    items = dict(enumerate(value)) if isinstance(value, list) else value
    try:
        if not isinstance(items, dict) or not all(isinstance(name, str) and name for name in items.values()):
            raise TypeError
        table = {int(number): str(name) for number, name in items.items()}
    except (TypeError, ValueError):
        do = "names is a list, or one number: name per class"
        raise DetkitError("the class names cannot be read", f"{file}, names", do) from None
    names = list(table.values())
    for twice in sorted({name for name in names if names.count(name) > 1}):
        raise DetkitError(f"class name {twice!r} is used twice", f"{file}, names", "give every class its own name")
    return dict(sorted(table.items()))


def _keypoints(value: dict[str, object], file: Path) -> tuple[int, int] | None:
    shape = value.get("kpt_shape")
    if shape is None:
        return None
    match shape:
        case [count, ("2" | "3") as numbers] if (points := digits_in(count)) is not None:
            return points, int(numbers)
    do = "give [how many, 2 or 3 numbers of each]: [17, 3]"
    raise DetkitError("kpt_shape of this data.yaml cannot be read", f"{file}, kpt_shape", do)


def _place_parts(layout: Layout, places: dict[str, list[str]]) -> None:
    """Fills in the parts; those that are not there are counted, and are an error where none is."""
    for key, texts in places.items():
        part = _KEYS[key]
        if part in layout.parts:  # val and valid
            continue
        found = {text: _place(text, layout.root, layout.findings) for text in texts}
        if missing := [text for text, place in found.items() if place is None]:
            layout.absent[part] = Path(os.path.normpath(layout.root / missing[0]))
        else:
            layout.parts[part] = [place for place in found.values() if place is not None]
    for part, place in layout.absent.items():
        if not layout.parts:
            layout.refuse_absent(part)
        layout.findings.add("part that is not there (left out)", f"{layout.file}: {part}, {place}", note=True)


def _place(text: str, root: Path, findings: Findings) -> Path | None:
    """A file or folder that a data set names.

    "../train/images" beside a data.yaml whose folder has train/images is how several exporters write it; a path of
    another machine, or from another folder, is what its last parts are here, and is counted.
    """
    text = text.replace("\\", "/") if "\\" in text and not os.path.exists(root / text) else text
    inside = re.sub(r"^(\.\./)+", "", text)
    for name in (inside, text):
        if os.path.exists(root / name):  # unlike Path.exists it takes names that are too long
            return Path(os.path.normpath(root / name))
    found = next((tail for tail in tails_of(inside, root) if os.path.exists(tail)), None)
    if found is not None:
        findings.add("path from elsewhere (found by its last parts)", f"{text}: {found}", note=True)
    return found


def tails_of(text: str, root: Path) -> Iterator[Path]:
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return (root.joinpath(*parts[start:]) for start in range(1, len(parts)))
