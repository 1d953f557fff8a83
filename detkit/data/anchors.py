"""Anchor boxes of a data set: chosen by k-means, judged by average IoU and by the slots that objects lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.reading import fill_sizes
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.geometry import UsualSizes
from detkit.io.files import written_figure
from detkit.ops.anchors import average_iou, kmeans_anchors, slot_collisions
from detkit.printed import Printed, counted

Distance = Literal["iou", "euclidean"]


@dataclass(slots=True, frozen=True, eq=False)
class ObjectSizes:
    """Objects for anchors, crowds and images of unknown size left out; all in pixels of the input, or of the image.

    Attributes:
        wh: (N, 2) width and height.
        image: (N,) index of the image.
        centres: (N, 2) x and y as fractions of the side.
        side: (N, 2) width and height of the input or image.
    """

    wh: np.ndarray
    image: np.ndarray
    centres: np.ndarray
    side: np.ndarray


def object_sizes(annotations: Annotations, resize: Resize | None = None) -> ObjectSizes:
    """Sizes of all objects in pixels of the input that ``resize`` makes, or, without it, of their image."""
    a = annotations
    sizes = a.sizes.copy()
    fill_sizes(sizes, a.files)
    scale, side = np.ones(sizes.shape), sizes[:, ::-1].astype(np.float64)
    if resize is not None:
        for i in np.flatnonzero((sizes > 0).all(axis=1)).tolist():
            geometry = resize.geometry(int(sizes[i, 0]), int(sizes[i, 1]))
            scale[i] = geometry.scale_x, geometry.scale_y
            side[i] = resize.input_size[::-1]
    image = a.image_index
    keep = ~a.crowd & (side[image] > 0).all(axis=1)
    image, xywh = image[keep], a.xywh[keep]
    wh = xywh[:, 2:] * scale[image]
    centres = np.clip((xywh[:, :2] * scale[image] + wh / 2) / side[image], 0, 1)
    return ObjectSizes(wh, image, centres, side[image])


def usual_sizes(annotations: Annotations, resize: Resize) -> dict[str, float]:
    """``UsualSizes`` of a training's objects as a dict; empty where there are none."""
    seen, stored = (np.sqrt(object_sizes(annotations, how).wh.prod(axis=1)) for how in (resize, None))
    if not len(seen):
        return {}
    small, typical, large = np.percentile(seen, [10, 50, 90]).tolist()
    return UsualSizes(small, typical, large, zoom=float(np.median(seen) / np.median(stored)))._asdict()


def collisions(sizes: ObjectSizes, grid: int, anchors: np.ndarray) -> float:
    """Share (0..1) of the objects that would lose their slot on a ``grid`` x ``grid`` grid with these anchors."""
    # Anchors become fractions by the middle image's sides where images differ.
    fractions = anchors / np.median(sizes.side, axis=0)
    return slot_collisions(sizes.image, sizes.centres, sizes.wh / sizes.side, grid, fractions)


def choose_anchors(
    annotations: Annotations,
    k: int = 9,
    *,
    size: int | None = None,
    distance: Distance = "iou",
    grid: int | None = None,
    plot: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Printed:
    """Anchors by k-means on the objects' sizes.

    Args:
        annotations: The labels.
        k: How many; fewer where the objects have fewer sizes.
        size: Letterboxed into an input of this size, as a model does it; None: pixels of the images.
        distance: What k-means makes small: 1 - IoU, or Euclidean.
        grid: Count the objects that lose their slot on this many cells along each side.
        plot: Draw the average IoU of 1 to 12 anchors, with both distances, to this file.
        seed: Of k-means.
        overwrite: Replace the plot if it exists.

    Returns:
        As facts: anchors, (w, h) each, by area; average_iou, the mean over the objects of the IoU with their best
        anchor; with ``grid`` collisions, the share (0..1) of the objects that lose their slot; with ``plot`` curve, by
        distance, the average IoU with 1, 2, 3, ... anchors.

    Raises:
        DetkitError: No objects, or no anchors asked for.
    """
    where = str(annotations.source.path) if annotations.source else ""
    sizes = object_sizes(annotations, None if size is None else Resize(size))
    if not len(sizes.wh):
        raise DetkitError("this data set has no objects to make anchors from", where, "detkit data check says why")
    if k < 1:
        raise DetkitError(f"{k} anchors are none", "-k", "give 9, say")
    different = len(np.unique(sizes.wh.astype(np.float32), axis=0))
    anchors = kmeans_anchors(sizes.wh, min(k, different), distance=distance, seed=seed)
    chosen, overlap = anchors.round(2).tolist(), average_iou(sizes.wh, anchors)
    facts: dict[str, object] = {"anchors": chosen, "average_iou": overlap}
    said = ["anchors: [" + ", ".join(f"[{w:.1f}, {h:.1f}]" for w, h in chosen) + "]"]
    said += [f"not {k}: the boxes have {counted(different, 'different size')}"] if different < k else []
    said.append(f"average IoU {overlap:.4f} of {counted(len(sizes.wh), 'box')}")
    if grid is not None:
        facts["collisions"] = lost = collisions(sizes, grid, anchors)
        said.append(f"{100 * lost:.2f}% of the objects lose their slot on a {grid} x {grid} grid")
    if plot is not None:
        facts["curve"] = curve = _plotted_curve(sizes.wh, seed, plot, overwrite)
        for name, values in curve.items():
            said.append(f"{name:10s} " + "  ".join(f"{n}: {value:.3f}" for n, value in enumerate(values, 1)))
    return Printed(facts, said)


def _plotted_curve(wh: np.ndarray, seed: int, path: Path, overwrite: bool) -> dict[str, list[float]]:
    labels = {"iou": "1 - IoU distance", "euclidean": "Euclidean distance"}
    counts = range(1, min(12, len(np.unique(wh, axis=0))) + 1)
    curve = {
        distance: [average_iou(wh, kmeans_anchors(wh, k, distance=distance, seed=seed)) for k in counts]
        for distance in get_args(Distance)
    }
    with written_figure(path, 7, 5, overwrite=overwrite) as figure:
        axes = figure.subplots()
        for (name, line), colour in zip(curve.items(), ("#4477aa", "#aa3377"), strict=True):
            axes.plot(range(1, len(line) + 1), line, "o-", label=labels[name], color=colour)
        axes.set(xlabel="anchors", ylabel="average IoU with the best anchor", title="Anchors by k-means")
        axes.grid(alpha=0.3)
        axes.legend()
    return curve
