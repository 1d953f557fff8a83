"""Compiled kernels of selective search: what a segment looks like, which segments touch, and their grouping."""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

COLOURS, TEXTURES = 25, 10  # bins of a histogram: of a channel's values, of its derivative in one of 8 directions
_SIGNED = 2 * TEXTURES - 1  # codes of a derivative: two opposite directions in one
_ONE = 1 << 24  # a normalised histogram's sum
_FAR = 2**31 - 1


@kernel
def texture_codes(derivative: np.ndarray, out: np.ndarray) -> None:
    """Codes (N,) uint8 of the derivative (N,) int16 of a channel along one direction.

    A code is 9 + b for a derivative in the upper (or minus b, in the lower) of two opposite directions, b its tenth of
    the largest derivative in that direction.
    """
    up = np.int32((TEXTURES << 16) // (max(derivative.max(), 0) + 1))
    down = np.int32((TEXTURES << 16) // (1 - min(derivative.min(), 0)))
    for p in range(len(out)):
        value = np.int32(derivative[p])
        step = value * up >> 16 if value > 0 else -(-value * down >> 16)
        out[p] = np.uint8(TEXTURES - 1 + step)


@kernel
def describe(
    atoms: np.ndarray, count: int, w: int, channels: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (A,), boxes (A, 4) xyxy and histograms (A, bins) of atoms, all int32.

    atoms (N,): of each pixel, w in a row; channels (c, N) uint8; codes (4 c, N) of ``texture_codes``. A histogram is
    that of each channel's values, then for each channel and pair of directions the signed codes.
    """
    c = channels.shape[0]
    texture = c * COLOURS
    bins = texture + codes.shape[0] * _SIGNED
    pixels = np.zeros(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, :2] = _FAR
    boxes[:, 2:] = 0
    flat = np.zeros(count * bins, np.int32)
    for p in range(len(atoms)):
        a = atoms[p]
        pixels[a] += 1
        _enclose(boxes, a, p % w, p // w, p % w + 1, p // w + 1)
        first = a * bins
        for k in range(c):
            flat[first + k * COLOURS + ((channels[k, p] * COLOURS) >> 8)] += 1
        first += texture
        for k in range(codes.shape[0]):
            flat[first + k * _SIGNED + codes[k, p]] += 1
    return pixels, boxes, flat.reshape(count, bins)


@kernel
def _enclose(boxes: np.ndarray, a: int, x1: int, y1: int, x2: int, y2: int) -> None:
    """Makes box a so large that it holds another."""
    boxes[a, 0] = min(boxes[a, 0], x1)
    boxes[a, 1] = min(boxes[a, 1], y1)
    boxes[a, 2] = max(boxes[a, 2], x2)
    boxes[a, 3] = max(boxes[a, 3], y2)


def touching(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The pairs (E, 2) int32 of different segments at the same places of two arrays, in order and each once."""
    apart = a != b
    a, b = a[apart].astype(np.int64), b[apart]
    return _once(np.minimum(a, b) << 32 | np.maximum(a, b))


def neighbours(atoms: np.ndarray) -> np.ndarray:
    """``touching`` of the atoms (h, w) of an image: along rows, columns and falling diagonals."""
    return _once(_borders(atoms))


@kernel
def _borders(atoms: np.ndarray) -> np.ndarray:
    """(E,) int64: the smaller atom in the upper half, the larger in the lower, of neighbouring pixels of two atoms."""
    h, w = atoms.shape
    keys = np.empty(3 * h * w, np.int64)
    n = 0
    for i in range(h):
        for j in range(w):
            a = np.int64(atoms[i, j])
            for step in range(1, 4):
                y, x = i + (step >> 1), j + (step & 1)
                if y < h and x < w and atoms[y, x] != a:
                    b = np.int64(atoms[y, x])
                    keys[n] = min(a, b) << 32 | max(a, b)
                    n += 1
    return keys[:n]


def _once(keys: np.ndarray) -> np.ndarray:
    """(E, 2) int32: the two halves of each key, in order and each once."""
    keys = np.sort(keys)
    keys = keys[np.diff(keys, prepend=-1) != 0]
    return np.stack((keys >> 32, keys & 0x7FFFFFFF), axis=1).astype(np.int32)


def gather(
    segments: np.ndarray, pixels: np.ndarray, boxes: np.ndarray, histograms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``describe``'s result for segments made of atoms; ``segments`` (A,): that of each atom."""
    order = np.argsort(segments, kind="stable")
    first = np.flatnonzero(np.diff(segments[order], prepend=-1))
    low, high = np.minimum.reduceat(boxes[order, :2], first), np.maximum.reduceat(boxes[order, 2:], first)
    size, sums = (np.add.reduceat(part[order], first, dtype=np.int32) for part in (pixels, histograms))
    return size, np.concatenate((low, high), axis=1), sums


@kernel
def _normalise(counts: np.ndarray, size: int, channels: int, out: np.ndarray) -> None:
    """Whole-number histograms whose colour part and texture part each sum to about ``_ONE`` (whole numbers add up the
    same in any order). A direction's lowest bin holds all that point the other way."""
    colour = np.float32(_ONE) / np.float32(size * channels)
    texture = colour / np.float32(8)
    n = channels * COLOURS
    for k in range(n):
        out[k] = np.int32(counts[k] * colour)
    for d in range(channels * 4):
        zero = n + d * _SIGNED + TEXTURES - 1
        high = n + d * 2 * TEXTURES
        low = high + TEXTURES
        above = 0
        below = 0
        for b in range(1, TEXTURES):
            above += counts[zero + b]
            below += counts[zero - b]
            out[high + b] = np.int32(counts[zero + b] * texture)
            out[low + b] = np.int32(counts[zero - b] * texture)
        out[high] = np.int32((size - above) * texture)
        out[low] = np.int32((size - below) * texture)


@kernel
def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Histogram intersection, 0..1."""
    total = np.int32(0)
    for k in range(a.shape[0]):
        total += np.int32(a[k] if a[k] < b[k] else b[k])
    return total / _ONE


@kernel
def _similarity(
    looks: np.ndarray, size: np.ndarray, box: np.ndarray, a: int, b: int, use: np.ndarray, colours: int, pixels: int
) -> float:
    """Sum of the similarities in use (section 3.2: colour, texture, size, fill), each 0..1."""
    total = 0.0
    if use[0]:
        total += _shared(looks[a, :colours], looks[b, :colours])
    if use[1]:
        total += _shared(looks[a, colours:], looks[b, colours:])
    both = np.int64(size[a]) + size[b]
    if use[2]:
        total += 1.0 - both / pixels
    if use[3]:
        width = np.int64(max(box[a, 2], box[b, 2]) - min(box[a, 0], box[b, 0]))
        height = max(box[a, 3], box[b, 3]) - min(box[a, 1], box[b, 1])
        total += 1.0 - (width * height - both) / pixels
    return total


@kernel
def group(
    size: np.ndarray, box: np.ndarray, sums: np.ndarray, pairs: np.ndarray, channels: int, pixels: int, uses: np.ndarray
) -> np.ndarray:
    """Joins the two most similar segments that touch until one is left (algorithm 1), once a strategy.

    size, box, sums: from ``gather``; pixels: of the image; uses (S, 4) bool, of colour, texture, size, fill by each
    strategy. Returns (S, R, 4) int32, the boxes in order of their making: the segments', then the groups'.
    """
    count = size.shape[0]
    edges = pairs.shape[0]
    colours = channels * COLOURS
    start = np.empty((count, colours + channels * 8 * TEXTURES), np.int32)
    for s in range(count):
        _normalise(sums[s], size[s], channels, start[s])
    found = np.empty((uses.shape[0], 2 * count - 1, 4), np.int32)
    for number in range(uses.shape[0]):
        use = uses[number]
        looks, counts, sizes, boxes = start.copy(), sums.copy(), size.copy(), box.copy()
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        near = np.empty(edges, np.float32)
        for q in range(edges):
            near[q] = _similarity(looks, sizes, boxes, first[q], second[q], use, colours, pixels)
        found[number, :count] = boxes
        made = count
        seen = np.full(count, -1, np.int32)
        left = edges
        while left > 0:
            top = near[0]
            for q in range(left):
                top = near[q] if near[q] > top else top
            best = 0
            while near[best] != top:
                best += 1
            a, b = first[best], second[best]
            if use[0] or use[1]:
                for k in range(counts.shape[1]):
                    counts[a, k] += counts[b, k]
                _normalise(counts[a], sizes[a] + sizes[b], channels, looks[a])
            sizes[a] += sizes[b]
            _enclose(boxes, a, boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3])
            found[number, made] = boxes[a]
            made += 1
            q = 0
            while q < left:
                u, v = first[q], second[q]
                if u in (a, b) or v in (a, b):
                    other = v if u in (a, b) else u
                    if other in (a, b) or seen[other] == made:
                        # Joined, or the second edge to the same neighbour: the last edge takes its place.
                        left -= 1
                        first[q], second[q], near[q] = first[left], second[left], near[left]
                        continue
                    seen[other] = made
                    first[q], second[q] = a, other
                    near[q] = _similarity(looks, sizes, boxes, a, other, use, colours, pixels)
                q += 1
    return found
