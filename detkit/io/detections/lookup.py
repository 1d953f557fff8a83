"""Which image and class of the data a file of detections means, and the table that comes of it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import eq
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detkit.errors import DetkitError, nearest, some
from detkit.tables import Results, canonical

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations

Row = tuple[int, int, Sequence[float], float, str]  # image, label, xywh in pixels, score, where it stands


class Found(NamedTuple):
    """What a file of detections holds.

    Attributes:
        results: With the label -1 where the data has no such class.
        where: Names the place of a row.
        notes: For a person.
        unknown: Classes that the data does not have, and how many detections of each.
    """

    results: Results
    where: Callable[[int], str]
    notes: list[str]
    unknown: Mapping[int | str, int]


class Lookup:
    """Images by file name, and where several share it by the folders before it; classes by name, or another spelling.

    Args:
        data: The data.
        endings: False if names come without ``.jpg`` and the like.
    """

    def __init__(self, data: Annotations, *, endings: bool = True) -> None:
        self.data, self.endings = data, endings
        self.unknown = Counter[int | str]()
        self.respelt: dict[str, str] = {}
        self._labels = {name: k for k, name in enumerate(data.classes)}
        spellings = Counter(map(canonical, data.classes))
        self._spelt = {canonical(n): k for n, k in self._labels.items() if spellings[canonical(n)] == 1}
        self._by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for i, file in enumerate(data.files):
            parts = path_parts(file)
            name = parts[0] if endings else _stem(parts[0])
            self._by_name.setdefault(name, []).append((parts, i))

    def image(self, source: str, where: str) -> int:
        """Index of the image that ``source`` names; ``where``: the place of the name, for errors."""
        parts = path_parts(source)
        found = self._by_name.get(parts[0], [])
        if not found and not self.endings:
            found = self._by_name.get(_stem(parts[0]), [])
        if not found:
            do = "is it the part (--split) of the data that was detected on?"
            what = f"image {parts[0]} is not in the data"
            raise DetkitError(what, where, nearest(parts[0], self._by_name, otherwise=do))
        # Of each, how many folders are the same up to the first that differs.
        shared = [[*map(eq, parts[1:], other[1:]), False].index(False) for other, _ in found]
        if shared.count(max(shared)) > 1:
            what = f"{shared.count(max(shared))} images of the data are called {source}"
            do = "let the folders tell them apart (run detect on the data's folder), or give COCO results with ids"
            raise DetkitError(what, where, do)
        return found[shared.index(max(shared))][1]

    def place(self, name: str) -> int | None:
        """Place of the class in the data's; None if it has none of this name.

        Where the name as it is written is not there, the one class that is called so in other letters (``Person``, or
        ``tv`` for ``tvmonitor``) is taken, and ``respelt`` tells.
        """
        place = self._labels.get(name)
        if place is None and (place := self._spelt.get(canonical(name))) is not None:
            self.respelt[name] = self.data.classes[place]
        return place

    def label(self, name: str) -> int:
        """``place`` for a detection: -1, and counted, where there is none."""
        place = self.place(name)
        if place is None:
            self.unknown[name] += 1
            return -1
        return place


def found_rows(rows: Sequence[Row], notes: list[str], lookup: Lookup) -> Found:
    """The table of rows; DetkitError if the data knows none of their classes."""
    if rows and lookup.unknown.total() == len(rows):
        name, known = next(iter(lookup.unknown)), lookup.data.classes
        do = nearest(name, known, otherwise=f"the data has {some(known)}")
        raise DetkitError(f"class {name!r} is not in the data", rows[0][4], do)
    if lookup.respelt:
        pairs = ", ".join(f"{name} as {known}" for name, known in lookup.respelt.items())
        notes = [*notes, f"classes matched by another spelling: {pairs}"]
    image, label = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    xywh, score = (np.array([row[i] for row in rows], np.float64) for i in (2, 3))
    results = Results(image, label, xywh.reshape(-1, 4), score)
    return Found(results, lambda row: rows[row][4], notes, lookup.unknown)


def path_parts(path: str) -> tuple[str, ...]:
    """File name first, then its folder, and so on; some systems write accents as two characters."""
    parts = PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")).parts
    return tuple(reversed(parts)) or ("",)


def _stem(name: str) -> str:
    return re.sub(r"\.\w{1,5}$", "", name)
