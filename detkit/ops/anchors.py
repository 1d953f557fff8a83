"""Anchor shapes from a data set's boxes: k-means with the 1 - IoU distance, and how well anchors fit.

Sizes are (N, 2) width, height in any one unit (pixels of the model's input, or fractions), numpy arrays or torch
tensors of any device, which go through the CPU. IoU here is that of two boxes with one centre, so only shapes matter
(Redmon and Farhadi 2017, section 2, "Dimension Clusters"). Sizes must be finite and above 0 (ValueError).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import numpy as np

from detkit.arrays import Array, as_numpy
from detkit.errors import DetkitError
from detkit.ops.inputs import as_kind, check_same_kind, float_array, label_array

Item = TypeVar("Item")

_SAMPLE = 4096  # sizes on which the restarts are tried where there are many more
_STEPS = 30  # the last ones change a side by less than a thousandth


def kmeans_anchors(
    wh: Array,
    k: int,
    *,
    distance: Literal["iou", "euclidean"] = "iou",
    update: Literal["iou", "median", "mean"] = "iou",
    seed: int = 0,
    iterations: int = 300,
    restarts: int = 5,
) -> Array:
    """The anchors that k-means finds for the sizes of boxes.

    Samples go to the centre of smallest distance; a centre becomes the median (or mean) of its samples, width and
    height apart. Seeds are drawn as in k-means++ with the same distance. Sizes are taken in float32.

    Args:
        wh: (N, 2) width and height of the boxes.
        k: The number of anchors.
        distance: 1 - IoU, or Euclidean.
        update: What a centre becomes. "iou" goes on from the medians: each side of each centre takes the smaller and
            smaller steps that raise the average IoU itself, which neither median nor mean does (no effect with the
            Euclidean distance).
        seed: The same one gives the same anchors.
        iterations: Rounds at most; a run ends when no sample moves.
        restarts: Runs, the best of which counts (of many sizes, runs see a drawn part, and the best one goes on with
            all).

    Returns:
        (k, 2) float64, width and height, sorted by area.

    Raises:
        ValueError: Fewer than k distinct sizes (with exactly k these are the anchors), or arguments out of range.
    """
    if distance not in ("iou", "euclidean"):
        raise ValueError(f"distance must be iou or euclidean, got {distance!r}")
    if update not in ("iou", "median", "mean"):
        raise ValueError(f"update must be iou, median or mean, got {update!r}")
    if k < 1 or iterations < 1 or restarts < 1:
        raise ValueError(f"k, iterations and restarts must be at least 1, got {k}, {iterations} and {restarts}")
    sizes = _sizes(wh, "wh").astype(np.float32)
    distinct = _distinct(sizes)
    if len(distinct) < k:
        raise ValueError(f"{k} anchors need {k} different box sizes, there are {len(distinct)}")
    if len(distinct) == k:
        anchors = distinct
    else:
        anchors = _best_run(sizes, k, distance == "iou", update, seed, iterations, restarts)
    anchors = anchors.astype(np.float64)
    anchors = anchors[np.lexsort((anchors[:, 0], anchors.prod(1)))]
    return as_kind(anchors, wh)


def average_iou(wh: Array, anchors: Array) -> float:
    """The mean over sizes ``wh`` (N, 2) of the IoU with the best of ``anchors`` (K, 2); NaN without sizes."""
    check_same_kind(wh, anchors)
    sizes = _sizes(wh, "wh")
    _, best = _nearest(sizes, _sizes(anchors, "anchors"))
    return float(best.mean(dtype=np.float64)) if len(best) else float("nan")


def slot_collisions(images: Array, centres: Array, wh: Array, grid: int | tuple[int, int], anchors: Array) -> float:
    """The share of objects that lose their slot on a grid: same image, same cell, same best anchor.

    An object belongs to the cell of its centre (the last one if the centre lies on the far edge) and to the anchor of
    best IoU; one object keeps each slot, the others are lost.

    Args:
        images: (N,) integers, which image an object is of.
        centres: (N, 2) x and y, fractions of the image.
        wh: (N, 2) width and height, fractions of the image.
        grid: S for S x S cells, or (rows, columns).
        anchors: (K, 2), fractions too.

    Returns:
        0..1; 0 without objects.

    Raises:
        ValueError: Wrong shapes, sizes, or no cell.
    """
    check_same_kind(images, centres, wh, anchors)
    sizes = _sizes(wh, "wh")
    points = as_numpy(float_array(centres, "centres"))
    if points.shape != sizes.shape:
        raise ValueError(f"centres must have shape {sizes.shape}, as wh, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("centres must be finite")
    numbers = as_numpy(label_array(images, len(sizes), "images"))
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must have at least one cell, got {grid}")
    if not len(sizes):
        return 0.0
    anchor, _ = _nearest(sizes, _sizes(anchors, "anchors"))
    column = np.clip(np.floor(points[:, 0] * columns), 0, columns - 1).astype(np.int64)
    row = np.clip(np.floor(points[:, 1] * rows), 0, rows - 1).astype(np.int64)
    slots = np.unique(np.stack((numbers, row, column, anchor), 1), axis=0)
    return (len(sizes) - len(slots)) / len(sizes)


def _sizes(value: Array, name: str) -> np.ndarray:
    sizes: np.ndarray = as_numpy(float_array(value, name))
    if sizes.shape == (0,):
        sizes = sizes.reshape(0, 2)
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ValueError(f"{name} must have shape (N, 2), width and height, got {tuple(sizes.shape)}")
    unusable = len(sizes) - int((np.isfinite(sizes) & (sizes > 0)).all(1).sum())
    if unusable:
        raise ValueError(f"{name} must be finite and above 0, {unusable} of {len(sizes)} rows are not")
    return sizes


def _distinct(sizes: np.ndarray) -> np.ndarray:
    """The distinct rows; a pair of float32 above 0 is sorted as one integer."""
    return np.unique(np.ascontiguousarray(sizes).view(np.int64)).view(np.float32).reshape(-1, 2)


def _nearness(sizes: np.ndarray, centres: np.ndarray, by_iou: bool = True) -> np.ndarray:
    """(K, N): how near each size is to each centre, the IoU or minus the squared Euclidean distance."""
    x, y = centres[:, :1], centres[:, 1:]
    w, h = np.ascontiguousarray(sizes.T)
    if not by_iou:
        return np.asarray(-((w - x) ** 2) - (h - y) ** 2)
    shared = np.minimum(w, x) * np.minimum(h, y)
    return np.asarray(shared / (w * h + x * y - shared))


def _nearest(sizes: np.ndarray, centres: np.ndarray, by_iou: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the best centre of each size (ties: the lower index), and how near that is."""
    if not len(centres):
        raise ValueError("at least one anchor is needed")
    near = _nearness(np.asarray(sizes, np.float32), np.asarray(centres, np.float32), by_iou)
    return near.argmax(0), near.max(0)


def deal(items: Sequence[Item], strides: Sequence[float], name: str, key: str) -> list[Sequence[Item]]:
    """For each stride its share of ``items``: equally many to each, the first to the finest.

    Args:
        items: Sorted.
        strides: Of the levels.
        name: What the items are, for the error.
        key: Where they stand in a config file.

    Raises:
        DetkitError: They cannot be shared evenly.
    """
    each, rest = divmod(len(items), len(strides))
    if rest:
        what = f"{len(items)} {name} cannot be dealt evenly to {len(strides)} levels"
        raise DetkitError(what, key, f"give a multiple of {len(strides)}, or other backbone taps")
    finest_first = sorted(range(len(strides)), key=lambda i: strides[i])
    starts = [finest_first.index(i) * each for i in range(len(strides))]
    return [items[start : start + each] for start in starts]


def _best_run(
    sizes: np.ndarray, k: int, by_iou: bool, update: str, seed: int, iterations: int, restarts: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tried = sizes
    if len(sizes) > 4 * _SAMPLE:  # which start is best shows in a sample
        tried = sizes[np.sort(rng.integers(0, len(sizes), _SAMPLE))]
        if len(_distinct(tried)) <= k:
            tried = sizes
    average = np.mean if update == "mean" else np.median
    runs = [_run(tried, _seeds(tried, rng.random(k), by_iou), by_iou, average, iterations) for _ in range(restarts)]
    best = max(runs, key=lambda run: run[0])[1]
    if update == "iou" and by_iou:
        return _refined(sizes, best)
    return best if tried is sizes else _run(sizes, best, by_iou, average, iterations)[1]


def _seeds(sizes: np.ndarray, draws: np.ndarray, by_iou: bool) -> np.ndarray:
    """k-means++: each next centre is a sample drawn by its squared distance, from uniform draws (k,) in 0..1."""
    chosen = [int(draws[0] * len(sizes))]
    cost = np.full(len(sizes), np.inf)
    for draw in draws[1:]:
        near = _nearness(sizes, sizes[chosen[-1:]], by_iou)[0]
        cost = np.minimum(cost, (1 - near) ** 2 if by_iou else -near)
        reached = cost.cumsum()
        chosen.append(int(np.searchsorted(reached, draw * reached[-1], side="right")))
    return sizes[chosen]


def _run(
    sizes: np.ndarray, centres: np.ndarray, by_iou: bool, average: Callable[..., np.ndarray], iterations: int
) -> tuple[float, np.ndarray]:
    """Lloyd's rounds from ``centres``: the best mean nearness met on the way and its centres."""
    result = (-np.inf, centres)
    labels = np.full(len(sizes), -1)
    for _ in range(iterations):
        before = labels
        labels, near = _nearest(sizes, centres, by_iou)
        mean = float(near.mean(dtype=np.float64))
        if mean > result[0]:  # a round may also worsen it: median and mean do not minimise 1 - IoU
            result = (mean, centres)
        if (labels == before).all():
            break
        centres = centres.copy()
        worst = iter(np.argsort(near, kind="stable"))
        for c in range(len(centres)):
            own = sizes[labels == c]
            # One that lost all its samples restarts at those that fit worst.
            centres[c] = average(own, axis=0) if len(own) else sizes[next(worst)]
    return result


def _refined(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centres after steps, a tenth of a side and then less, each taken where its own samples' IoU rises."""
    w, h = sizes.T
    area = w * h
    for part in 0.1 * 0.85 ** np.arange(_STEPS):
        labels = _nearest(sizes, centres)[0]
        reached = np.zeros(len(centres))
        for axis, factor in ((0, 1), (0, 1 + part), (0, 1 - part), (1, 1 + part), (1, 1 - part)):
            moved = centres.copy()
            moved[:, axis] *= np.float32(factor)
            x, y = moved[labels].T
            shared = np.minimum(w, x) * np.minimum(h, y)
            total = np.bincount(labels, shared / (area + x * y - shared), len(centres))
            centres = np.where((total > reached)[:, None], moved, centres)
            reached = np.maximum(total, reached)
    return centres
