"""The polygons and run lengths of a COCO json, decoded when a model wants masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from detkit.data.coco import mapped
from detkit.errors import DetkitError


class _Annotation(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    annotations: list[_Annotation]


def segmentations(path: str) -> Sequence[msgspec.Raw]:
    """What stands under ``segmentation``, record by record.

    Raises:
        DetkitError: The json is not as COCO's format has it.
    """
    return _read(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: str, _changed: int) -> Sequence[msgspec.Raw]:
    try:
        with mapped(Path(path)) as data:
            return [one.segmentation for one in msgspec.json.decode(data, type=_File).annotations]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DetkitError(f"masks cannot be read: {error}", path, "correct the json") from None


def region(raw: msgspec.Raw, size: tuple[int, int], where: str) -> np.ndarray:
    """(height, width) bool: the pixels of one object, by pycocotools.

    Args:
        raw: Its polygons [[x1, y1, x2, y2, ...], ...] or run lengths {size, counts}, counted or compressed.
        size: (height, width) of the image.
        where: For errors.

    Raises:
        DetkitError: None of these, or run lengths of an image of another size.
    """
    from pycocotools import mask as rle  # which judging boxes does not need

    do = "give polygons or run lengths, or train on the boxes"
    try:
        value: object = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise DetkitError(f"the object has no mask that can be read ({error})", where, do) from None
    if isinstance(value, dict) and value.get("size") not in (None, list(size)):
        what = f"its mask is of an image of {value['size']} (height, width), not {list(size)}"
        raise DetkitError(what, where, "export the masks anew")
    try:
        coded = (
            rle.frPyObjects(value, *size) if not isinstance(value, dict) or isinstance(value["counts"], list) else value
        )
        return rle.decode(rle.merge(coded) if isinstance(coded, list) else coded).astype(bool)
    except Exception as error:  # the extension raises several kinds, and TypeError for null
        raise DetkitError(f"the object has no mask that can be read ({error})", where, do) from None
