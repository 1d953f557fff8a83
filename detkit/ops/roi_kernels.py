"""Compiled kernels of RoI pooling, channels last: the innermost loop runs over the channels of a cell, so it is SIMD.

features (B, H, W, C) and pooled (R, h, w, C) are C-contiguous float32 or float64; rois (R, 5), batch index and xyxy,
are of the same type. Forward kernels fill a range of regions, backward kernels a range of channels: so threads never
write the same number, and every sum has the order of the regions, whatever the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.ops.compiled import kernel

_MOST_SAMPLES = 1e6  # along one side of a bin; a region that wants more is broken and gets none


@kernel
def _taps(
    rois: np.ndarray, i: int, axis: int, options: tuple[float, int, bool], size: int, taps: tuple[np.ndarray, ...]
) -> int:
    """Bilinear sampling along one axis (0: x, 1: y) of region i: the cells that each bin reads and their weights.

    options: scale, sampling, aligned; size: of the map in cells; taps: cells and weights (bins, most), and counts
    (bins,), are filled. Returns the samples per bin.
    The weights of a grid of samples are products of those of its two axes, and neighbouring samples share cells, so
    summed up here each cell of a bin is read once, however many samples it has.
    """
    scale, sampling, aligned = options
    cells, weights, counts = taps
    kind = rois.dtype.type
    bins = len(counts)
    zero, one, half = kind(0), kind(1), kind(0.5)
    offset = half if aligned else zero
    low = rois[i, 1 + axis] * kind(scale) - offset
    length = rois[i, 3 + axis] * kind(scale) - offset - low
    if not aligned and not length > one:
        length = one
    step = length / kind(bins)
    samples = sampling
    if sampling <= 0:
        wanted = math.ceil(step)
        samples = int(wanted) if wanted > 0 and wanted < _MOST_SAMPLES else 0
    for p in range(bins):
        count = 0
        for s in range(samples):
            at = low + kind(p) * step + (kind(s) + half) * step / kind(samples)
            if not (at >= -one and at <= kind(size)):  # outside the map, or no number
                continue
            at = max(at, zero)
            first = int(at)
            second = first + 1
            if first >= size - 1:
                first = second = size - 1
                at = kind(first)
            upper = at - kind(first)
            for side in range(2):
                cell, weight = (first, one - upper) if side == 0 else (second, upper)
                if weight == zero:
                    continue
                place = count
                for recent in range(max(count - 3, 0), count):
                    if cells[p, recent] == cell:
                        place = recent
                if place == count:
                    cells[p, count] = cell
                    weights[p, count] = zero
                    count += 1
                weights[p, place] += weight
        counts[p] = count
    return samples


@kernel
def align(
    tensors: tuple[np.ndarray, ...], backward: bool, start: int, stop: int, options: tuple[float, int, bool]
) -> None:
    """RoI align (He et al. 2017, section 3).

    tensors: values, rois, pooled, into; options: scale, sampling (0: about one sample per cell), aligned.

    Forward: writes ``pooled`` of regions start..stop from ``values``. Backward: adds to channels start..stop of
    ``into`` the gradient that ``pooled`` holds.
    """
    values, rois, pooled, into = tensors
    kind = values.dtype.type
    _, height, width, channels = values.shape
    rows, columns = pooled.shape[1:3]
    most = max(2 * options[1], max(height, width)) + 2
    ys, yw, yn = np.empty((rows, most), np.int64), np.empty((rows, most), rois.dtype), np.empty(rows, np.int64)
    xs, xw, xn = np.empty((columns, most), np.int64), np.empty((columns, most), rois.dtype), np.empty(columns, np.int64)
    first, last, low, high = (0, len(rois), start, stop) if backward else (start, stop, 0, channels)
    for i in range(first, last):
        tall = _taps(rois, i, 1, options, height, (ys, yw, yn))
        wide = _taps(rois, i, 0, options, width, (xs, xw, xn))
        share = kind(1) / kind(max(tall * wide, 1))
        image = into[int(rois[i, 0])] if backward else values[int(rois[i, 0])]
        for py in range(rows):
            for px in range(columns):
                out = pooled[i, py, px, low:high]
                if not backward:
                    out[:] = 0
                for a in range(yn[py]):
                    row = image[ys[py, a]]
                    weight = yw[py, a] * share
                    paired = 0 if backward else xn[px] // 2 * 2
                    for b in range(0, paired, 2):  # two cells at a time: half the traffic to the sums
                        w1, w2 = weight * xw[px, b], weight * xw[px, b + 1]
                        cell, other = row[xs[px, b]], row[xs[px, b + 1]]
                        for k in range(channels):
                            out[k] += w1 * cell[k] + w2 * other[k]
                    for b in range(paired, xn[px]):
                        cell = row[xs[px, b], low:high]
                        w = weight * xw[px, b]
                        if backward:
                            for k in range(high - low):
                                cell[k] += w * out[k]
                        else:
                            for k in range(high - low):
                                out[k] += w * cell[k]


@kernel
def _bins(rois: np.ndarray, i: int, axis: int, scale: float, size: int, firsts: np.ndarray, ends: np.ndarray) -> None:
    """RoI pooling along one axis (0: x, 1: y) of region i: bin p holds the cells firsts[p] .. ends[p] - 1."""
    kind = rois.dtype.type
    bins = len(firsts)
    low = np.float64(rois[i, 1 + axis] * kind(scale))
    high = np.float64(rois[i, 3 + axis] * kind(scale))
    # C's round(): half away from zero. In float64 a half more is exact, in float32 it is not.
    start = int(math.copysign(math.floor(abs(low) + 0.5), low))
    stop = int(math.copysign(math.floor(abs(high) + 0.5), high))
    step = kind(max(stop - start + 1, 1)) / kind(bins)
    for p in range(bins):
        firsts[p] = min(max(math.floor(kind(p) * step) + start, 0), size)
        ends[p] = min(max(math.ceil(kind(p + 1) * step) + start, 0), size)


@kernel
def pool(tensors: tuple[np.ndarray, ...], backward: bool, start: int, stop: int, options: tuple[float]) -> None:
    """RoI max pooling (Girshick 2015, section 2.1); a bin outside the map gives 0.

    tensors: values, rois, pooled, into; options: scale.

    Forward: writes ``pooled`` of regions start..stop from ``values``. Backward: adds to channels start..stop of
    ``into`` the gradient that ``pooled`` holds; of equal maxima the first in reading order gets it. The maxima are
    looked for again: that is cheaper than keeping their places, which take as much memory as the result.
    """
    values, rois, pooled, into = tensors
    _, height, width, channels = values.shape
    rows, columns = pooled.shape[1:3]
    y1, y2 = np.empty(rows, np.int64), np.empty(rows, np.int64)
    x1, x2 = np.empty(columns, np.int64), np.empty(columns, np.int64)
    first, last, low, high = (0, len(rois), start, stop) if backward else (start, stop, 0, channels)
    maxima, place = np.empty(high - low, values.dtype), np.empty(high - low, np.int32)
    for i in range(first, last):
        _bins(rois, i, 1, options[0], height, y1, y2)
        _bins(rois, i, 0, options[0], width, x1, x2)
        image = values[int(rois[i, 0])]
        for py in range(rows):
            for px in range(columns):
                best = maxima if backward else pooled[i, py, px]
                if y1[py] >= y2[py] or x1[px] >= x2[px]:
                    best[:] = 0
                    continue
                cell = image[y1[py], x1[px], low:high]
                for k in range(high - low):
                    best[k] = cell[k]
                if backward:
                    place[:] = y1[py] * width + x1[px]
                for y in range(y1[py], y2[py]):
                    for x in range(x1[px], x2[px]):
                        cell = image[y, x, low:high]
                        if backward:
                            here = np.int32(y * width + x)
                            for k in range(high - low):
                                place[k] = here if cell[k] > best[k] else place[k]
                                best[k] = cell[k] if cell[k] > best[k] else best[k]
                        else:
                            for k in range(high - low):
                                best[k] = cell[k] if cell[k] > best[k] else best[k]
                if backward:
                    for k in range(high - low):
                        y, x = place[k] // width, place[k] % width
                        into[int(rois[i, 0]), y, x, low + k] += pooled[i, py, px, low + k]
