"""Files of detections that fit the data and still seem to say something else."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.io.detections.reader import score_warnings
from detkit.tables import Results

SIZES = np.array([[100, 200]] * 10)


def table(n: int = 40) -> Results:
    """Boxes inside images of 200 x 100, four an image, in the order of the images."""
    rng = np.random.default_rng(0)
    xywh = np.concatenate([rng.uniform(0, 60, (n, 2)), rng.uniform(5, 40, (n, 2))], axis=1)
    return Results(np.arange(n) // 4, rng.integers(0, 3, n), xywh, rng.uniform(0.001, 1, n))


def changed(**columns: np.ndarray) -> Results:
    old = table()
    return Results(**{name: columns.get(name, getattr(old, name)) for name in ("image", "label", "xywh", "score")})


def repeated(rows: np.ndarray) -> Results:
    return table()[rows]


def squares(n: int = 3000) -> Results:
    """All different, with whole numbers and one score, in one image."""
    k, none = np.arange(n, dtype=np.float64), np.zeros(n, np.int64)
    return Results(none, none, np.stack((k % 10, k // 10 % 10, 1 + k // 100 % 10, 1 + k // 1000), axis=1), none + 0.5)


CORNERS = table().xywh + np.pad(table().xywh[:, :2] + 60, ((0, 0), (2, 0)))


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (table(), None),
        (table(8)[np.arange(8)[::-1]], None),  # too few to say anything
        (changed(xywh=CORNERS), "boxes end outside their images: are they x1, y1, x2, y2"),
        (changed(xywh=table().xywh / 200), "all boxes lie within one pixel"),
        (changed(score=np.full(40, 0.5)), "all detections have the score 0.5"),
        (squares(), "all detections have the score 0.5"),
        (changed(score=table().score / 2 + 0.25), "no detection scores below 0.2"),
        (repeated(np.tile(np.arange(40), 2)), "40 detections once more in the file"),
        (repeated(np.repeat(np.arange(40), 2)), "40 detections once more in the file"),
        (repeated(np.r_[0:40, 0:4]), "4 detections once more in the file"),
        (repeated(np.random.default_rng(1).permutation(40)), None),
    ],
)
def test_score_warnings(results: Results, words: str | None) -> None:
    notes = score_warnings(results, SIZES)
    assert (notes == []) if words is None else (len(notes) == 1 and words in notes[0])


def test_images_of_unknown_size_hold_any_box() -> None:
    assert score_warnings(changed(xywh=CORNERS), np.zeros((10, 2), int)) == []
