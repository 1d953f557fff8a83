"""What lies in a folder and its sub-folders, without what systems and archives leave there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from detkit.data.annotations import Findings
from detkit.errors import DetkitError
from detkit.io.images import IMAGE_SUFFIXES
from detkit.io.sources import MEDIA, READERS

PARTS = ("train", "val", "valid", "validation", "test")  # folders and lists of these names are parts of a data set
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


def text_of(file: Path) -> str:
    """The text of a file; DetkitError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DetkitError(
            f"cannot read this file: {error}", str(file), "check its path, and save it as UTF-8"
        ) from None


def part_of(file: str) -> str | None:
    """The first folder in a relative path that is called train, val, valid, validation or test, as it is written."""
    return next((name for name in file.split("/")[:-1] if name.lower() in PARTS), None)


def count_skipped(files: Iterable[str], findings: Findings) -> None:
    """Counts films, HEIC images without their reader, raw photos and the like, which lie among the images."""
    for file in of_suffix(files, MEDIA - IMAGE_SUFFIXES):
        suffix = os.path.splitext(file)[1].lower()
        mend = f", {READERS[suffix]} reads it" if suffix in READERS else ""
        findings.add(f"file that is not read as an image: {suffix} (skipped{mend})", file, note=True)


class ImageIndex:
    """Finds images by what labels call them.

    Args:
        root: Their folder.
        files: Their paths below it; None: all images there.
    """

    def __init__(self, root: Path, files: Iterable[str] | None = None) -> None:
        self.root = root
        self.files = of_suffix(files_in(root)) if files is None else list(files)
        self._known = set(self.files)
        self._named, self._stems = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for file in self.files:
            name = PurePosixPath(file)
            self._named[name.name].append(file)
            self._stems[name.stem].append(file)

    def find(self, name: str, near: Iterable[str] = ()) -> str | None:
        """The image of this name, relative to the root; None: there is none, or several of which none is nearest.

        Args:
            name: As a label says it: a file name, or a path, of another machine even, with "/" or "\\\\".
            near: Folders, relative to the root, in which it is looked for first.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        for folder in near:
            if (file := f"{folder}/{'/'.join(parts)}".lstrip("/")) in self._known:
                return file
        alike = self._named.get(parts[-1], [])
        for start in range(len(parts)):
            tail = "/" + "/".join(parts[start:])
            found = [file for file in alike if f"/{file}".endswith(tail)]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def find_stem(self, stem: str, near: Iterable[str] = ()) -> str | None:
        """The image whose name without suffix is ``stem``; see ``find``."""
        alike = self._stems.get(stem, [])
        for folder in near:
            found = [file for file in alike if os.path.dirname(file) == folder]
            if found:
                return found[0]
        return alike[0] if len(alike) == 1 else None
