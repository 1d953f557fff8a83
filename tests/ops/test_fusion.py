"""Weighted boxes fusion against its paper's formula, worked by hand, and a plain implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detkit.ops import iou, weighted_boxes_fusion

A = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
B = np.array([[1, 1, 11, 11]], np.float32)


def test_by_hand() -> None:
    boxes, scores, labels = weighted_boxes_fusion(
        [A, B], [np.array([0.9, 0.4], np.float32), np.array([0.6], np.float32)], [np.array([0, 1]), np.array([0])]
    )
    np.testing.assert_allclose(
        boxes, [[0.4, 0.4, 10.4, 10.4], [50, 50, 60, 60]], rtol=1e-6
    )  # (0.9 * 0 + 0.6 * 1) / 1.5
    np.testing.assert_allclose(scores, [0.75, 0.2], rtol=1e-6)  # mean of two; one of two models saw the other
    np.testing.assert_array_equal(labels, [0, 1])
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


def test_weights_by_hand() -> None:
    boxes, scores, _ = weighted_boxes_fusion([A[:1], B], [[0.9], [0.6]], [[0], [0]], weights=[1, 3])
    np.testing.assert_allclose(boxes, [[1.8 / 2.7, 1.8 / 2.7, 10 + 1.8 / 2.7, 10 + 1.8 / 2.7]], rtol=1e-6)
    np.testing.assert_allclose(scores, [(0.9 + 1.8) / 2 * 2 / 4])
    alone, _, _ = weighted_boxes_fusion([A[:1], B], [[0.9], [0.6]], [[0], [0]], weights=[1, 0])
    np.testing.assert_array_equal(alone, A[:1])


def plain_fusion(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, models: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    clusters: list[list[int]] = []
    fused: list[np.ndarray] = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = [
            iou(boxes[i : i + 1], box[None]).item() if labels[members[0]] == labels[i] else -1
            for box, members in zip(fused, clusters, strict=True)
        ]
        if overlaps and max(overlaps) > threshold:
            best = int(np.argmax(overlaps))
            clusters[best].append(i)
        else:
            best = len(clusters)
            clusters.append([i])
            fused.append(boxes[i])
        fused[best] = np.average(boxes[clusters[best]], axis=0, weights=scores[clusters[best]])
    means = np.array([scores[m].mean() * min(len(m), models) / models for m in clusters])
    order = np.argsort(-means, kind="stable")
    return np.array(fused)[order], means[order], np.array([labels[m[0]] for m in clusters])[order]


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 200, (12, 2))
    lists: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(3):
        corner = truth + rng.normal(0, 3, truth.shape)
        boxes = np.concatenate([corner, corner + 30 + rng.normal(0, 3, truth.shape)], 1)
        lists.append((boxes, rng.uniform(0.1, 1, 12), rng.integers(0, 2, 12) * 7 - 3))
    fused = weighted_boxes_fusion(*zip(*lists, strict=True), threshold=0.5)
    expected = plain_fusion(*(np.concatenate(column) for column in zip(*lists, strict=True)), 3, 0.5)
    for ours, plain in zip(fused, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9)


def test_left_out_rows_and_empty_models() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, np.nan, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], np.float32
    )
    scores = np.array([0.9, 0.8, np.nan, 0.05, 0], np.float32)
    kept, values, _ = weighted_boxes_fusion(
        [boxes, np.zeros((0, 4), np.float32)], [scores, np.zeros(0, np.float32)], [np.zeros(5, int), []], min_score=0.1
    )
    np.testing.assert_array_equal(kept, boxes[:1])
    np.testing.assert_allclose(values, [0.45], rtol=1e-6)
    none, no_scores, no_labels = weighted_boxes_fusion([np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, int)])
    assert none.shape == (0, 4)
    assert no_scores.shape == no_labels.shape == (0,)


def test_boxes_without_area_and_inverted_ones_are_left_out_and_counted() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 9], [8, 8, 3, 12]], np.float32)
    with pytest.warns(UserWarning, match="left out 2 boxes that are inverted or have no area"):
        kept, scores, _ = weighted_boxes_fusion([boxes], [[0.5, 0.9, 0.8]], [[0, 0, 0]])
    assert kept.tolist() == [[0, 0, 10, 10]]
    assert scores.tolist() == [0.5]


def test_tensors_give_tensors_and_nothing_is_changed() -> None:
    boxes, scores, labels = torch.from_numpy(A.copy()), torch.tensor([0.9, 0.4]).half(), torch.tensor([0, 1])
    fused = weighted_boxes_fusion([boxes, boxes], [scores, scores], [labels, labels])
    assert all(isinstance(part, torch.Tensor) for part in fused)
    torch.testing.assert_close(fused[0], boxes)
    torch.testing.assert_close(fused[1], scores.float())
    np.testing.assert_array_equal(boxes.numpy(), A)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([], [], []), {}, ValueError, "at least one"),
        (([A], [[0.5, 0.5]], []), {}, ValueError, "one entry per model"),
        (([A], [[0.5]], [[0, 0]]), {}, ValueError, "one per box"),
        (([A], [[0.5, 0.5]], [[0.5, 0.5]]), {}, TypeError, "integers"),
        (([A], [[0.5, 0.5]], [[0, 0]]), {"weights": [0]}, ValueError, "weights"),
        (([A], [[0.5, 0.5]], [[0, 0]]), {"weights": [1, 1]}, ValueError, "weights"),
        (([A], [[0.5, 0.5]], [[0, 0]]), {"threshold": 2}, ValueError, "between 0 and 1"),
        (([A, torch.zeros(1, 4)], [[0.5, 0.5], [0.5]], [[0, 0], [0]]), {}, TypeError, "mixed"),
    ],
)
def test_errors(arguments: tuple, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        weighted_boxes_fusion(*arguments, **options)
