"""A small on-disk cache of arrays that are dear to compute."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import write_bytes, write_error

_MAGIC = b"detkit cache 1\n"


def cache_folder() -> Path:
    """Where caches lie: the folder in the environment's DETKIT_CACHE, else the user's cache folder of this system."""
    place = os.environ.get("DETKIT_CACHE")
    if place:
        return Path(place)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("detkit"))


def image_hash(image: np.ndarray) -> str:
    """40 hexadecimal digits that stand for a picture's pixels, shape and dtype."""
    digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:40]


class Cache:
    """Arrays in one file each, by key and parameters: ``cache.get(image_hash(image), compute)``.

    name: the folder's name, what is kept; parameters: plain values that decide what is computed, part of the file's
    name; version: of the code that computes: entries of another are stale. folder: where the folder is made,
    ``cache_folder()`` by default.

    Files appear whole or not at all, so that processes may share a cache. An entry that is damaged or stale is computed
    again, with a warning that says so; where nothing can be written a warning says that, once.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, Any], version: int = 1, *, folder: str | Path | None = None
    ) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / name
        text = json.dumps(dict(parameters), sort_keys=True)
        self._ending = "-" + hashlib.sha256(text.encode()).hexdigest()[:16] + ".bin"
        self._version = version
        self._writes = True

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / (key + self._ending)

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under ``key``, or what ``compute()`` returns, which is then kept."""
        path = self.path(key)
        try:
            return self._decoded(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: the cached entry is {error}; it is computed again", RuntimeWarning, stacklevel=2)
        array = compute()
        if self._writes:
            try:
                write_bytes(path, self._encoded(array), overwrite=True)
            except DetkitError as error:
                self._writes = False
                warnings.warn(f"{error.where}: nothing is cached: {error.what}", RuntimeWarning, stacklevel=2)
        return array

    def _encoded(self, array: np.ndarray) -> bytes:
        header = {"version": self._version, "dtype": array.dtype.str, "shape": array.shape}
        body = zlib.compress(np.ascontiguousarray(array).tobytes(), 1)  # it also ends in a checksum
        return _MAGIC + json.dumps(header).encode() + b"\n" + body

    def _decoded(self, data: bytes) -> np.ndarray:
        """Raises ValueError, in a word, for what this cache did not write, or wrote long ago."""
        if not data.startswith(_MAGIC):
            raise ValueError("damaged")
        text, _, body = data[len(_MAGIC) :].partition(b"\n")
        try:
            header = json.loads(text)
            if header["version"] != self._version:
                raise ValueError("stale")
            array = np.frombuffer(zlib.decompress(body), np.dtype(header["dtype"])).reshape(header["shape"])
        except (zlib.error, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError("damaged") from None
        except ValueError as error:
            raise ValueError("stale" if str(error) == "stale" else "damaged") from None
        return array.copy()


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
