"""Anchor shapes from a data set's boxes: k-means with the 1 - IoU distance, and how well anchors fit.

Sizes are (N, 2) width, height in any one unit (pixels of the model's input, or fractions), numpy arrays or torch
tensors of any device, which go through the CPU. IoU here is that of two boxes with one centre, so only shapes matter
(Redmon and Farhadi 2017, section 2, "Dimension Clusters"). Sizes must be finite and above 0 (ValueError).
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from detkit.arrays import as_numpy, is_tensor
from detkit.ops.inputs import check_same_kind, float_array, label_array

_SAMPLE = 4096  # sizes on which the restarts are tried where there are many more
_STEPS = 30  # the last ones change a side by less than a thousandth


def kmeans_anchors(
    wh: Any,
    k: int,
    *,
    distance: Literal["iou", "euclidean"] = "iou",
    update: Literal["iou", "median", "mean"] = "iou",
    seed: int = 0,
    iterations: int = 300,
    restarts: int = 5,
) -> Any:
    """The k anchors (k, 2) float64, width and height, sorted by area, that k-means finds for box sizes ``wh`` (N, 2).

    Samples go to the centre of smallest 1 - IoU (or Euclidean distance); a centre becomes the median (or mean) of its
    samples, width and height apart. Seeds are drawn as in k-means++ with the same distance; the best of ``restarts``
    runs counts, each of at most ``iterations`` rounds or until no sample moves (of many sizes, runs see a drawn part,
    and the best one goes on with all). ``update="iou"`` goes on from the medians: each side of each centre takes the
    smaller and smaller steps that raise the average IoU itself, which neither median nor mean does (no effect with the
    Euclidean distance). The same ``seed`` gives the same anchors. Sizes are taken in float32.

    Raises ValueError if there are fewer than k distinct sizes; with exactly k these are the anchors.
    """
    if distance not in ("iou", "euclidean"):
        raise ValueError(f"distance must be iou or euclidean, got {distance!r}")
    if update not in ("iou", "median", "mean"):
        raise ValueError(f"update must be iou, median or mean, got {update!r}")
    if k < 1 or iterations < 1 or restarts < 1:
        raise ValueError(f"k, iterations and restarts must be at least 1, got {k}, {iterations} and {restarts}")
    sizes = _sizes(wh, "wh").astype(np.float32)
    distinct = np.unique(sizes, axis=0) if len(sizes) <= 4 * k else _distinct_upto(sizes, k)
    if len(distinct) < k:
        raise ValueError(f"{k} anchors need {k} different box sizes, there are {len(distinct)}")
    if len(distinct) == k:
        anchors = distinct
    else:
        anchors = _best_run(sizes, k, distance == "iou", update, seed, iterations, restarts)
    anchors = anchors.astype(np.float64)
    anchors = anchors[np.lexsort((anchors[:, 0], anchors.prod(1)))]
    return sys.modules["torch"].from_numpy(anchors).to(wh.device) if is_tensor(wh) else anchors


def average_iou(wh: Any, anchors: Any) -> float:
    """The mean over sizes ``wh`` (N, 2) of the IoU with the best of ``anchors`` (K, 2); NaN without sizes."""
    check_same_kind(wh, anchors)
    sizes = _sizes(wh, "wh")
    _, best = _nearest(sizes, _anchors(anchors))
    return float(best.mean(dtype=np.float64)) if len(best) else float("nan")


def slot_collisions(images: Any, centres: Any, wh: Any, grid: int | tuple[int, int], anchors: Any) -> float:
    """The share (0..1) of objects that lose their slot on a grid: same image, same cell, same best anchor.

    images (N,) integers, which image an object is of; centres (N, 2) x, y and wh (N, 2) width, height, both as
    fractions of the image; grid S for S x S cells, or (rows, columns); anchors (K, 2) as fractions too. An object
    belongs to the cell of its centre (the last one if the centre lies on the far edge) and to the anchor of best IoU;
    one object keeps each slot, the others are lost. 0 without objects.
    """
    check_same_kind(images, centres, wh, anchors)
    sizes = _sizes(wh, "wh")
    points = as_numpy(float_array(centres, "centres"))
    if points.shape != sizes.shape:
        raise ValueError(f"centres must have shape {sizes.shape}, as wh, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("centres must be finite")
    pictures = as_numpy(label_array(images, len(sizes), "images"))
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must have at least one cell, got {grid}")
    if not len(sizes):
        return 0.0
    anchor, _ = _nearest(sizes, _anchors(anchors))
    column = np.clip(np.floor(points[:, 0] * columns), 0, columns - 1).astype(np.int64)
    row = np.clip(np.floor(points[:, 1] * rows), 0, rows - 1).astype(np.int64)
    slots = np.unique(np.stack((pictures, row, column, anchor), 1), axis=0)
    return (len(sizes) - len(slots)) / len(sizes)


def _sizes(value: Any, name: str) -> np.ndarray:
    sizes = as_numpy(float_array(value, name))
    if sizes.shape == (0,):
        sizes = sizes.reshape(0, 2)
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ValueError(f"{name} must have shape (N, 2), width and height, got {tuple(sizes.shape)}")
    unusable = len(sizes) - int((np.isfinite(sizes) & (sizes > 0)).all(1).sum())
    if unusable:
        raise ValueError(f"{name} must be finite and above 0, {unusable} of {len(sizes)} rows are not")
    return sizes


def _anchors(value: Any) -> np.ndarray:
    anchors = _sizes(value, "anchors")
    if not len(anchors):
        raise ValueError("at least one anchor is needed")
    return anchors


def _columns(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sizes[:, 0], np.float32), np.array(sizes[:, 1], np.float32)


def _nearest(sizes: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best anchor of each size (ties: the lower index) and its IoU."""
    from detkit.ops.kmeans_kernels import assign

    labels = np.full(len(sizes), -1, np.int32)
    best = np.empty(len(sizes), np.float32)
    assign(*_columns(sizes), np.array(anchors, np.float32), True, labels, best)
    return labels, best


def _distinct_upto(sizes: np.ndarray, k: int) -> np.ndarray:
    """The distinct rows if there are at most k, else more than k of them: a large set need not be sorted for that."""
    sample = np.unique(sizes[:: max(1, len(sizes) // (4 * k))], axis=0)
    return sample if len(sample) > k else np.unique(sizes, axis=0)


def _best_run(
    sizes: np.ndarray, k: int, by_iou: bool, update: str, seed: int, iterations: int, restarts: int
) -> np.ndarray:
    from detkit.ops.kmeans_kernels import seed_centres

    rng = np.random.default_rng(seed)
    tried = sizes
    if len(sizes) > 4 * _SAMPLE:  # which start is best shows in a sample
        tried = sizes[np.sort(rng.integers(0, len(sizes), _SAMPLE))]
        if len(np.unique(tried, axis=0)) <= k:
            tried = sizes
    w, h = _columns(tried)
    orders = _orders(w, h, update != "mean")
    runs = (_run(w, h, seed_centres(w, h, rng.random(k), by_iou), by_iou, orders, iterations) for _ in range(restarts))
    centres = max(runs, key=lambda run: run[0])[1]
    if update == "iou" and by_iou:
        return _refined(*_columns(sizes), centres)
    if tried is sizes:
        return centres
    w, h = _columns(sizes)
    return _run(w, h, centres, by_iou, _orders(w, h, update != "mean"), iterations)[1]


def _refined(w: np.ndarray, h: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centres after steps, a tenth of a side and then less, each taken where its own samples' IoU rises."""
    from detkit.ops.kmeans_kernels import assign, total_iou

    labels, near = np.full(len(w), -1, np.int32), np.empty(len(w), np.float32)
    for part in 0.1 * 0.85 ** np.arange(_STEPS):
        assign(w, h, centres, True, labels, near)
        reached = total_iou(w, h, centres, labels)
        for axis in (0, 1):
            for factor in (1 + part, 1 - part):
                moved = centres.copy()
                moved[:, axis] *= np.float32(factor)
                total = total_iou(w, h, moved, labels)
                centres = np.where((total > reached)[:, None], moved, centres)
                reached = np.maximum(total, reached)
    return centres


def _orders(w: np.ndarray, h: np.ndarray, by_median: bool) -> tuple[np.ndarray, np.ndarray] | None:
    return (np.argsort(w, kind="stable"), np.argsort(h, kind="stable")) if by_median else None


def _run(
    w: np.ndarray,
    h: np.ndarray,
    centres: np.ndarray,
    by_iou: bool,
    orders: tuple[np.ndarray, np.ndarray] | None,
    iterations: int,
) -> tuple[float, np.ndarray]:
    """Lloyd's rounds from ``centres``: the best mean nearness met on the way and its centres."""
    from detkit.ops.kmeans_kernels import assign, medians

    k = len(centres)
    labels = np.full(len(w), -1, np.int32)
    near = np.empty(len(w), np.float32)
    result = (-np.inf, centres)
    for _ in range(iterations):
        changed = assign(w, h, centres, by_iou, labels, near)
        mean = float(near.mean(dtype=np.float64))
        if mean > result[0]:  # a round may also worsen it: median and mean do not minimise 1 - IoU
            result = (mean, centres)
        if not changed:
            break
        counts = np.bincount(labels, minlength=k)
        centres = centres.copy()
        for axis, values in enumerate((w, h)):
            if orders is None:
                filled = counts > 0
                sums = np.bincount(labels, values, minlength=k)
                centres[filled, axis] = sums[filled] / counts[filled]
            else:
                column = centres[:, axis].copy()
                medians(orders[axis], values, labels, counts, column)
                centres[:, axis] = column
        empty = np.flatnonzero(counts == 0)
        if len(empty):  # centres that lost all samples restart at those that fit worst
            worst = np.argsort(near, kind="stable")[: len(empty)]
            centres[empty] = np.stack((w[worst], h[worst]), 1)
    return result
