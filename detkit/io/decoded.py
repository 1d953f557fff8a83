"""Images as training reads them, decoded and made smaller, on disk, so that each is decoded in one epoch only."""

from __future__ import annotations

import hashlib
from functools import cached_property

import cv2
import numpy as np

from detkit.io.cache import Cache
from detkit.io.files import reading
from detkit.io.images import read_sized
from detkit.io.stored import identity_of


class DecodedImages:
    """Those that fit into a size. None makes room for another, since an epoch needs all of them once.

    An entry's name holds its file's size and times (of one at an address, what its store says), so that one of a file
    that has changed is never found.

    Args:
        room: Gigabytes that this and earlier runs may take together.
        writers: Processes that share what is left of it.
    """

    def __init__(self, room: float, writers: int) -> None:
        self._cache = Cache("decoded", {"opencv": cv2.__version__})
        self._room, self._writers, self.folder = room, writers, self._cache.folder

    @cached_property
    def _left(self) -> float:
        """Bytes that this process may write."""
        held = sum(path.stat().st_size for path in self.folder.glob("??/*.npy"))
        return (1e9 * self._room - held) / self._writers

    def read(self, path: str, reduce_to: int | None) -> tuple[np.ndarray, tuple[int, int]]:
        """``read_sized``, to the bit."""
        with reading(path):
            key = hashlib.sha256(f"{identity_of(path)} {reduce_to}".encode("utf-8", "surrogateescape")).hexdigest()[:40]
        kept = self._cache.find(key)
        if kept is not None:
            width, height, *shape = kept[:16].view(np.int32).tolist()
            return kept[16:].reshape(*shape, 3), (width, height)
        image, size = read_sized(path, reduce_to=reduce_to)
        kept = np.concatenate([np.array([*size, *image.shape[:2]], np.int32).view(np.uint8), image.ravel()])
        self._left -= kept.nbytes
        if self._left >= 0:
            self._cache.put(key, kept)
        return image, size
