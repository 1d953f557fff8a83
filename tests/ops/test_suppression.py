"""NMS against hand-worked cases, torchvision and properties; soft-NMS against its plain definition."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from detkit.ops import batched_nms, iou, nms, soft_nms
from detkit.ops.suppression import _torch_nms

THRESHOLDS = [0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 0.7, 0.9, 0.99, 1]


def random_case(seed: int, n: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores, labels; by seed with rounded boxes (duplicates, no area, exact IoU), tied scores, float64."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 700)) if n is None else n
    centres, sizes = rng.uniform(0, 100, (n, 2)), np.exp(rng.normal(2.5, 1, (n, 2)))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    scores = rng.random(n)
    if seed % 3 == 0:
        boxes = boxes.round()
    if seed % 2:
        scores = (scores * 8).round() / 8 - 0.5
    dtype = np.float64 if seed % 5 == 0 else np.float32
    return boxes.astype(dtype), scores.astype(dtype), rng.integers(-3, 5, n)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("seed", range(200))
def test_same_indices_in_the_same_order_as_torchvision(seed: int) -> None:
    boxes, scores, labels = random_case(seed)
    threshold = THRESHOLDS[seed % len(THRESHOLDS)]
    expected = torchvision.ops.nms(*tensors(boxes, scores), threshold).numpy()
    kept = nms(boxes, scores, threshold)
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(nms(*tensors(boxes, scores), threshold).numpy(), expected)
    per_class = {
        int(i)
        for label in np.unique(labels)
        for i in np.flatnonzero(labels == label)[
            torchvision.ops.nms(*tensors(boxes[labels == label], scores[labels == label]), threshold).numpy()
        ]
    }
    kept = batched_nms(boxes, scores, labels, threshold)
    assert set(kept.tolist()) == per_class
    order = np.lexsort((kept, -scores[kept]))
    np.testing.assert_array_equal(order, np.arange(len(kept)))


@pytest.mark.parametrize("spread", ["thin", "far", "mixed sizes", "tiny"])
def test_unusual_geometry_equals_torchvision(spread: str) -> None:
    rng = np.random.default_rng(3)
    centres, sizes = rng.uniform(0, 200, (900, 2)), np.exp(rng.normal(2, 1, (900, 2)))
    if spread == "thin":
        sizes *= [300, 0.01]
    elif spread == "far":
        centres = centres * 20 + 1e7
        sizes *= 20
    elif spread == "mixed sizes":
        sizes = np.exp(rng.normal(2, 4, (900, 2)))
    else:
        centres, sizes = centres * 1e-20, sizes * 1e-20
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32)
    scores = rng.random(900).astype(np.float32)
    for threshold in (0.2, 0.5, 0.8, 0.999):
        expected = torchvision.ops.nms(*tensors(boxes, scores), threshold).numpy()
        np.testing.assert_array_equal(nms(boxes, scores, threshold), expected)


def test_infinite_and_inverted_boxes_equal_torchvision() -> None:
    boxes, scores, _ = random_case(4, 400)
    boxes[::7] = boxes[::7, [2, 3, 0, 1]]
    boxes[::11, 2] = np.inf
    boxes[5] = [-np.inf, -np.inf, np.inf, np.inf]
    boxes[6] = [-1e30, -1e30, 1e30, 1e30]
    boxes[9] = [1e30, 1e30, 1.5e30, 1.5e30]
    boxes[12] = [1e30, 1e30, 1.5e30, 1.6e30]
    for threshold in (0.1, 0.5):
        expected = torchvision.ops.nms(*tensors(boxes, scores), threshold).numpy()
        np.testing.assert_array_equal(nms(boxes, scores, threshold), expected)


def test_worked_example_equal_to_the_threshold_stays() -> None:
    """IoU of the first two is exactly 0.5: libraries keep it (> drops); the textbook's >= would drop it."""
    boxes = np.array([[0, 0, 10, 20], [0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.61], np.float32)
    assert iou(boxes[:1], boxes[1:2]).item() == 0.5
    np.testing.assert_array_equal(nms(boxes, scores, 0.5), [0, 1, 3])
    np.testing.assert_array_equal(nms(boxes, scores, 0.499), [0, 3])
    np.testing.assert_array_equal(torchvision.ops.nms(*tensors(boxes, scores), 0.5), [0, 1, 3])


def test_worked_example_discard_then_suppress_by_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.9, 0.61, 0.8, 0.6], np.float32)
    labels = np.array([0, 0, 1, 1])
    candidates = np.flatnonzero(scores > np.float32(0.6))
    np.testing.assert_array_equal(candidates, [0, 1, 2])  # a score of 0.6 goes, 0.61 stays
    kept = candidates[batched_nms(boxes[candidates], scores[candidates], labels[candidates], 0.5)]
    np.testing.assert_array_equal(kept, [0, 2])  # classes never suppress each other
    np.testing.assert_array_equal(nms(boxes, scores, 0.5), [0])


def test_ties_go_to_the_lower_index_and_zero_has_no_sign() -> None:
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (4, 1))
    np.testing.assert_array_equal(nms(boxes, np.full(4, 0.5, np.float32), 0.5), [0])
    apart = boxes + np.arange(4, dtype=np.float32)[:, None] * 100
    np.testing.assert_array_equal(nms(apart, np.array([-0.0, 0.0, -0.0, 0.0], np.float32), 0.5), [0, 1, 2, 3])


def test_nan_is_never_kept_and_suppresses_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, np.nan, 10, 10], [0, 0, 10, 10], [30, 30, 30, 40]], np.float32)
    scores = np.array([np.nan, 0.9, 0.8, 0.7], np.float32)
    labels = np.zeros(4, np.int64)
    np.testing.assert_array_equal(nms(boxes, scores, 0.5), [2, 3])
    np.testing.assert_array_equal(batched_nms(boxes, scores, labels, 0.5), [2, 3])
    np.testing.assert_array_equal(soft_nms(boxes, scores)[0], [2, 3])
    b, s, c = tensors(boxes, scores, labels)
    assert _torch_nms(b, s, None, 0.5).tolist() == [2, 3]
    assert _torch_nms(b, s, c, 0.5).tolist() == [2, 3]


@pytest.mark.parametrize("labels", [[7, -(2**40), 2**50], [10**6, 10**6 + 1, 10**6]])
def test_labels_may_be_any_integers(labels: list[int]) -> None:
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
    kept = batched_nms(boxes, np.array([0.1, 0.3, 0.2]), np.array(labels), 0.5)
    np.testing.assert_array_equal(kept, [1, 2, 0] if len(set(labels)) == 3 else [1, 2])


cases = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 4), elements=st.integers(0, 15)),
        hnp.arrays(np.float32, n, elements=st.sampled_from([0, 0.25, 0.5, 0.75, 1])),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
        st.sampled_from([0, 0.3, 0.5, 0.8]),
    )
)


@given(cases)
@settings(max_examples=80)
def test_nms_properties(case: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> None:
    boxes, scores, labels, threshold = case
    copies = boxes.copy(), scores.copy(), labels.copy()
    kept = nms(boxes, scores, threshold)
    again = nms(boxes[kept], scores[kept], threshold)
    np.testing.assert_array_equal(again, np.arange(len(kept)))  # idempotent
    overlaps = iou(boxes[kept], boxes[kept])
    assert (overlaps[np.triu_indices(len(kept), 1)] <= threshold).all()
    dropped = np.setdiff1d(np.arange(len(boxes)), kept)
    if len(dropped):  # each dropped box has a kept one, at least as good, that covers it
        better = scores[kept][None] >= scores[dropped][:, None]
        assert ((iou(boxes[dropped], boxes[kept]) > threshold) & better).any(1).all()
    np.testing.assert_array_equal(batched_nms(boxes, scores, np.zeros_like(labels), threshold), kept)
    np.testing.assert_array_equal(
        np.sort(batched_nms(boxes, scores, labels, threshold)),
        np.sort(np.concatenate([*(np.flatnonzero(labels == c)[nms(boxes[labels == c], scores[labels == c], threshold)]
                                  for c in range(4))])),
    )  # fmt: skip
    for array, copy in zip((boxes, scores, labels), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def plain_soft_nms(
    boxes: np.ndarray, scores: np.ndarray, sigma: float, method: str, threshold: float, least: float
) -> tuple[list[int], list[float]]:
    left, remaining = scores.astype(np.float64), list(range(len(boxes)))
    kept: list[int] = []
    while remaining:
        best = max(remaining, key=lambda i: (left[i], -i))
        if left[best] < least:
            break
        kept.append(best)
        remaining.remove(best)
        for i in remaining:
            overlap = iou(boxes[best : best + 1], boxes[i : i + 1]).item()
            if method == "gaussian":
                left[i] *= math.exp(-overlap * overlap / sigma)
            elif overlap > threshold:
                left[i] *= 1 - overlap
    return kept, [float(left[i]) for i in kept]


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("seed", [0, 5, 10, 15])
def test_soft_nms_is_its_definition(seed: int, method: str) -> None:
    boxes, scores, _ = random_case(seed, 60)
    scores = np.abs(scores)
    kept, lowered = soft_nms(boxes, scores, method=method, sigma=0.4, threshold=0.3, min_score=0.05)
    expected, values = plain_soft_nms(boxes, scores, 0.4, method, 0.3, 0.05)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(lowered, values, rtol=1e-6)
    tensor_kept, tensor_lowered = soft_nms(
        *tensors(boxes, scores), method=method, sigma=0.4, threshold=0.3, min_score=0.05
    )
    np.testing.assert_array_equal(tensor_kept.numpy(), kept)
    np.testing.assert_array_equal(tensor_lowered.numpy(), lowered)


def test_soft_nms_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]], np.float32)
    kept, lowered = soft_nms(boxes, np.array([0.9, 0.8, 0.7], np.float32))
    np.testing.assert_array_equal(kept, [0, 2, 1])
    np.testing.assert_allclose(lowered, [0.9, 0.7, 0.8 * math.exp(-0.5)], rtol=1e-6)
    _, linear = soft_nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), method="linear", threshold=0.4)
    np.testing.assert_allclose(linear, [0.9, 0.7, 0.4], rtol=1e-6)
    _, untouched = soft_nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), method="linear", threshold=0.5)
    np.testing.assert_allclose(untouched, [0.9, 0.8, 0.7], rtol=1e-6)


def test_empty_input() -> None:
    none, scores, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    for kept in (nms(none, scores, 0.5), batched_nms(none, scores, labels, 0.5), soft_nms(none, scores)[0]):
        assert kept.shape == (0,)
        assert kept.dtype == np.int64
    assert nms([], [], 0.5).shape == (0,)
    assert batched_nms(*tensors(none, scores, labels), 0.5).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_half_precision_and_integers(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 100, 100], [0, 0, 100, 90], [200, 0, 300, 100]]).to(dtype)
    assert nms(boxes, torch.tensor([0.5, 0.75, 0.25]).half(), 0.5).tolist() == [1, 2]


def test_gradients_and_tracing_do_not_stop_it() -> None:
    boxes, scores, labels = tensors(*random_case(7, 50))
    expected = nms(boxes, scores, 0.5)
    assert torch.equal(nms(boxes.requires_grad_(), scores.clone().requires_grad_(), 0.5), expected)
    assert torch.equal(_torch_nms(boxes.detach(), scores, None, 0.5), expected)
    per_class = batched_nms(boxes, scores, labels, 0.5)
    assert set(_torch_nms(boxes.detach(), scores, labels, 0.5).tolist()) == set(per_class.tolist())


BOXES, SCORES = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((BOXES, SCORES, 1.5), ValueError, "between 0 and 1"),
        ((BOXES, SCORES, -0.1), ValueError, "between 0 and 1"),
        ((BOXES, SCORES, float("nan")), ValueError, "between 0 and 1"),
        ((BOXES, SCORES[:1], 0.5), ValueError, "one per box"),
        ((BOXES[:, :3], SCORES, 0.5), ValueError, r"\(N, 4\)"),
        ((BOXES.astype(bool), SCORES, 0.5), TypeError, "real numbers"),
        ((BOXES, torch.zeros(2), 0.5), TypeError, "mixed"),
    ],
)
def test_nms_errors(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        nms(*arguments)


def test_other_errors() -> None:
    with pytest.raises(TypeError, match="integers"):
        batched_nms(BOXES, SCORES, SCORES, 0.5)
    with pytest.raises(ValueError, match="one per box"):
        batched_nms(BOXES, SCORES, np.zeros(3, int), 0.5)
    with pytest.raises(ValueError, match="gaussian or linear"):
        soft_nms(BOXES, SCORES, method="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma"):
        soft_nms(BOXES, SCORES, sigma=0)


def test_four_threads_at_once() -> None:
    boxes, scores, labels = random_case(2, 600)
    expected = nms(boxes, scores, 0.5), batched_nms(boxes, scores, labels, 0.5)
    same: list[bool] = []

    def work() -> None:
        for _ in range(10):
            same.append(np.array_equal(nms(boxes, scores, 0.5), expected[0]))
            same.append(np.array_equal(batched_nms(boxes, scores, labels, 0.5), expected[1]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 80


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_stay_on_the_device() -> None:
    boxes, scores, labels = random_case(1, 300)
    device = [tensor.cuda() for tensor in tensors(boxes, scores, labels)]
    kept = nms(*device[:2], 0.5)
    assert kept.is_cuda
    np.testing.assert_array_equal(kept.cpu().numpy(), nms(boxes, scores, 0.5))
    assert set(batched_nms(*device, 0.5).tolist()) == set(batched_nms(boxes, scores, labels, 0.5).tolist())
    assert iou(device[0], device[0]).is_cuda
    assert soft_nms(device[0], device[1].abs())[1].is_cuda


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), torch.zeros(0, 4), []])
def test_of_nothing_scores_and_labels_may_be_none(boxes: Any) -> None:
    for kept in (nms(boxes, None, 0.5), batched_nms(boxes, None, None, 0.5), soft_nms(boxes, None)[0]):
        assert len(kept) == 0
        assert isinstance(kept, torch.Tensor) == isinstance(boxes, torch.Tensor)
    with pytest.raises(TypeError):
        batched_nms(np.ones((1, 4)), None, None, 0.5)


def test_quantised_boxes_and_scores_are_the_numbers_that_they_stand_for() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.5, 0.75, 0.25])
    packed = (
        torch.quantize_per_tensor(boxes, 1.0, 0, torch.quint8),
        torch.quantize_per_tensor(scores, 0.25, 0, torch.qint8),
    )
    assert nms(*packed, 0.5).tolist() == nms(boxes, scores, 0.5).tolist() == [1, 2]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_the_threshold_has_torchvisions_name_too(kind: Callable[..., Any]) -> None:
    boxes, scores, labels = kind([[0.0, 0, 4, 4], [0, 0, 4, 3]]), kind([0.9, 0.8]), kind([0, 0])
    assert nms(boxes, scores, iou_threshold=0.7).tolist() == nms(boxes, scores, threshold=0.7).tolist() == [0]
    assert batched_nms(boxes, scores, labels, iou_threshold=0.8).tolist() == [0, 1]
    with pytest.raises(TypeError, match="iou_threshold"):
        nms(boxes, scores)
    with pytest.raises(TypeError, match="iou_threshold"):
        batched_nms(boxes, scores, labels, 0.5, iou_threshold=0.5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_few_boxes_need_no_numba_and_are_the_same(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for count in (0, 1, 2, 40, 200):
        corners = rng.integers(0, 12, (count, 2)).astype(kind)  # so coarse that IoUs meet the threshold, and scores tie
        boxes = np.concatenate([corners, corners + rng.integers(-1, 9, (count, 2))], 1).astype(kind)
        scores, labels = (rng.integers(0, 8, count) / 8).astype(kind), rng.integers(-2, 3, count)
        boxes[rng.random(count) < 0.05] = np.nan
        scores[rng.random(count) < 0.05] = np.nan
        boxes[rng.random(count) < 0.05, 2:] = np.inf
        cases += [(boxes, scores, labels, threshold) for threshold in (0.0, 0.25, 0.5, 1.0)]
    compiled = [(batched_nms(*case), nms(*case[:2], case[3])) for case in cases]
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.setitem(sys.modules, "detkit.ops.nms_kernels", None)  # importing it is an error
    for case, (by_class, together) in zip(cases, compiled, strict=True):
        np.testing.assert_array_equal(batched_nms(*case), by_class)
        np.testing.assert_array_equal(nms(*case[:2], case[3]), together)
