"""Compiled kernels of graph segmentation (Felzenszwalb & Huttenlocher 2004): edges, their order, merging.

An image's pixels are nodes 0 .. h w - 1, row by row. Edge 2 p joins pixel p with its right neighbour, edge 2 p + 1
with the one below, so an edge's number says which pixels it joins.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel


def sorted_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All edges of an image, lightest first, equal ones by number.

    The upper 22 bits of a float's 31, its exponent and 14 bits of the squared distance, are sorted with the number
    below them.

    Args:
        image: (h, w, c) float32.

    Returns:
        (E,) int32 numbers and (E,) float32 weights, the Euclidean distance of the two pixels' values to 12 significant
        bits.
    """
    edges = np.sort(_edges(image))
    return edges.astype(np.int32), np.sqrt(((edges >> 32) << 9).astype(np.uint32).view(np.float32))


@kernel
def _edges(image: np.ndarray) -> np.ndarray:
    """(E,) int64: the upper 22 bits of each edge's squared distance, and in the lower half its number."""
    h, w, c = image.shape
    edges = np.empty(2 * h * w - h - w, np.int64)
    square = np.empty(1, np.float32)
    bits = square.view(np.uint32)
    n = 0
    for i in range(h):
        for j in range(w):
            for down in range(2):
                y, x = i + down, j + 1 - down
                if y < h and x < w:
                    square[0] = 0
                    for k in range(c):
                        step = image[i, j, k] - image[y, x, k]
                        square[0] += step * step
                    edges[n] = np.int64(bits[0] >> np.uint32(9)) << 32 | (2 * (i * w + j) + down)
                    n += 1
    return edges


@kernel
def find(parent: np.ndarray, x: int) -> int:
    """The root of ``x``; the way there is halved."""
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@kernel
def _joined(parent: np.ndarray, size: np.ndarray, a: int, b: int) -> int:
    """Joins the smaller of two roots to the larger, and returns that."""
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    return a


@kernel
def _numbered(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The segment of each node (N,) int32, numbered by first nodes, and the root of each segment (S,) int32."""
    numbers = np.full(parent.shape[0], -1, np.int32)
    labels = np.empty(parent.shape[0], np.int32)
    roots = np.empty(parent.shape[0], np.int32)
    segments = 0
    for p in range(parent.shape[0]):
        root = find(parent, p)
        if numbers[root] < 0:
            numbers[root] = segments
            roots[segments] = root
            segments += 1
        labels[p] = numbers[root]
    return labels, roots[:segments].copy()


@kernel
def common_merges(
    names: np.ndarray, weights: np.ndarray, nodes: int, w: int, k: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The joins that are the same for every k: most of them, made once.

    Two segments are joined where an edge between them is no heavier than either's heaviest inner edge + k / its pixels
    (section 4.1 of the paper). While the smallest k agrees to every edge that two segments have met, so do all, and
    those segments are the same for all. One that it first refuses, and from then on what it meets, is *open*: its edges
    are left to ``own_merges``.

    Args:
        names: (E,) edges, lightest first.
        weights: (E,) theirs.
        nodes: The pixels.
        w: Those of a row.
        k: The smallest, float32.

    Returns:
        The segment of each pixel (nodes,) int32, numbered by first pixels; each segment's pixels (int32) and heaviest
        inner edge; for each edge left, lightest first, its two segments (E', 2) and its weight.
    """
    parent = np.arange(nodes).astype(np.int32)
    size = np.ones(nodes, np.int32)
    inner = np.zeros(nodes, np.float32)
    limit = np.full(nodes, k)  # -1 once the segment is open
    left = np.empty(names.shape[0], np.int32)
    count = 0
    for q in range(names.shape[0]):
        e = names[q]
        p = e >> 1
        r = p + (w if e & 1 else 1)
        if parent[p] == parent[r]:
            continue
        a = find(parent, p)
        b = find(parent, r)
        if a == b:
            continue
        weight = weights[q]
        if weight <= limit[a] and weight <= limit[b]:
            a = _joined(parent, size, a, b)
            inner[a] = weight
            limit[a] = weight + k / np.float32(size[a])
            continue
        limit[a] = -1
        limit[b] = -1
        left[count] = q
        count += 1
    labels, roots = _numbered(parent)
    pairs = np.empty((count, 2), np.int32)
    pair_weights = np.empty(count, np.float32)
    n = 0
    for q in left[:count]:
        p = names[q] >> 1
        pairs[n, 0] = labels[p]
        pairs[n, 1] = labels[p + (w if names[q] & 1 else 1)]
        pair_weights[n] = weights[q]
        n += pairs[n, 0] != pairs[n, 1]
    return labels, size[roots], inner[roots], pairs[:n], pair_weights[:n]


@kernel
def own_merges(
    sizes: np.ndarray, heaviest: np.ndarray, pairs: np.ndarray, weights: np.ndarray, k: float, min_size: int
) -> np.ndarray:
    """Goes on from ``common_merges`` with one k; then segments of fewer than ``min_size`` pixels are joined along the
    lightest edges that are left. Returns the final segment (S,) int32 of each common one, numbered by first ones."""
    count = sizes.shape[0]
    parent = np.arange(count).astype(np.int32)
    size = sizes.copy()
    scale = np.float32(k)
    limit = heaviest + scale / size.astype(np.float32)
    apart = np.empty(pairs.shape[0], np.int32)
    rest = 0
    for q in range(pairs.shape[0]):
        a, b = find(parent, pairs[q, 0]), find(parent, pairs[q, 1])
        if a == b:
            continue
        weight = weights[q]
        if weight <= limit[a] and weight <= limit[b]:
            a = _joined(parent, size, a, b)
            limit[a] = weight + scale / np.float32(size[a])
        elif size[a] < min_size or size[b] < min_size:
            apart[rest] = q
            rest += 1
    for q in apart[:rest]:
        a, b = find(parent, pairs[q, 0]), find(parent, pairs[q, 1])
        if a != b and (size[a] < min_size or size[b] < min_size):
            _joined(parent, size, a, b)
    return _numbered(parent)[0]


def atoms_of(labels: np.ndarray, finals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The common refinement of several segmentations.

    Args:
        labels: (N,) common segment of each pixel.
        finals: (K, S) final segment of each common one, under each k.

    Returns:
        The atom of each pixel (N,) int32, and the segment of each atom in each segmentation (K, A) int32.
    """
    atom = np.zeros(finals.shape[1], np.int64)
    for segments in finals:
        atom = atom * (segments.max() + 1) + segments
    atom = np.unique(atom, return_inverse=True)[1]
    of_atom = np.empty(atom.max() + 1, np.int64)
    of_atom[atom] = np.arange(len(atom))
    return atom.astype(np.int32)[labels], finals[:, of_atom]
