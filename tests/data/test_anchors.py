"""Anchors of a data set: the model's own geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit.data.anchors import choose_anchors, collisions, object_sizes, usual_sizes
from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.reading import ImageTable, ObjectTable, assemble
from detkit.data.resize import Resize
from detkit.errors import DetkitError


def labelled(boxes: list[list[float]], height: int = 64, width: int = 128) -> Annotations:
    """One image with these boxes x, y, width, height."""
    objects = ObjectTable(np.zeros(len(boxes), np.int64), np.array(boxes), np.zeros(len(boxes), np.int64), str)
    size = np.array([[height, width]], np.int32)
    return assemble(objects, ImageTable([1], ["a.jpg"], size), {1: "a"}, Findings(), Source("coco", Path("x")))


def test_objects_lie_where_the_models_letterbox_puts_them() -> None:
    """128 x 64 pixels in a 128 x 128 input: at its top, so that both objects' centres (y = 10 and 40) are in the upper
    left one of 2 x 2 cells, where one of two loses its slot; centred, they would lie in different rows."""
    sizes = object_sizes(labelled([[5, 5, 10, 10], [5, 35, 10, 10]]), Resize(128))
    assert sizes.centres.tolist() == [[10 / 128, 10 / 128], [10 / 128, 40 / 128]]
    assert collisions(sizes, 2, np.array([[10.0, 10.0]])) == 0.5
    assert collisions(sizes, 4, np.array([[10.0, 10.0]])) == 0, "y = 40 is in the second of four rows"


def test_sizes_are_those_of_pixels_and_padding_counts() -> None:
    """256 x 128 pixels in a 100 x 100 content of a 128 x 128 input: scale 100 / 256, of whole pixels 50 / 128."""
    sizes = object_sizes(labelled([[0, 0, 128, 64]], 128, 256), Resize(100))
    assert sizes.wh.tolist() == [[50, 25]]
    assert sizes.side.tolist() == [[128, 128]]


def test_usual_sizes_are_in_pixels_of_the_input() -> None:
    """Sides of 5, 10, ..., 50 pixels at half the size, so 2.5 to 25: at 0.9, 4.5 and 8.1 steps of 2.5."""
    data = labelled([[0, 0, side, side] for side in range(5, 55, 5)])
    assert usual_sizes(data, Resize(64)) == pytest.approx(
        {"small": 4.75, "typical": 13.75, "large": 22.75, "zoom": 0.5}
    )
    assert usual_sizes(labelled([]), Resize(64)) == {}


def test_no_objects(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="no objects"):
        choose_anchors(labelled([]))
    with pytest.raises(DetkitError, match="anchors"):
        choose_anchors(labelled([[0, 0, 5, 5]]), 0)


def test_fewer_sizes_give_fewer_anchors() -> None:
    found = choose_anchors(labelled([[0, 0, 5, 5], [3, 3, 5, 5]]), 9)
    assert found.to_dict()["anchors"] == [[5, 5]]
    assert "not 9: the boxes have 1 different size" in found.lines()
