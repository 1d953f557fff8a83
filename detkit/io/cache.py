"""A small on-disk cache of arrays that are dear to compute."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import write_bytes, write_error

_END = 12  # bytes: the version and the checksum


def cache_folder() -> Path:
    """Where caches lie: the folder in the environment's DETKIT_CACHE, else the user's cache folder of this system."""
    place = os.environ.get("DETKIT_CACHE")
    if place:
        return Path(place)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("detkit"))


def image_hash(image: np.ndarray) -> str:
    """40 hexadecimal digits that stand for an image's pixels, shape and dtype."""
    digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:40]


class Cache:
    """Arrays in one file each, by key and parameters: ``cache.get(image_hash(image), compute)``.

    A file is numpy's own format (``numpy.load`` reads it), then the version and a checksum. Files appear whole or not
    at all, so that processes may share a cache.

    Args:
        name: The folder's name, what is kept.
        parameters: Plain values that decide what is computed, part of the file's name.
        version: Of the code that computes: entries of another are stale.
        folder: Where the folder is made; None: ``cache_folder()``.
        mapped: Arrays come back as read-only memory maps, so that all of them together may be larger than the memory.
        tell: Gets a sentence about each entry that is damaged and computed again, and one, once, where entries are
            stale or nothing can be written; None: they are RuntimeWarnings.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, object],
        version: int = 1,
        *,
        folder: str | Path | None = None,
        mapped: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / name
        text = json.dumps(dict(parameters), sort_keys=True)
        self._ending = "-" + hashlib.sha256(text.encode()).hexdigest()[:16] + ".npy"
        self._version, self._mapped, self._tell = version, mapped, tell or _warn
        self._writes, self._outdated = True, False
        self._sound: set[Path] = set()  # mapped files whose sum was checked

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / (key + self._ending)

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under ``key``, or what ``compute()`` returns, which is then kept."""
        array = self.find(key)
        return self.put(key, compute()) if array is None else array

    def find(self, key: str) -> np.ndarray | None:
        """The array kept under ``key``; None where there is none that is sound."""
        path = self.path(key)
        try:
            array = self._read(path)
            if array is None and not self._outdated:  # all of them are, as a rule
                self._outdated = True
                self._tell(f"{self.folder}: cached entries are stale, of another version; they are computed again")
            return array
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._tell(f"{path}: the cached entry is {error}; it is computed again")
        except ValueError:
            self._tell(f"{path}: the cached entry is damaged; it is computed again")
        return None

    def _read(self, path: Path) -> np.ndarray | None:
        """None for what other code wrote.

        Raises:
            ValueError: What this cache did not write.
        """
        data = np.memmap(path, np.uint8, "r")
        version, total = struct.unpack("<QI", data[-_END:].tobytes().rjust(_END, b"\0"))
        if path not in self._sound and zlib.crc32(data[:-4]) != total:
            raise ValueError
        if version != self._version:
            return None
        if self._mapped:
            self._sound.add(path)
        return np.asarray(np.load(path, mmap_mode="r" if self._mapped else None, allow_pickle=False))

    def put(self, key: str, array: np.ndarray) -> np.ndarray:
        """Keeps ``array`` under ``key`` and returns it, if mapped as the map of its file."""
        path = self.path(key)
        if not self._writes:
            return array
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        data = file.getvalue() + struct.pack("<Q", self._version)
        try:
            write_bytes(path, data + struct.pack("<I", zlib.crc32(data)), overwrite=True)
        except DetkitError as error:
            self._writes = False
            self._tell(f"{error.where}: nothing is cached: {error.what}")
            return array
        kept = self._read(path) if self._mapped else None
        return array if kept is None else kept

    def count(self) -> int:
        """The number of entries of these parameters."""
        return sum(1 for _ in self.folder.glob("??/*" + self._ending))

    def clear(self) -> None:
        """Removes the entries of these parameters."""
        for path in self.folder.glob("??/*" + self._ending):
            with suppress(OSError):
                path.unlink()
        self._sound.clear()


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)  # whoever called ``Cache.get``


def cache_size(folder: str | Path | None = None) -> tuple[int, int]:
    """(entries, bytes) of all that ``Cache`` keeps in ``folder`` (default: ``cache_folder()``)."""
    sizes = [path.stat().st_size for path in _entries(folder)]
    return len(sizes), sum(sizes)


def clear_cache(folder: str | Path | None = None) -> int:
    """Removes all that ``Cache`` keeps in ``folder`` and returns the number of entries; other files stay.

    Raises:
        DetkitError: an entry may not be removed.
    """
    count = 0
    for path in _entries(folder):
        try:
            path.unlink()
        except OSError as error:
            raise write_error(error, path) from None
        count += 1
        with suppress(OSError):  # only once it is empty
            path.parent.rmdir()
            path.parent.parent.rmdir()
    return count


def _entries(folder: str | Path | None) -> list[Path]:
    place = cache_folder() if folder is None else Path(folder)
    return sorted(place.glob("*/??/*-????????????????.*"))
