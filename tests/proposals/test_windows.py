"""Sliding windows against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detkit import sliding_windows
from detkit.geometry import Geometry
from detkit.proposals.windows import Windows
from detkit.structures import Batch


def test_places_by_hand() -> None:
    boxes = sliding_windows((16, 20), windows=[8], aspects=[1], stride=0.5)
    # floor((20 - 8) / 4) + 1 = 4 columns, floor((16 - 8) / 4) + 1 = 3 rows
    assert boxes.shape == (12, 4)
    assert boxes.dtype == np.float32
    assert boxes[:5].tolist() == [[0, 0, 8, 8], [4, 0, 12, 8], [8, 0, 16, 8], [12, 0, 20, 8], [0, 4, 8, 12]]


def test_aspects_keep_the_area() -> None:
    wide, tall = (sliding_windows((64, 64), windows=[16], aspects=[a], stride=1) for a in (4, 0.25))
    assert wide[0].tolist() == [0, 0, 32, 8]
    assert tall[0].tolist() == [0, 0, 8, 32]
    assert len(wide) == len(tall) == 2 * 8


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_a_image_smaller_than_a_window_has_none(size: tuple[int, int]) -> None:
    assert sliding_windows(size, windows=[8], aspects=[1]).shape == (0, 4)


def test_windows_lie_inside() -> None:
    boxes = sliding_windows((101, 203))
    assert len(boxes)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= (203, 101)).all()


@pytest.mark.parametrize(
    ("size", "arguments", "word"),
    [
        ((0, 5), {}, "size"),
        ((5,), {}, "size"),
        ((9, 9), {"windows": []}, "windows"),
        ((9, 9), {"windows": [-1]}, "windows"),
        ((9, 9), {"aspects": [float("nan")]}, "aspects"),
        ((9, 9), {"stride": 0}, "stride"),
        ((9, 9), {"stride": 1.5}, "stride"),
    ],
)
def test_bad_arguments(size: tuple[int, ...], arguments: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        sliding_windows(size, **arguments)


def test_as_a_source_each_image_gets_those_of_its_own_size() -> None:
    sizes = torch.tensor([[16, 20], [4, 4], [16, 20]])
    batch = Batch(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), sizes, (Geometry(1, 1),) * 3)
    source = Windows(windows=(8,), aspects=(1,), stride=0.5)
    boxes, raw = source.propose(batch, [], True)
    assert [len(b) for b in boxes] == [12, 0, 12]
    assert raw is None
    assert source.loss(None, [], sizes) == {}


def test_max_is_an_even_choice() -> None:
    some = Windows(windows=(8,), aspects=(1,), stride=0.5, max=4).of_size(16, 20)
    assert some.tolist() == sliding_windows((16, 20), windows=[8], aspects=[1], stride=0.5)[::3].tolist()
    with pytest.raises(ValueError, match="max"):
        Windows(max=-1)
