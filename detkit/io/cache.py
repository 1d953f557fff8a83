"""A small on-disk cache of arrays that are dear to compute."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import write_bytes, write_error

_MAGIC = b"detkit cache 1\n"
_ALIGNED = 64  # bytes: where a mapped array begins is a multiple of this


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

    name: the folder's name, what is kept; parameters: plain values that decide what is computed, part of the file's
    name; version: of the code that computes: entries of another are stale. folder: where the folder is made,
    ``cache_folder()`` by default. mapped: arrays lie in their files as they are, not compressed, and come back as
    read-only memory maps, so that all of them together may be larger than the memory. tell: gets a sentence about each
    entry that is damaged and computed again, and one, once, where entries are stale or nothing can be written; by
    default they are RuntimeWarnings.

    Files appear whole or not at all, so that processes may share a cache.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Any],
        version: int = 1,
        *,
        folder: str | Path | None = None,
        mapped: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / name
        text = json.dumps(dict(parameters), sort_keys=True)
        self._ending = "-" + hashlib.sha256(text.encode()).hexdigest()[:16] + ".bin"
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
            return self._map(path) if self._mapped else self._decoded(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _Stale:
            if not self._outdated:  # all of them are, as a rule
                self._tell(f"{self.folder}: cached entries are stale, of another version; they are computed again")
            self._outdated = True
            return None
        except (OSError, ValueError) as error:
            self._tell(f"{path}: the cached entry is {error}; it is computed again")
            return None

    def put(self, key: str, array: np.ndarray) -> np.ndarray:
        """Keeps ``array`` under ``key`` and returns it, if mapped as the map of its file."""
        path = self.path(key)
        if not self._writes:
            return array
        try:
            write_bytes(path, self._encoded(array), overwrite=True)
        except DetkitError as error:
            self._writes = False
            self._tell(f"{error.where}: nothing is cached: {error.what}")
            return array
        self._sound.add(path)
        return self._map(path) if self._mapped else array

    def count(self) -> int:
        """The number of entries of these parameters."""
        return sum(1 for _ in self.folder.glob("??/*" + self._ending))

    def clear(self) -> None:
        """Removes the entries of these parameters."""
        for path in self.folder.glob("??/*" + self._ending):
            with suppress(OSError):
                path.unlink()
        self._sound.clear()

    def _encoded(self, array: np.ndarray) -> bytes:
        body = np.ascontiguousarray(array).tobytes()
        header: dict[str, Any] = {"version": self._version, "dtype": array.dtype.str, "shape": array.shape}
        if self._mapped:
            header["sum"] = zlib.crc32(body)
        else:
            body = zlib.compress(body, 1)  # it also ends in a checksum
        text = _MAGIC + json.dumps(header).encode()
        padding = -(len(text) + 1) % _ALIGNED if self._mapped else 0
        return text + b" " * padding + b"\n" + body

    def _decoded(self, data: bytes) -> np.ndarray:
        """Raises ValueError, in a word, for what this cache did not write, or wrote long ago."""
        with _damaged():
            header, start = self._header(data)
            array = np.frombuffer(zlib.decompress(data[start:]), np.dtype(header["dtype"]))
            return array.reshape(header["shape"]).copy()

    def _map(self, path: Path) -> np.ndarray:
        """The array in a mapped file, its sum checked the first time. Raises as ``_decoded``."""
        with _damaged():
            with path.open("rb") as file:
                header, start = self._header(file.read(1024))
            shape, dtype = tuple(header["shape"]), np.dtype(header["dtype"])
            if path.stat().st_size != start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
                raise ValueError
            if not np.prod(shape):
                return np.zeros(shape, dtype)
            array = np.asarray(np.memmap(path, dtype, "r", start, shape))
            if path not in self._sound and zlib.crc32(array) != header["sum"]:
                raise ValueError
            self._sound.add(path)
            return array

    def _header(self, data: bytes) -> tuple[dict[str, Any], int]:
        """What stands before an entry's numbers, and where they begin."""
        if not data.startswith(_MAGIC):
            raise ValueError
        end = data.index(b"\n", len(_MAGIC))
        header = json.loads(data[len(_MAGIC) : end])
        if header["version"] != self._version:
            raise _Stale
        return header, end + 1


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)  # whoever called ``Cache.get``


class _Stale(ValueError):
    """An entry of other code."""


@contextmanager
def _damaged() -> Iterator[None]:
    """Gives whatever is wrong with an entry's bytes one word."""
    try:
        yield
    except _Stale:
        raise
    except (zlib.error, KeyError, TypeError, ValueError):
        raise ValueError("damaged") from None


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
    return sorted(place.glob("*/??/*-????????????????.bin"))
