"""Anchor boxes of a data set: chosen by k-means, judged by average IoU and by the slots that objects lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detkit.data.annotations import Annotations
from detkit.errors import DetkitError
from detkit.io.figures import written_figure
from detkit.ops.anchors import average_iou, kmeans_anchors, slot_collisions

Distance = Literal["iou", "euclidean"]


@dataclass(slots=True, frozen=True, eq=False)
class Sizes:
    """Objects for anchors, crowds left out: wh (N, 2) pixels of the fitted input or of the image; image (N,) index;
    centres (N, 2) and fractions (N, 2): centre and size as fractions of the input or image.
    """

    wh: np.ndarray
    image: np.ndarray
    centres: np.ndarray
    fractions: np.ndarray
    side: np.ndarray


def object_sizes(annotations: Annotations, size: int | None = None) -> Sizes:
    """Sizes of all objects in pixels of the image, or letterboxed into a ``size`` x ``size`` input.

    Images of unknown size are left out where their size is needed. Raises DetkitError if no object is left.
    """
    a = annotations
    picture = a.sizes[a.image_index][:, ::-1].astype(np.float64)
    keep = ~a.crowd & ((picture > 0).all(axis=1))
    picture, xywh = picture[keep], a.xywh[keep]
    if not len(xywh):
        where = str(a.source.path) if a.source else ""
        raise DetkitError("this data set has no objects to make anchors from", where, "detkit data check says why")
    side = picture
    low, wh = xywh[:, :2], xywh[:, 2:]
    if size is not None:
        scale = size / picture.max(axis=1, keepdims=True)
        low = low * scale + (size - picture * scale) / 2
        wh, side = wh * scale, np.full_like(picture, size)
    centres = np.clip((low + wh / 2) / side, 0, 1)
    return Sizes(wh, a.image_index[keep], centres, wh / side, side)


def collisions(sizes: Sizes, grid: int, anchors: np.ndarray) -> float:
    """Share (0..1) of the objects that would lose their slot on a ``grid`` x ``grid`` grid with these anchors."""
    # Anchors become fractions by the middle image's sides where images differ (no --size).
    return slot_collisions(sizes.image, sizes.centres, sizes.fractions, grid, anchors / np.median(sizes.side, axis=0))


def curve(wh: np.ndarray, counts: range = range(1, 13), seed: int = 0) -> dict[str, list[float]]:
    """Average IoU for each number of anchors, with 1 - IoU and with Euclidean distance."""
    distinct = len(np.unique(wh, axis=0))
    distances: tuple[Distance, ...] = ("iou", "euclidean")
    return {
        d: [average_iou(wh, kmeans_anchors(wh, k, distance=d, seed=seed)) for k in counts if k <= distinct]
        for d in distances
    }


def plot_curve(values: dict[str, list[float]], path: Path, *, overwrite: bool = False) -> None:
    """Average IoU against the number of anchors, one line a distance."""
    labels = {"iou": "1 - IoU distance", "euclidean": "Euclidean distance"}
    with written_figure(path, 7, 5, overwrite=overwrite) as figure:
        axes = figure.subplots()
        for (name, line), colour in zip(values.items(), ("#4477aa", "#aa3377"), strict=True):
            axes.plot(range(1, len(line) + 1), line, "o-", label=labels[name], color=colour)
        axes.set(xlabel="anchors", ylabel="average IoU with the best anchor", title="Anchors by k-means")
        axes.grid(alpha=0.3)
        axes.legend()
