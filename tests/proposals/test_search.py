"""Segmentation by hand and against scikit-image; selective search on drawn shapes."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.segmentation import felzenszwalb

from detkit import iou, selective_search
from detkit.geometry import Geometry
from detkit.metrics.proposals import best_overlaps
from detkit.proposals import graph_kernels, search
from detkit.proposals.search import SelectiveSearch, graph_segments
from detkit.structures import Batch

RNG = np.random.default_rng(0)
BLOCKS = np.kron(RNG.integers(0, 255, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
NOISY = np.clip(BLOCKS + RNG.normal(0, 12, BLOCKS.shape), 0, 255).astype(np.uint8)


def shapes() -> tuple[np.ndarray, np.ndarray]:
    """An image of filled boxes of different colours, and the boxes."""
    boxes = np.array([[20, 15, 80, 70], [100, 30, 180, 60], [30, 90, 60, 150], [110, 80, 190, 140]], np.float32)
    image = np.full((160, 200, 3), (40, 90, 60), np.uint8)
    for (x1, y1, x2, y2), colour in zip(
        boxes.astype(int), ((200, 30, 30), (20, 40, 220), (240, 240, 30)) * 2, strict=False
    ):
        image[y1:y2, x1:x2] = colour
    return image, boxes


# Segmentation


@pytest.mark.parametrize(
    ("row", "k", "min_size", "expected"),
    [
        # Edges 1, 1, 6, 1, 2 (a tie goes to the left). k = 4: pixels 0 1 join (limit 1 + 4/2 = 3), 2 joins (1 + 4/3),
        # 3 4 join (3), 5 joins by 2 <= 3 (limit 2 + 4/3 = 3.33); 6 exceeds both.
        ([10, 11, 12, 18, 19, 21], 4, 1, [0, 0, 0, 1, 1, 1]),
        # k = 2: 0 1 join (limit 2), 2 joins (1 + 2/3), 3 4 join (1 + 1 = 2), 5 joins by 2 <= 2; 6 exceeds all.
        ([10, 11, 12, 18, 19, 21], 2, 1, [0, 0, 0, 1, 1, 1]),
        # k = 1.9: 3 4 have the limit 1 + 1.9/2 = 1.95, so 5 stays alone.
        ([10, 11, 12, 18, 19, 21], 1.9, 1, [0, 0, 0, 1, 1, 2]),
        # Alone is too small: it goes along its lightest edge.
        ([10, 11, 12, 18, 19, 21], 1.9, 2, [0, 0, 0, 1, 1, 1]),
        # k < 1 joins nothing.
        ([10, 11, 12, 18, 19, 21], 0.5, 1, [0, 1, 2, 3, 4, 5]),
        ([10, 11, 12, 18, 19, 21], 0.5, 6, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_segments_by_hand(row: list[int], k: float, min_size: int, expected: list[int]) -> None:
    image = np.array([row], np.uint8)
    for picture in (image, image.T.copy()):
        assert graph_segments(picture, k, sigma=0, min_size=min_size).ravel().tolist() == expected


def test_a_full_segment_is_walked_around() -> None:
    # The upper row joins at 0; its limit is k / 3. Both lower ends join it or not by their own edges.
    image = np.array([[50, 50, 50], [60, 50, 62]], np.uint8)
    assert graph_segments(image, 12, sigma=0, min_size=1).tolist() == [[0, 0, 0], [1, 0, 2]]
    assert graph_segments(image, 50, sigma=0, min_size=1).tolist() == [[0, 0, 0], [0, 0, 0]]


def reference(image: np.ndarray, k: float, min_size: int) -> np.ndarray:
    """The paper's algorithm word by word, on the kernel's sorted edges."""
    h, w = image.shape[:2]
    names, weights = graph_kernels.sorted_edges(image.reshape(h, w, -1).astype(np.float32))
    label = np.arange(h * w)
    limit = dict.fromkeys(range(h * w), np.float32(k))
    edges = [(int(e) >> 1, (int(e) >> 1) + (w if e & 1 else 1), x) for e, x in zip(names, weights, strict=True)]
    for p, r, x in edges:
        a, b = label[p], label[r]
        if a != b and x <= limit[a] and x <= limit[b]:
            label[label == b] = a
            limit[a] = x + np.float32(k) / np.float32((label == a).sum())
    for p, r, _ in edges:
        a, b = label[p], label[r]
        if a != b and min((label == a).sum(), (label == b).sum()) < min_size:
            label[label == b] = a
    return label


def partition(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered by first appearance."""
    _, first, inverse = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


@pytest.mark.parametrize("seed", range(8))
def test_joins_shared_by_all_thresholds_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 60, (5, 6, 3)), np.ones((4, 4, 1)))
    image = (coarse + rng.integers(0, 25, coarse.shape)).astype(np.uint8)
    ks = (5, 20, 60, 200)
    atoms, finals = search._segments([image[..., c] for c in range(3)], ks, 0, 6)
    for k, final in zip(ks, finals, strict=True):
        assert np.array_equal(final[atoms], partition(reference(image, k, 6)))


@pytest.mark.parametrize("scale", [50, 300])
def test_segments_like_scikit_image(scale: int) -> None:
    # scikit-image joins diagonal neighbours too and smooths otherwise: alike, not equal, unless the image is clear.
    theirs = partition(felzenszwalb(BLOCKS, scale=scale, sigma=0, min_size=20))
    ours = graph_segments(BLOCKS, scale, sigma=0, min_size=20)
    assert np.array_equal(ours.ravel(), theirs)


def test_edges_are_sorted_and_complete() -> None:
    image = RNG.random((9, 7, 2)).astype(np.float32)
    names, weights = graph_kernels.sorted_edges(image)
    assert sorted(names) == sorted(
        [2 * (i * 7 + j) for i in range(9) for j in range(6)]
        + [2 * (i * 7 + j) + 1 for i in range(8) for j in range(7)]
    )
    assert (np.diff(weights) >= 0).all()
    pixels = image.reshape(-1, 2)
    exact = [np.linalg.norm(pixels[e >> 1] - pixels[(e >> 1) + (7 if e & 1 else 1)]) for e in names]
    np.testing.assert_allclose(weights, exact, rtol=1e-4)


# Proposals


@pytest.mark.parametrize("plan", ["fast", "quality"])
def test_drawn_shapes_are_all_found(plan: search.PlanName) -> None:
    image, boxes = shapes()
    found = selective_search(image, plan)
    assert best_overlaps(boxes, found).min() > 0.9
    assert found.dtype == np.float32
    assert best_overlaps(np.array([[0, 0, 200, 160]], np.float32), found)[0] == 1


@pytest.mark.parametrize("plan", ["fast", "quality"])
def test_proposals_lie_inside_once_each_in_whole_pixels(plan: search.PlanName) -> None:
    boxes = selective_search(NOISY, plan)
    assert len(boxes) > 50
    overlaps = iou(boxes, boxes)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() <= search.PLANS[plan].same
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= search.MIN_SIDE
    assert (boxes == boxes.round()).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (NOISY.shape[1], NOISY.shape[0])).all()


def test_the_same_boxes_again_and_with_threads() -> None:
    first = selective_search(NOISY, threads=1)
    for threads in (1, 2, 5, None):
        assert np.array_equal(first, selective_search(NOISY, threads=threads))
    assert np.array_equal(first[:10], selective_search(NOISY, max=10))
    other = selective_search(NOISY, seed=1)
    assert not np.array_equal(first, other)


def test_the_same_boxes_in_another_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(selective_search, (NOISY,)), selective_search(NOISY))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 2), (40, 50)])
@pytest.mark.parametrize("plan", ["fast", "quality"])
def test_one_colour_is_one_box(size: tuple[int, int], plan: search.PlanName) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    assert selective_search(image, plan).tolist() == [[0, 0, size[1], size[0]]]


@pytest.mark.parametrize(("side", "more"), [(1024, 0.05), (707, 0.05), (400, 0.15)])
def test_an_image_in_another_resolution_has_like_proposals(side: int, more: float) -> None:
    """From ``PIXELS`` on as many, below fewer, the large ones in like places: joining is sensitive to resampling."""
    photo = astronaut()
    copy = cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA if side < 512 else cv2.INTER_CUBIC)
    boxes, others = selective_search(photo), selective_search(copy) * (512 / side)
    assert len(others) == pytest.approx(len(boxes), rel=more)
    large = boxes[(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) > 0.04 * 512**2]
    assert best_overlaps(large, others).mean() > 0.84


@pytest.mark.parametrize("plan", ["fast", "quality"])
def test_the_search_does_not_grow_with_the_image(plan: search.PlanName) -> None:
    small = cv2.resize(astronaut(), (433, 433), interpolation=cv2.INTER_AREA)  # of PIXELS
    large = np.kron(small, np.ones((4, 4, 1), np.uint8))
    assert np.array_equal(selective_search(large, plan), 4 * selective_search(small, plan))


def test_small_boxes_give_way_to_like_ones_sooner() -> None:
    large = np.float32([[0, 0, 50, 100], [0, 0, 50, 90], [0, 0, 50, 99.5]])  # overlaps of 0.9 and 0.995 with the first
    small = np.float32([[60, 60, 80, 80], [60, 60, 80, 76], [60, 60, 80, 73]])  # of 0.8 and 0.65
    found = search._distinct(np.concatenate((large, small)), np.array([200, 200]), 0.96)
    assert found.tolist() == [*large[:2].tolist(), small[0].tolist(), small[2].tolist()]


def test_grey_images() -> None:
    grey = NOISY[..., 0]
    assert np.array_equal(selective_search(grey), selective_search(np.repeat(grey[..., None], 3, axis=2)))


def test_the_image_is_left_alone_and_may_be_a_view() -> None:
    image = NOISY.copy()
    mirrored = selective_search(image[:, ::-1])
    assert np.array_equal(image, NOISY)
    assert np.array_equal(mirrored, selective_search(np.ascontiguousarray(image[:, ::-1])))


@pytest.mark.parametrize(
    ("image", "arguments", "kind", "word"),
    [
        (NOISY / 255, {}, TypeError, "uint8"),
        ([[1]], {}, TypeError, "uint8"),
        (NOISY[..., :2], {}, ValueError, "shape"),
        (NOISY[:0], {}, ValueError, "pixel"),
        (NOISY, {"plan": "best"}, ValueError, "fast, quality"),
        (NOISY, {"max": -1}, ValueError, "max"),
        (NOISY, {"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_arguments(image: object, arguments: dict, kind: type[Exception], word: str) -> None:
    with pytest.raises(kind, match=word):
        selective_search(image, **arguments)  # type: ignore[arg-type]


# As a source


def test_source_caches_images_of_data_sets_only(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SelectiveSearch(folder=tmp_path, max=20)
    expected = selective_search(NOISY, max=20)
    assert np.array_equal(source.proposals_for_image(NOISY), expected)
    assert not list(tmp_path.rglob("*.npy"))
    assert np.array_equal(source.proposals_for_image(NOISY, "a.jpg"), expected)
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    monkeypatch.setattr(search, "selective_search", lambda *_, **__: pytest.fail("searched again"))
    assert np.array_equal(source.proposals_for_image(NOISY, "b.jpg"), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(source)).proposals_for_image(NOISY, "b.jpg"), expected)


@pytest.mark.parametrize("changed", ["MIN_SIDE", "MIN_SIZE", "PLANS"])
def test_boxes_of_other_numbers_are_searched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    SelectiveSearch(folder=tmp_path).proposals_for_image(NOISY, "a.jpg")
    other = {"MIN_SIDE": 20, "MIN_SIZE": 400, "PLANS": search.PLANS | {"fast": search.PLANS["quality"]}}[changed]
    monkeypatch.setattr(search, changed, other)
    found = SelectiveSearch(folder=tmp_path).proposals_for_image(NOISY, "a.jpg")
    assert np.array_equal(found, selective_search(NOISY))
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_a_source_says_once_that_it_cannot_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    source = SelectiveSearch(folder=tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="nothing is cached"):
        first = source.proposals_for_image(NOISY, "a.jpg")
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(source.proposals_for_image(NOISY, "b.jpg"), first)


def test_source_hands_on_what_the_batch_brought() -> None:
    batch = Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([[4, 4]]), (Geometry(4, 4),))
    with pytest.raises(ValueError, match="proposals_for_image"):
        SelectiveSearch().propose(batch, [], True)
    with pytest.raises(ValueError, match="max"):
        SelectiveSearch(max=-1)
