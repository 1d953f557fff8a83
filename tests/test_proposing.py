"""detkit.propose and detkit.proposal_recall: what they return, and options that a method does not look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import detkit
from detkit.data.toy import toy_sample, write_toy_data


def test_a_path_and_its_pixels_give_the_same_boxes(tmp_path: Path) -> None:
    image = toy_sample(3, 96).image
    cv2.imwrite(str(tmp_path / "one.png"), image[..., ::-1])
    found = detkit.propose(tmp_path / "one.png", max=20, seed=1)
    assert found.dtype == np.float32
    assert found.shape == (20, 4)
    np.testing.assert_array_equal(found, detkit.selective_search(image, max=20, seed=1))


def test_windows_are_those_of_sliding_windows_in_another_order() -> None:
    found = detkit.propose(np.zeros((64, 80, 3), np.uint8), "sliding-window", windows=(32,), max=0)
    same = detkit.sliding_windows((64, 80), windows=(32,))
    assert {tuple(box) for box in found.tolist()} == {tuple(box) for box in same.tolist()}
    assert (found != same).any()


def test_recall_of_a_data_set(tmp_path: Path) -> None:
    data = write_toy_data(tmp_path / "toy", train=2, val=1, size=96)
    done = []
    result = detkit.proposal_recall(data, split="train", cache=tmp_path, on_progress=lambda *at: done.append(at))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert result.images == 2
    assert result.to_dict()["recall"] == result.rows
    assert len(result.lines()) == 2 + len(result.rows)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("selective_search", {}, "did you mean selective-search"),
        ("rpn", {"seed": 1}, "rpn does not look at --seed"),
        ("sliding-window", {"stride": 2.0}, "stride must lie above 0"),
        ("selective-search", {"plan": "fist"}, "did you mean fast"),
    ],
)
def test_mistakes(method: str, options: dict[str, float], reason: str) -> None:
    with pytest.raises(detkit.DetkitError, match=reason):
        detkit.propose(np.zeros((8, 8, 3), np.uint8), method, **options)
