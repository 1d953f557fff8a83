"""Anchor k-means, average IoU and slot collisions against hand-worked numbers and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from detkit.ops import average_iou, iou, kmeans_anchors, slot_collisions

SIZES = np.exp(np.random.default_rng(0).normal([3, 4], [0.7, 0.5], (3000, 2)))


def brute_average(wh: np.ndarray, anchors: np.ndarray) -> float:
    return float(iou(np.pad(wh, ((0, 0), (2, 0))), np.pad(anchors, ((0, 0), (2, 0)))).max(1).mean())


def test_average_iou_by_hand() -> None:
    assert average_iou(np.array([[10, 10], [20, 10]]), np.array([[10, 10]])) == pytest.approx(0.75)
    assert average_iou(np.array([[10, 10], [20, 10]]), np.array([[10, 10], [20, 10]])) == 1
    assert np.isnan(average_iou(np.zeros((0, 2)), np.array([[1, 1]])))
    assert average_iou(SIZES, SIZES[:9]) == pytest.approx(brute_average(SIZES, SIZES[:9]), abs=1e-6)


def test_separate_groups_are_found() -> None:
    groups = np.array([[10, 10], [40, 20], [20, 60], [100, 100.0]])
    rng = np.random.default_rng(1)
    wh = np.concatenate([group * rng.uniform(0.97, 1.03, (200, 2)) for group in groups])
    for options in ({}, {"update": "mean"}, {"distance": "euclidean"}, {"distance": "euclidean", "update": "mean"}):
        anchors = kmeans_anchors(wh, 4, **options)  # type: ignore[arg-type]
        assert anchors.dtype == np.float64
        np.testing.assert_allclose(anchors, groups, rtol=0.02)


def test_one_anchor_is_the_median_or_the_mean() -> None:
    np.testing.assert_allclose(kmeans_anchors(SIZES[:1000], 1, iterations=2, distance="euclidean", update="mean"),
                               [SIZES[:1000].mean(0)], rtol=1e-5)  # fmt: skip
    wh = np.array([[1, 5], [2, 6], [3, 7], [40, 8.0]])
    anchors = kmeans_anchors(wh, 1)
    assert average_iou(wh, anchors) >= average_iou(wh, np.array([[2.5, 6.5]])) - 1e-6


@pytest.mark.parametrize("options", [{}, {"update": "mean"}, {"distance": "euclidean", "update": "mean"}])
def test_same_seed_same_anchors_sorted_by_area(options: dict) -> None:
    before = SIZES.copy()
    anchors = kmeans_anchors(SIZES, 7, seed=3, **options)
    np.testing.assert_array_equal(anchors, kmeans_anchors(SIZES, 7, seed=3, **options))
    assert (np.diff(anchors.prod(1)) >= 0).all()
    assert anchors.shape == (7, 2)
    np.testing.assert_array_equal(SIZES, before)


def test_more_anchors_fit_better_and_the_iou_distance_fits_best() -> None:
    fits = [average_iou(SIZES, kmeans_anchors(SIZES, k)) for k in range(1, 10)]
    assert all(b > a for a, b in itertools.pairwise(fits))
    assert fits[8] > average_iou(SIZES, kmeans_anchors(SIZES, 9, distance="euclidean", update="mean"))


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("count", [300, len(SIZES)])
def test_steps_for_the_iou_itself_beat_the_medians(k: int, count: int) -> None:
    wh = SIZES[:count]
    fit = average_iou(wh, kmeans_anchors(wh, k))
    assert fit > max(average_iou(wh, kmeans_anchors(wh, k, update=update)) for update in ("median", "mean"))


def test_the_unit_does_not_matter() -> None:
    np.testing.assert_allclose(kmeans_anchors(SIZES / 1024, 5) * 1024, kmeans_anchors(SIZES, 5), rtol=1e-6)


def test_few_distinct_sizes() -> None:
    wh = np.tile(np.array([[20, 10], [5, 5], [10, 30.0]]), (400, 1))
    np.testing.assert_array_equal(kmeans_anchors(wh, 3), [[5, 5], [20, 10], [10, 30]])
    with pytest.raises(ValueError, match="4 anchors need 4 different box sizes, there are 3"):
        kmeans_anchors(wh, 4)
    with pytest.raises(ValueError, match="there are 0"):
        kmeans_anchors(np.zeros((0, 2)), 1)
    two = kmeans_anchors(wh, 2)
    assert average_iou(wh, two) == pytest.approx(brute_average(wh, two), abs=1e-6)
    skewed = np.concatenate([np.full((500, 2), 7.0), [[1, 2], [3, 4], [5, 6]]])
    np.testing.assert_array_equal(kmeans_anchors(skewed, 4), [[1, 2], [3, 4], [5, 6], [7, 7]])
    for k in (2, 3):
        assert np.isfinite(kmeans_anchors(skewed, k)).all()


def test_tensors_give_tensors() -> None:
    anchors = kmeans_anchors(torch.from_numpy(SIZES), 5)
    assert anchors.dtype == torch.float64
    np.testing.assert_array_equal(anchors.numpy(), kmeans_anchors(SIZES, 5))
    assert average_iou(torch.from_numpy(SIZES), anchors) == average_iou(SIZES, anchors.numpy())


def test_slot_collisions_by_hand() -> None:
    anchors = np.array([[0.2, 0.1], [0.1, 0.2]])
    images = np.array([0, 0, 0, 1, 0])
    centres = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.1, 0.1], [0.9, 1.0]])
    wide, tall = [0.21, 0.1], [0.1, 0.21]
    wh = np.array([wide, tall, wide, wide, wide])
    # 3 x 3: the third falls on the first's slot; other anchor, other image and other cell do not collide.
    assert slot_collisions(images, centres, wh, 3, anchors) == pytest.approx(1 / 5)
    assert slot_collisions(images, centres, wh, (3, 4), anchors) == 0
    assert slot_collisions(images, centres, wh, 1, anchors[:1]) == pytest.approx(3 / 5)
    assert slot_collisions(*(torch.from_numpy(a) for a in (images, centres, wh)), 3, torch.from_numpy(anchors)) == 0.2
    assert slot_collisions(images[:0], centres[:0], wh[:0], 3, anchors) == 0


@pytest.mark.parametrize(
    ("wh", "k", "options", "error", "text"),
    [
        (SIZES, 0, {}, ValueError, "at least 1"),
        (SIZES, 2, {"distance": "l1"}, ValueError, "distance"),
        (SIZES, 2, {"update": "mode"}, ValueError, "update"),
        (np.array([[1, 2], [0, 3], [np.nan, 1]]), 1, {}, ValueError, "2 of 3 rows"),
        (np.ones((3, 4)), 1, {}, ValueError, r"\(N, 2\)"),
        (np.ones((3, 2), bool), 1, {}, TypeError, "real numbers"),
    ],
)
def test_errors(wh: np.ndarray, k: int, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kmeans_anchors(wh, k, **options)


def test_slot_collision_errors() -> None:
    with pytest.raises(ValueError, match="centres"):
        slot_collisions([0], np.zeros((2, 2)), np.ones((1, 2)), 3, np.ones((1, 2)))
    with pytest.raises(ValueError, match="at least one cell"):
        slot_collisions([0], np.zeros((1, 2)), np.ones((1, 2)), 0, np.ones((1, 2)))
    with pytest.raises(ValueError, match="one anchor"):
        average_iou(np.ones((1, 2)), np.zeros((0, 2)))
