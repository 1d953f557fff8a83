"""JPEG and PNG files that decoders of other programs read, though a byte too many or their end marker is missing."""

from __future__ import annotations

import io
import os
import re
import zlib
from typing import BinaryIO

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from detkit.errors import DetkitError

STRAY = "stray bytes before a JPEG's marker are left out"
ENDLESS = "the end marker is missing; all pixels are there"
_END = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}
_MARKER, _SCAN = re.compile(b"\xff[\x01-\xfe]"), b"\xff\xda"
_FILLERS = (b"\x55" * 99, b"\xaa" * 99)


def repaired(data: bytes, form: str, start: int, where: str) -> tuple[bytes, list[str]]:
    """The bytes of a file as every decoder takes them, and what was put right.

    Args:
        data: The file.
        form: ``JPEG`` or ``PNG``; others stay as they are.
        start: Where the coded pixels begin: a preview in EXIF has an end marker of its own.
        where: The file, as a person knows it.

    Raises:
        DetkitError: Pixels are missing.
    """
    notes = []
    if form == "JPEG":
        whole = _without_stray_bytes(data)
        if len(whole) < len(data):
            start, data = start - (len(data) - len(whole)), whole
            notes.append(STRAY)
    if form in _END and data.find(_END[form][-8:], start) < 0:
        body, missing = _ended_jpeg(data, start) if form == "JPEG" else _ended_png(data)
        if missing:
            what = f"the image is cut off: about {max(1, min(99, round(missing * 100)))}% of it is missing"
            raise DetkitError(what, where, "fetch or copy it again")
        data = body + _END[form]
        notes.append(ENDLESS)
    return data, notes


def _without_stray_bytes(data: bytes) -> bytes:
    """A JPEG whose markers before the pixels follow on each other (ITU-T T.81, B.1.1)."""
    parts, at, stray = [data[:2]], 2, False
    while (marker := _MARKER.search(data, at)) is not None:
        begin = marker.start()
        stray = stray or bool(data[at:begin].strip(b"\xff"))
        if marker[0] == _SCAN:
            return b"".join([*parts, data[begin:]]) if stray else data
        at = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
        parts.append(data[begin:at])
    return data


def _ended_jpeg(data: bytes, start: int) -> tuple[bytes, float]:
    """The file up to its last coded byte, and the share of its pixels that is missing.

    A decoder puts zeros where coded pixels are missing: if other bits in their place change pixels, these are missing.
    """
    body = data.rstrip(b"\0")
    if len(data) - len(body) == 1:  # one zero is a coded byte, several are padding
        body = data
    elif body.endswith(b"\xff"):  # with a zero it is a coded byte; alone half of the end marker
        body = body + b"\0" if len(body) < len(data) else body[:-1]
    zeros = _pixels(body)
    if zeros is None:
        return body, 1.0
    missing = _missing_passes(data, data.rfind(_SCAN, 0, start), zeros.shape[2])
    if missing:
        return body, missing
    changed = np.zeros(len(zeros), bool)
    for filler in _FILLERS:
        other = _pixels(body + filler)
        changed |= True if other is None else (other != zeros).any(axis=(1, 2))
    return body, 1 - int(changed.argmax()) / len(zeros) if changed.any() else 0.0


def _pixels(body: bytes) -> np.ndarray | None:
    try:  # Pillow keeps libjpeg's complaints off stderr
        pixels = np.asarray(JpegImageFile(io.BytesIO(body + _END["JPEG"])))
    except (OSError, SyntaxError):
        return None
    return pixels.reshape(*pixels.shape[:2], -1)


def _missing_passes(data: bytes, first: int, components: int) -> float:
    """The share of a JPEG's coefficients (64 per component) that no pass of it brings down to the last bit."""
    known = set()
    for scan in re.finditer(_SCAN, data[first:]):
        at = first + scan.start() + 5
        last = at + 2 * data[at - 1]
        low, high, bit = data[last : last + 3]
        known |= {(component, k) for component in data[at:last:2] for k in range(low, high + 1) if not bit & 15}
    return 1 - len(known) / (64 * components)


def _ended_png(data: bytes) -> tuple[bytes, float]:
    """The file up to its last whole chunk of pixels, and the share of its pixels that is missing."""
    coded, at, end = zlib.decompressobj(), 8, 8
    size = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            try:
                size += len(coded.decompress(data[at + 8 : at + 8 + length]))
            except zlib.error:
                break
            end = at + 12 + length
        at += 12 + length
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    channels = {2: 3, 4: 2, 6: 4}.get(data[25], 1)
    expected = height * (1 + -(-width * channels * data[24] // 8))
    return data[:end], 0.0 if coded.eof and end <= len(data) else max(1 - size / expected, 1e-9)


def late_exif(file: BinaryIO) -> bytes:
    """The EXIF behind a PNG's pixels, all of which Pillow would decode to get there."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return b"Exif\0\0" + file.read(min(length, 1 << 16))
        file.seek(length + 4, os.SEEK_CUR)
    return b""
