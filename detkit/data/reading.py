"""What readers of data sets share: the tables that they fill, and what makes ``Annotations`` of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source, offsets_of
from detkit.errors import DetkitError
from detkit.io.images import image_size

UNSAFE = "annotation file declares entities, which can exhaust the memory (never read, image dropped)"
# Boxes that no detector can be asked for, of which pycocotools asks.
DEGENERATE = ("box of negative size (dropped)", "box of zero size (dropped)", "box outside the image (dropped)")
ROUNDING = 0.1  # pixels; files round their coordinates, so a box this little outside is not worth a finding


@dataclass(slots=True)
class ObjectTable:
    """Objects as a reader finds them, in file order; columns as in ``Annotations``, None: the usual values.

    Args:
        image: (N,) int64 index of the image; -1: unknown, and counted by the reader.
        xywh: (N, 4).
        labels: (N,) int64; -1: unknown, and counted by the reader.
        where: Names one row for a person.
        crowd: Default: none.
        difficult: Default: none.
        area: Default, also where it is not finite: the boxes' own.
        ids: Default: counted from one.
        points: Default: nothing has any.
        weight: Default: 1.
    """

    image: np.ndarray
    xywh: np.ndarray
    labels: np.ndarray
    where: Callable[[int], str]
    crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None
    area: np.ndarray | None = None
    ids: np.ndarray | None = None
    points: np.ndarray | None = None
    weight: np.ndarray | None = None


class ImageTable(NamedTuple):
    """Images as a reader finds them.

    Attributes:
        ids: Of each.
        files: Path of each.
        sizes: (I, 2) int32 height and width; 0: unknown.
        rows: Place of each among the records of the source; None: they are all of them.
    """

    ids: list[int | str]
    files: list[str]
    sizes: np.ndarray
    rows: np.ndarray | None = None


def assemble(
    objects: ObjectTable,
    images: ImageTable,
    classes: Mapping[int | str, str],
    findings: Findings,
    source: Source,
    *,
    keep_degenerate: bool = False,
) -> Annotations:
    """Sorts objects by image and drops what cannot be used; whatever is dropped or sticks out is counted.

    Args:
        objects: What the reader found.
        images: Their images.
        classes: The file's own ids, in the order of the labels, to names.
        findings: The reader's so far; these are added to.
        source: What was read.
        keep_degenerate: Boxes without area, of negative size or outside of their image stay, as in pycocotools.
    """
    xywh = np.asarray(objects.xywh, dtype=np.float64).reshape(-1, 4)
    keep = _usable(objects, xywh, images.sizes, findings, keep_degenerate)
    order = keep[np.argsort(objects.image[keep], kind="stable")]
    xywh = xywh[order]
    area = xywh[:, 2] * xywh[:, 3]
    if objects.area is not None:
        own = np.asarray(objects.area, dtype=np.float64)[order]
        area = np.where(np.isfinite(own), own, area)
    no, total = np.zeros(len(order), dtype=bool), len(images.files)
    return Annotations(
        image_ids=images.ids,
        files=images.files,
        sizes=images.sizes,
        offsets=offsets_of(np.bincount(objects.image[order], minlength=total)),
        xywh=xywh,
        labels=objects.labels[order].astype(np.int64),
        crowd=no if objects.crowd is None else objects.crowd[order].astype(bool),
        difficult=no if objects.difficult is None else objects.difficult[order].astype(bool),
        area=area,
        ids=order + 1 if objects.ids is None else objects.ids[order],
        classes=tuple(classes.values()),
        class_ids=tuple(classes),
        image_rows=np.arange(total, dtype=np.int64) if images.rows is None else images.rows,
        rows=order.astype(np.int64),
        findings=findings.as_list(),
        source=source,
        points=None if objects.points is None else objects.points[order],
        weight=None if objects.weight is None else objects.weight[order],
    )


def _usable(
    objects: ObjectTable, xywh: np.ndarray, sizes: np.ndarray, findings: Findings, keep_degenerate: bool
) -> np.ndarray:
    """Rows of usable boxes; counts the others, and those that stick out of their image (these are kept)."""
    finite = np.isfinite(xywh).all(axis=1)
    safe = np.where(finite[:, None], xywh, 1.0)
    low, high = safe[:, :2], safe[:, :2] + safe[:, 2:]
    size = np.zeros_like(low) if not len(sizes) else sizes[np.maximum(objects.image, 0)][:, ::-1].astype(np.float64)
    sized = (size > 0).all(axis=1)
    faults = {"box is not finite (dropped)": ~finite}
    if not keep_degenerate:
        negative, flat = (safe[:, 2:] < 0).any(axis=1), (safe[:, 2:] == 0).any(axis=1)
        outside = sized & ((low >= size) | (high <= 0)).any(axis=1)
        faults |= zip(DEGENERATE, (negative, flat, outside), strict=True)
    good = (objects.image >= 0) & (objects.labels >= 0)
    for name, bad in faults.items():
        findings.add_rows(name, good & bad, objects.where)
        good &= ~bad
    out = good & sized & ((low < -ROUNDING) | (high > size + ROUNDING)).any(axis=1)
    findings.add_rows("box sticks out of the image (clipped for training)", out, objects.where, note=True)
    return np.flatnonzero(good)


def short_names(files: Sequence[str]) -> list[int | str]:
    """Ids for images: their names, or their label files', without suffix; with the folders if they are not unique."""
    plain: list[int | str] = [os.path.splitext(file)[0] for file in files]
    stems: list[int | str] = [os.path.basename(str(name)) for name in plain]
    return stems if len(set(stems)) == len(stems) else plain


def pixels(value: float | None) -> int:
    """A height or width that a file gives; 0, unknown, where it makes no sense."""
    return int(value) if value is not None and 0 < value < 1 << 31 else 0


def size_of(file: str) -> tuple[int, int]:
    """(height, width) from the image's header; zeros if it cannot be read, which ``data check`` reports."""
    with suppress(DetkitError, OSError):
        width, height = image_size(file)
        return height, width
    return 0, 0


def fill_sizes(sizes: np.ndarray, files: Sequence[str]) -> list[int]:
    """Reads the headers of images whose row of ``sizes`` (I, 2) holds a 0; returns which these were."""
    unknown = np.flatnonzero((sizes == 0).any(axis=1)).tolist()
    for i in unknown:
        sizes[i] = size_of(files[i])
    return unknown


def check_part(split: str | None, parts: Collection[str], where: str | Path) -> None:
    """Does nothing where ``split`` is None or among ``parts``.

    Raises:
        DetkitError: There is no such part; ``where``, for the person, is the data set.
    """
    if split is not None and split not in parts:
        do = f"the parts are {', '.join(parts)}" if parts else "the data set is one piece: leave --split out"
        raise DetkitError(f"no part {split!r}", str(where), do)
