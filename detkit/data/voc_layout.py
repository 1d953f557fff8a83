"""Where the xml files of a VOC folder lie, and which of them make a part."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from detkit.data.annotations import Findings
from detkit.data.label_files import named_parts
from detkit.data.listing import PARTS, files_in, of_suffix, part_of, parts_of
from detkit.data.reading import check_part
from detkit.errors import DetkitError
from detkit.io.files import text_of
from detkit.io.images import IMAGE_SUFFIXES

_LABELS = ("annotations", "annotation", "labels", "xmls", "xml")  # folders of xml files, in either case
_START = re.compile(rb"<(annotations?)[\s>]")  # CVAT's own xml begins with <annotations>


def _home(xml: str) -> str | None:
    """The folder that holds the Annotations of an xml, without that of a part; None: it lies in no Annotations."""
    folders = xml.split("/")[:-1]
    at = next((i for i, name in enumerate(folders) if name.lower() in _LABELS), None)
    if at is None:
        return None
    return "/".join(folders[: at - (at > 0 and folders[at - 1].lower() in PARTS)])


@dataclass(slots=True)
class VocFiles:
    """The xml files of a data set, relative to its root, sorted; lists of names by part."""

    root: Path
    xml: list[str]
    lists: dict[str, list[Path]] = field(default_factory=dict)

    def splits(self) -> list[str]:
        """Names of the lists, else of the folders that are parts."""
        return named_parts(self.lists) if self.lists else parts_of(self.xml)

    def chosen(self, split: str | None, findings: Findings) -> list[str]:
        """The xml files of a part, or of a list by its path; None: all."""
        if split is None:
            return self.xml
        files = (
            self.lists.get(split)
            or [p for p in (self.lists_home / f"{split}.txt", Path(split)) if os.path.isfile(p)][:1]
        )
        check_part(split, [split] if files else self.splits(), self.lists_home if self.lists else self.root)
        if not files:
            return [xml for xml in self.xml if part_of(xml) == split]
        return _listed(files, self.xml, findings)

    @property
    def lists_home(self) -> Path:
        """The folder of the lists."""
        return self.root / "ImageSets" / "Main"


def is_voc(path: Path) -> bool:
    """True for a folder with xml files in Annotations, or that begin with <annotation>."""
    for xml in of_suffix(files_in(path), [".xml"]):
        with open(path / xml, "rb") as data:
            start = _START.search(data.read(512))
        home = PurePosixPath(xml).parent.name.lower()
        if start[1] == b"annotation" if start else home == "annotations":  # a damaged one, too
            return True
    return False


def voc_files(path: Path) -> VocFiles:
    """The files of a folder, or of the one data set in a folder below it (VOCdevkit/VOC2007).

    Raises:
        DetkitError: Several data sets lie below it.
    """
    xml = of_suffix(files_in(path), [".xml"])
    homes = sorted({home for home in map(_home, xml) if home is not None})
    if len(homes) > 1:
        do = f"give one of them as DATA: {', '.join(str(path / home) for home in homes)}"
        raise DetkitError(f"this folder holds {len(homes)} VOC data sets", str(path), do)
    home = homes[0] if homes else ""
    if home:
        xml = [file.removeprefix(f"{home}/") for file in xml if file.startswith(f"{home}/")]
    found = VocFiles(path / home, xml)
    plain, of_class = dict[str, list[Path]](), defaultdict[str, list[Path]](list)
    for file in sorted(filter(Path.is_file, found.lists_home.glob("*.txt"))):
        if "_" in file.stem and _is_class_list(file):
            of_class[file.stem.rpartition("_")[2]].append(file)
        elif not file.name.startswith("."):
            plain[file.stem] = [file]
    # VoTT writes lists of single classes only, each with every image: together they are the parts.
    found.lists = plain or {part: files for part, files in of_class.items() if part in PARTS}
    return found


def _is_class_list(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return len(file.readline().split()) == 2


def _listed(files: Sequence[Path], xml: list[str], findings: Findings) -> list[str]:
    """The xml files that lists name: by their stem, with some of their folders, or as an image."""
    known: dict[str, str | None] = {}
    for file in xml:
        parts = file[: -len(".xml")].split("/")
        for name in ("/".join(parts[k:]) for k in range(len(parts))):
            known[name] = None if name in known else file
    chosen: dict[str, None] = {}
    several = len(files) > 1
    for listed in files:
        for number, line in enumerate(text_of(listed).splitlines(), 1):
            words = line.split()
            # Lists of one class carry a second column, -1 where the class is absent; all of them together list all.
            if not words or (not several and len(words) > 1 and words[-1] == "-1"):
                continue
            name = words[0] if len(words) == 1 or words[-1] in ("0", "1", "-1") else line.strip()
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and name not in known:
                name = str(PurePosixPath(name).with_suffix(""))
            if (found := known.get(name)) is None:
                findings.add("listed image without annotation (dropped)", f"{listed}:{number}: {name}")
            elif found in chosen and not several:
                findings.add("image listed twice (once dropped)", f"{listed}:{number}: {name}")
            else:
                chosen[found] = None
    return list(chosen)
