"""Compiled kernels of graph segmentation (Felzenszwalb & Huttenlocher 2004): edges, their order, merging.

An image's pixels are nodes 0 .. h w - 1, row by row. Edge 2 p joins pixel p with its right neighbour, edge 2 p + 1
with the one below, so an edge's number says which pixels it joins.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

_BITS = 11
_BUCKETS = 1 << _BITS


@kernel
def sorted_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All edges of ``image`` (h, w, c) float32, lightest first, equal ones by number: (E,) int32 numbers and (E,)
    float32 weights, the Euclidean distance of the two pixels' values to 12 significant bits.

    Two passes of a radix sort, which is stable: the upper 22 bits of a float's 31 are its exponent and 14 bits of
    the squared distance.
    """
    h, w, c = image.shape
    count = 2 * h * w - h - w
    keys = np.empty(count, np.uint32)
    names = np.empty(count, np.int32)
    square = np.empty(1, np.float32)
    bits = square.view(np.uint32)
    low = np.zeros(_BUCKETS + 1, np.int64)
    high = np.zeros(_BUCKETS + 1, np.int64)
    n = 0
    for i in range(h):
        for j in range(w):
            for down in range(2):
                y = i + down
                x = j + 1 - down
                if y == h or x == w:
                    continue
                total = np.float32(0)
                for k in range(c):
                    d = image[i, j, k] - image[y, x, k]
                    total += d * d
                square[0] = total
                key = bits[0] >> np.uint32(9)
                keys[n] = key
                names[n] = 2 * (i * w + j) + down
                low[(key & np.uint32(_BUCKETS - 1)) + 1] += 1
                high[(key >> np.uint32(_BITS)) + 1] += 1
                n += 1
    for b in range(_BUCKETS):
        low[b + 1] += low[b]
        high[b + 1] += high[b]
    half_keys = np.empty(count, np.uint32)
    half_names = np.empty(count, np.int32)
    for q in range(count):
        b = keys[q] & np.uint32(_BUCKETS - 1)
        half_keys[low[b]] = keys[q]
        half_names[low[b]] = names[q]
        low[b] += 1
    for q in range(count):
        b = half_keys[q] >> np.uint32(_BITS)
        keys[high[b]] = half_keys[q]
        names[high[b]] = half_names[q]
        high[b] += 1
    weights = np.empty(count, np.float32)
    for q in range(count):
        bits[0] = keys[q] << np.uint32(9)
        weights[q] = np.sqrt(square[0])
    return names, weights


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
    names: np.ndarray, weights: np.ndarray, h: int, w: int, ks: np.ndarray, min_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The joins that are the same for every k in ``ks`` (rising float32): most of them, made once.

    Two segments are joined where an edge between them is no heavier than either's heaviest inner edge + k / its pixels
    (section 4.1 of the paper). While all k agree on every edge that two segments have met, those segments are the same
    for all k. One that they first disagree on, and from then on what it meets, is *open*: its edges are left to
    ``own_merges``. A segment that refuses an edge refuses all later ones, as they are no lighter (the paper's lemma 1),
    so one that is full for the largest k opens nothing.

    Returns the segment of each pixel (h w,) int32, numbered by first pixels; each segment's pixels (int32) and heaviest
    inner edge; for each edge left, lightest first, its two segments and its weight.
    """
    nodes = h * w
    parent = np.arange(nodes).astype(np.int32)
    size = np.ones(nodes, np.int32)
    inner = np.zeros(nodes, np.float32)
    least, most = ks[0], ks[-1]
    strict = np.full(nodes, least)  # the limit for the smallest k, -1 once the segment is open
    loose = np.full(nodes, most)  # the limit for the largest
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
        if weight <= strict[a] and weight <= strict[b]:
            a = _joined(parent, size, a, b)
            inner[a] = weight
            pixels = np.float32(size[a])
            strict[a] = weight + least / pixels
            loose[a] = weight + most / pixels
            continue
        full_a = strict[a] >= 0 and weight > loose[a]
        full_b = strict[b] >= 0 and weight > loose[b]
        if full_a or full_b:
            if size[a] >= min_size and size[b] >= min_size:
                continue
        else:
            strict[a] = -1
            strict[b] = -1
        left[count] = q
        count += 1
    labels, roots = _numbered(parent)
    pairs = np.empty((count, 2), np.int32)
    pair_weights = np.empty(count, np.float32)
    n = 0
    for z in range(count):
        e = names[left[z]]
        p = e >> 1
        a = labels[p]
        b = labels[p + (w if e & 1 else 1)]
        if a != b:
            pairs[n, 0] = a
            pairs[n, 1] = b
            pair_weights[n] = weights[left[z]]
            n += 1
    return labels, size[roots], inner[roots], pairs[:n].copy(), pair_weights[:n].copy()


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
    limit = np.empty(count, np.float32)
    for s in range(count):
        limit[s] = heaviest[s] + scale / np.float32(size[s])
    waiting = np.empty(pairs.shape[0], np.int32)
    n = 0
    for q in range(pairs.shape[0]):
        a = find(parent, pairs[q, 0])
        b = find(parent, pairs[q, 1])
        if a == b:
            continue
        weight = weights[q]
        if weight <= limit[a] and weight <= limit[b]:
            a = _joined(parent, size, a, b)
            limit[a] = weight + scale / np.float32(size[a])
        elif size[a] < min_size or size[b] < min_size:
            waiting[n] = q
            n += 1
    for z in range(n):
        a = find(parent, pairs[waiting[z], 0])
        b = find(parent, pairs[waiting[z], 1])
        if a != b and (size[a] < min_size or size[b] < min_size):
            _joined(parent, size, a, b)
    return _numbered(parent)[0]


@kernel
def atoms_of(labels: np.ndarray, finals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The common refinement of several segmentations: the atom of each pixel (N,) int32, and the segment of each atom
    in each of them (K, A) int32.

    labels (N,): common segment of each pixel; finals (K, S): its final segment under each k. Atoms are numbered by
    first pixels.
    """
    ks, segments = finals.shape
    # Segments with equal columns in ``finals`` are one atom: a chained hash table by the columns.
    buckets = 1
    while buckets < 2 * segments:
        buckets *= 2
    heads = np.full(buckets, -1, np.int32)
    following = np.empty(segments, np.int32)
    atom = np.empty(segments, np.int32)
    table = np.empty((ks, segments), np.int32)
    count = 0
    for s in range(segments):
        mixed = np.uint64(0)
        for k in range(ks):
            mixed = (mixed ^ np.uint64(finals[k, s])) * np.uint64(0x9E3779B97F4A7C15)
        bucket = np.int64((mixed >> np.uint64(32)) & np.uint64(buckets - 1))
        found = heads[bucket]
        while found >= 0:
            same = True
            for k in range(ks):
                same = same and table[k, found] == finals[k, s]
            if same:
                break
            found = following[found]
        if found < 0:
            found = count
            for k in range(ks):
                table[k, count] = finals[k, s]
            following[count] = heads[bucket]
            heads[bucket] = count
            count += 1
        atom[s] = found
    pixels = np.empty(labels.shape[0], np.int32)
    for p in range(labels.shape[0]):
        pixels[p] = atom[labels[p]]
    return pixels, table[:, :count].copy()
