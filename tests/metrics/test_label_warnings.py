"""Detections whose classes seem to be those of another list."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from detkit.metrics.confusion import swapped_classes
from detkit.tables import GroundTruth, Results


@pytest.mark.parametrize(
    ("taken_for", "found"),
    [
        ([0, 1, 2, 3, 4], False),
        ([0, 2, 3, 4, 1], True),  # most of them
        ([1, 2, 3, 4, 0], True),
        ([0, 1, 2, 4, 3], False),  # two that look alike
        ([0, 0, 0, 0, 0], False),  # a model that knows one class
    ],
)
def test_classes_of_another_list(
    ground_truth: Callable[..., GroundTruth],
    results: Callable[..., Results],
    taken_for: list[int],
    found: bool,
) -> None:
    boxes = [[60.0 * k, 0, 50, 50] for k in range(5)] * 6
    image, label = np.repeat(np.arange(6), 5).tolist(), list(range(5)) * 6
    gt = ground_truth(boxes, image=image, label=label, images=6, classes=tuple("abcde"))
    dt = results(boxes, [0.9] * 30, image=image, label=[taken_for[k] for k in label])
    notes = swapped_classes(gt, dt)
    assert bool(notes) is found
    if found:
        first = next(k for k in range(5) if taken_for[k] != k)
        assert f"{'abcde'[first]} by {'abcde'[taken_for[first]]}" in notes[0]


def test_without_classes_or_detections(
    ground_truth: Callable[..., GroundTruth], results: Callable[..., Results]
) -> None:
    assert swapped_classes(ground_truth([], classes=()), results([], [])) == []
    assert swapped_classes(ground_truth([[0, 0, 9, 9]], classes=("a", "b")), results([], [])) == []
