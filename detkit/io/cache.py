"""A small on-disk cache of arrays that are dear to compute."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import write_bytes, write_error

_END = 4  # bytes of the checksum
# What ``Cache`` writes, the images of Parquet files, exported models and whether they were spoken of.
_KEPT = ("*/??/*-????????????????.*", "parquet/*/*.tar", "exported/*.onnx", "exported/*.told")


def cache_folder() -> Path:
    """Where caches lie: the folder in the environment's DETKIT_CACHE, else the user's cache folder of this system."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("DETKIT_CACHE") or user_cache_dir("detkit"))


def image_hash(image: np.ndarray) -> str:
    """40 hexadecimal digits that stand for an image's pixels, shape and dtype."""
    digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:40]


class Cache:
    """Arrays in one file each, by key and parameters: ``cache.get(image_hash(image), compute)``.

    A file is numpy's own format (``numpy.load`` reads it), then a checksum. Files appear whole or not at all, so that
    processes may share a cache.

    Args:
        name: The folder's name, what is kept.
        parameters: Plain values that decide what is computed, such as the version of the code; part of the file's name.
        folder: Where the folder is made; None: ``cache_folder()``.
        tell: Gets a sentence about each entry that is damaged and computed again, and one, once, where nothing can be
            written; None: they are RuntimeWarnings.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, object],
        *,
        folder: str | Path | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / name
        text = json.dumps(dict(parameters), sort_keys=True)
        self._ending = "-" + hashlib.sha256(text.encode()).hexdigest()[:16] + ".npy"
        self._tell, self._writes = tell or _warn, True

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / (key + self._ending)

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under ``key``, or what ``compute()`` returns, which is then kept."""
        array = self.find(key)
        if array is None:
            self.put(key, array := compute())
        return array

    def find(self, key: str) -> np.ndarray | None:
        """The array kept under ``key``; None where there is none that is sound."""
        path = self.path(key)
        try:
            data = path.read_bytes()
            if zlib.crc32(data[:-_END]) == int.from_bytes(data[-_END:], "little"):
                return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._tell(f"{path}: the cached entry is {error}; it is computed again")
            return None
        except ValueError:
            pass
        self._tell(f"{path}: the cached entry is damaged; it is computed again")
        return None

    def put(self, key: str, array: np.ndarray) -> bool:
        """Keeps ``array`` under ``key``; False where nothing can be written."""
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        data = file.getvalue()
        try:
            if self._writes:
                write_bytes(self.path(key), data + zlib.crc32(data).to_bytes(_END, "little"), overwrite=True)
        except DetkitError as error:
            self._writes = False
            self._tell(f"{error.where}: nothing is cached: {error.what}")
        return self._writes

    def count(self) -> int:
        """The number of entries of these parameters."""
        return sum(1 for _ in self.folder.glob("??/*" + self._ending))

    def clear(self) -> None:
        """Removes the entries of these parameters."""
        for path in self.folder.glob("??/*" + self._ending):
            with suppress(OSError):
                path.unlink()


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)  # whoever called ``Cache.get``


def cache_size() -> tuple[int, int]:
    """(entries, bytes) of all that ``cache_folder`` keeps."""
    sizes = [path.stat().st_size for path in _entries()]
    return len(sizes), sum(sizes)


def clear_cache() -> int:
    """Removes all that ``cache_folder`` keeps and returns the number of entries; other files stay.

    Raises:
        DetkitError: an entry may not be removed.
    """
    entries = _entries()
    for path in entries:
        try:
            path.unlink()
        except OSError as error:
            raise write_error(error, path) from None
        with suppress(OSError):  # only once it is empty
            path.parent.rmdir()
            path.parent.parent.rmdir()
    return len(entries)


def _entries() -> list[Path]:
    return sorted(path for kept in _KEPT for path in cache_folder().glob(kept))
