"""Images that are nearly the same, within a part of the data and between parts: copies, other sizes, re-compressions.

Each image becomes 64 bits, the signs of its lowest frequencies against their median (the DCT hash of Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2); of images whose bits agree
small grey copies are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detkit.data.annotations import Findings
from detkit.errors import DetkitError
from detkit.io.draw import sheet
from detkit.io.images import read_image, write_image

DISTANCE = 10  # of 64 bits; 30 pairs of 8 million of different photos are as near, and all copies in another size
LIKENESS = 0.9  # correlation of the small copies, which leaves one of these 30
_FLAT = 4.0  # grey levels of standard deviation: below it the bits are noise
_SMALL, _BLOCK, _ROWS, _COMPARED = 16, 1000, 8, 32


@dataclass(frozen=True)
class Pair:
    """Two images that are nearly the same.

    Attributes:
        a: The earlier one's file.
        b: The other's.
        parts: Which part of the data each is in.
        distance: Bits of 64 that differ.
    """

    a: str
    b: str
    parts: tuple[str, str]
    distance: int

    def __str__(self) -> str:
        return f"{self.b} ~ {self.a} ({self.distance} of 64 bits differ)"


def perceptual_hash(rgb: np.ndarray) -> tuple[np.uint64, np.ndarray] | None:
    """The bits of an image, uint8 (H, W, 3), and its small grey copy, uint8 (16, 16); None: it has one colour."""
    grey = cv2.cvtColor(cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    if grey.std() < _FLAT:
        return None
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()[1:]
    bits = np.append(low > np.median(low), False)  # the 64th would be the mean
    return np.packbits(bits).view(np.uint64)[0], cv2.resize(grey, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)


def near_duplicates(
    parts: Mapping[str, Sequence[str]],
    *,
    threads: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pair]:
    """Each image's first near-duplicate among the earlier ones of its own part, and of the others; leaks come first.

    Images that cannot be read, or have one colour, are left out. What is mirrored, or cropped by more than some
    hundredths of its side, is not found.

    Args:
        parts: Files by part.
        threads: That read images.
        on_progress: Called with images read and in all.
    """
    files = [file for part in parts.values() for file in part]
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    hashes, small = np.zeros(len(files), np.uint64), np.zeros((len(files), _SMALL, _SMALL), np.uint8)
    usable = np.zeros(len(files), bool)
    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            for row, found in enumerate(pool.map(_read, block), start):
                if found is not None:
                    hashes[row], small[row] = found
                    usable[row] = True
            on_progress(start + len(block), len(files))
    places, names = np.flatnonzero(usable), list(parts)
    pairs = [
        Pair(files[first], files[later], (names[part_of[first]], names[part_of[later]]), distance)
        for first, later, distance in _search(hashes[places], small[places], part_of[places], places)
    ]
    return sorted(pairs, key=lambda pair: pair.parts[0] == pair.parts[1])


def add_findings(pairs: Sequence[Pair], findings: Findings) -> None:
    """Leaks as faults, copies within a part as notes."""
    for pair in pairs:
        first, later = pair.parts
        if first == later:
            findings.add(f"nearly the same image twice in {first}", str(pair), note=True)
        else:
            findings.add(f"images of {later} that are in {first} too", str(pair))


def draw_pairs(pairs: Sequence[Pair], out: Path, *, count: int = 24, tile: int = 320, overwrite: bool = False) -> None:
    """Writes the first pairs side by side, one a row."""
    from detkit.data.resize import Resize

    fit = Resize((tile, tile), stride=1)
    tiles = [fit(read_image(file, reduce_to=tile))[0] for pair in pairs[:count] for file in (pair.a, pair.b)]
    write_image(out, sheet(tiles, columns=2), overwrite=overwrite)


def _read(file: str) -> tuple[np.uint64, np.ndarray] | None:
    with suppress(DetkitError, OSError):
        return perceptual_hash(read_image(file, reduce_to=64))
    return None


def _search(hashes: np.ndarray, small: np.ndarray, part: np.ndarray, places: np.ndarray) -> list[tuple[int, int, int]]:
    """(place of the earlier one, place of the later one, bits), at most two for each later one."""
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), _ROWS):
        rows = hashes[start : start + _ROWS, None]
        differ = np.bitwise_count(rows ^ hashes[None, : start + len(rows)])
        near = differ <= DISTANCE
        for row in range(start, start + len(rows)):
            mine = np.flatnonzero(near[row - start, :row])
            own = part[mine] == part[row]
            for among in (mine[own], mine[~own]):
                if (k := _first_alike(small, row, among)) is not None:
                    found.append((int(places[k]), int(places[row]), int(differ[row - start, k])))
    return found


def _first_alike(small: np.ndarray, row: int, among: np.ndarray) -> int | None:
    """A thousand copies of one image are not all compared with each other."""
    for begin in range(0, len(among), _COMPARED):
        some = among[begin : begin + _COMPARED]
        alike = some[_likeness(small[row], small[some]) >= LIKENESS]
        if len(alike):
            return int(alike[0])
    return None


def _likeness(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Pearson's correlation of a grey image (h, w) with each of others (N, h, w): (N,) float64."""
    a, b = one.ravel().astype(np.float64), many.reshape(len(many), -1).astype(np.float64)
    a, b = a - a.mean(), b - b.mean(axis=1, keepdims=True)
    return (b @ a) / (np.linalg.norm(a) * np.linalg.norm(b, axis=1))
