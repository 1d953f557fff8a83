"""Masks of segmentation as files: a PNG whose pixels are numbers, with a colour for each, or colours themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detkit.errors import DetkitError
from detkit.io.files import reading
from detkit.io.images import image_size


def voc_colours(count: int = 256) -> np.ndarray:
    """(count, 3) uint8: PASCAL VOC's colour of each number (VOCdevkit's VOClabelcolormap).

    The three lowest bits of a number are the highest bits of red, green and blue, the next three the next lower ones.
    """
    number = np.arange(count)[:, None] >> np.arange(0, 9, 3)  # three bits at a time
    bits = (number[..., None] >> np.arange(3)) & 1  # (count, level, channel)
    return (bits << (7 - np.arange(3))[:, None]).sum(1).astype(np.uint8)


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """The numbers (height, width) uint8 of a grey or palette PNG, or the colours (height, width, 3) of another.

    Args:
        path: The file.
        size: (height, width) that it must have.

    Raises:
        DetkitError: Another size, or a file that cannot be read.
    """
    height, width = size
    found = image_size(path)
    if found != (width, height):
        what = f"the mask is {found[0]} x {found[1]} pixels, its image {width} x {height}"
        raise DetkitError(what, str(path), "save the mask in the size of its image")
    # From memory: of a file Pillow asks for as many bytes as a damaged PNG says that a part of it has.
    with reading(str(path)), Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        try:
            return np.asarray(image if image.mode in ("L", "P") else image.convert("L" if image.mode == "1" else "RGB"))
        except (OSError, SyntaxError, ValueError):
            what = "the mask cannot be decoded"
            raise DetkitError(what, str(path), "it is damaged or cut off: fetch it again") from None


def mask_bytes(numbers: np.ndarray, colours: Sequence[Sequence[int]] | np.ndarray) -> bytes:
    """A palette PNG of numbers (H, W) uint8, shown in ``colours`` (up to 256, 3)."""
    image = Image.fromarray(numbers, "L")
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
