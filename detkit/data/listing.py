"""What lies in a folder and its sub-folders, without what systems and archives leave there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from detkit.data.annotations import Findings
from detkit.io.images import IMAGE_SUFFIXES
from detkit.io.sources import MEDIA, READERS

PARTS = ("train", "val", "valid", "validation", "test")  # folders and lists of these names are parts of a data set
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "data", "img", "imgs")  # where images lie beside their labels
_JUNK = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}


@lru_cache(maxsize=2)
def files_in(folder: Path) -> tuple[str, ...]:
    """Paths of all files below ``folder``, relative to it, with "/", sorted; hidden ones and __MACOSX are skipped.

    Kept until the next data set is recognised (see ``detkit.data.dataset.format_of``), since every format asks.
    """
    found, seen = [], set[str]()
    for home, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(home)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if _wanted(name))
        start = Path(home).relative_to(folder).as_posix()
        prefix = "" if start == "." else f"{start}/"
        found += [prefix + name for name in files if _wanted(name)]
    return tuple(sorted(found))


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name not in _JUNK


def of_suffix(files: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Those of the files that end in one of the suffixes (lower case, with the dot), in either case."""
    return [file for file in files if os.path.splitext(file)[1].lower() in suffixes]


def part_of(file: str) -> str | None:
    """The first folder in a relative path that is called train, val, valid, validation or test, as it is written."""
    return next((name for name in file.split("/")[:-1] if name.lower() in PARTS), None)


def parts_of(files: Iterable[str]) -> list[str]:
    """All that ``part_of`` says of the files, in the order of ``PARTS``."""
    return sorted(dict.fromkeys(filter(None, map(part_of, files))), key=lambda part: PARTS.index(part.lower()))


def count_skipped(files: Iterable[str], findings: Findings) -> None:
    """Counts films, HEIC images without their reader, raw photos and the like, which lie among the images."""
    for file in of_suffix(files, MEDIA - IMAGE_SUFFIXES):
        suffix = os.path.splitext(file)[1].lower()
        mend = f", {READERS[suffix]} reads it" if suffix in READERS else ""
        findings.add(f"file that is not read as an image: {suffix} (skipped{mend})", file, note=True)


class ImageIndex:
    """Finds the images of a folder by what labels call them."""

    def __init__(self, root: Path) -> None:
        self.root, self._called = root, defaultdict[str, list[str]](list)
        for file in of_suffix(files_in(root)):
            path = PurePosixPath(file)
            self._called[path.stem].append(file)
            self._called[f"{path.parent.name}/{path.stem}"].append(file)

    def find(self, label: str, name: str) -> Path | None:
        """The image of a label file: of several of its name the one whose folders are most like those around it.

        Args:
            label: The file's relative path.
            name: What it calls the image: a file name, or a path, of another machine even, with "/" or "\\". Where
                there is none, the image is called as the label, or has another suffix.

        Returns:
            None: there is no such image, or several of which none is nearest.
        """
        around = label.split("/")[:-1]
        *said, last = name.replace("\\", "/").split("/")
        for stem in (PurePosixPath(last).stem, PurePosixPath(label).stem):
            # In a folder called as one of the label's there are few of them, even of frames of many videos.
            near = (self._called.get(f"{folder}/{stem}") for folder in reversed(around))
            files = next(filter(None, near), None) or self._called.get(stem, [])
            ranks = [(file.endswith(last), *_likeness(file.split("/")[:-1], around, said)) for file in files]
            if ranks and ranks.count(max(ranks)) == 1:
                return self.root / files[ranks.index(max(ranks))]
        return None


def _likeness(folders: list[str], around: list[str], said: list[str]) -> tuple[int, ...]:
    """How near the folders of an image are to its label file's, and to those that this one says; more is nearer."""
    shared = (len({*folders} & {*others}) for others in (around, said))
    usual = max(
        (len(IMAGE_FOLDERS) - IMAGE_FOLDERS.index(name) for name in folders if name in IMAGE_FOLDERS), default=0
    )
    return (folders == around, *shared, usual, -len(folders))
