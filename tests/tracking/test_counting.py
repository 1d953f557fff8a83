"""Lines and zones: each object once per direction, and how long it stayed."""

from __future__ import annotations

import numpy as np
import pytest

from detkit import Detections, DetkitError
from detkit.tracking.counting import Area


def walk(area: Area, *ways: list[tuple[float, float]], fps: float = 10, side: float = 20) -> Area:
    """Objects of class "car" whose centres take these ways, one place per frame."""
    for i in range(max(map(len, ways))):
        here = [(track, way[i]) for track, way in enumerate(ways, 1) if i < len(way)]
        boxes = np.array([(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for _, (x, y) in here], np.float32)
        ids = np.array([track for track, _ in here])
        tracked = Detections(boxes, np.ones(len(ids)), np.zeros(len(ids)), ("car",), {"track_id": ids})
        area.update(tracked, 1 / fps if i else 0.0, ids.tolist())
    return area


def step(area: Area, i: int, centre: tuple[float, float] | None) -> None:
    """Frame i with one object, or without."""
    x, y = centre or (0, 0)
    box = np.array([(x - 10, y - 10, x + 10, y + 10)], np.float32)
    one = Detections(box, np.ones(1), np.zeros(1), ("car",), {"track_id": np.ones(1, np.int64)})
    area.update(one if centre else one[:0], 0.1 if i else 0.0, [1] if centre else [])


def test_a_line_counts_both_ways() -> None:
    down = [(50.0, float(y)) for y in range(0, 100, 5)]
    area = walk(Area("line:0,50,100,50"), down, down[::-1], down)
    assert area.counts == {"down": {"car": 2}, "up": {"car": 1}}
    assert area.lines() == ["line:0,50,100,50: down 2 car; up 1 car"]
    upright = walk(Area("line:50,100,50,0"), [(float(x), 50.0) for x in range(0, 100, 5)])
    assert upright.counts == {"right": {"car": 1}, "left": {}}


def test_who_trembles_on_the_line_is_counted_once() -> None:
    trembling = [(50.0, 40.0), *[(50.0, 50 + (-1) ** i * 1.5) for i in range(20)], (50.0, 60.0)]
    assert walk(Area("line:0,50,100,50"), trembling).counts == {"down": {"car": 1}, "up": {}}
    to_and_fro = [(50.0, 50 + (-1) ** i * 10.0) for i in range(20)]
    assert walk(Area("line:0,50,100,50"), to_and_fro).counts == {"down": {"car": 1}, "up": {"car": 1}}


def test_who_passes_beside_the_line_is_not_counted() -> None:
    beside = [(120.0, float(y)) for y in range(0, 100, 5)]
    assert not any(walk(Area("line:0,50,100,50"), beside).counts.values())


def test_a_zone_counts_and_times() -> None:
    through = [(float(x), 50.0) for x in range(0, 200, 10)]  # inside from 60 to 140: 9 frames, 8 steps after entering
    within = [(100.0, 50.0)] * 6
    area = walk(Area("zone:55,0,145,100"), through, within)
    assert area.counts == {"entered": {"car": 1}, "left": {"car": 1}}
    assert area.to_dict()["stayed"] == {"car": {"objects": 2, "mean_seconds": 0.7, "longest_seconds": 0.9}}
    triangle = Area("zone:0,0,100,0,0,100")
    assert triangle.points.shape == (3, 2)


@pytest.mark.parametrize(("first", "y", "entered"), [(1, 90, 1), (0, 90, 0), (1, 70, 0)])
def test_what_comes_into_the_image_inside_a_zone_has_entered_it(first: int, y: float, entered: int) -> None:
    """But not what was there from the first frame on, nor what turns up in the middle."""
    area = Area("zone:50,0,150,100")
    area.check(200, 100)
    for i in range(first, 9):
        step(area, i, (100.0, y - 10 * (i - first)))
    assert area.counts == {"entered": {"car": 1} if entered else {}, "left": {}}
    step(area, 9, None)  # lost at the upper edge or on the way there
    assert bool(area.counts["left"]) == (y - 10 * (8 - first) <= 11)


@pytest.mark.parametrize(
    "text",
    [
        "line",
        "line:1,2,3",
        "line:1,2,a,4",
        "circle:1,2,3,4",
        "zone:1,2,3",
        "line:5,5,5,5",
        "zone:0,0,0,9",
        "line:nan,0,1,1",
    ],
)
def test_mistakes(text: str) -> None:
    with pytest.raises(DetkitError) as error:
        Area(text)
    assert text in error.value.where


def test_what_lies_outside_the_image_is_refused() -> None:
    Area("line:-10,50,300,50").check(200, 100)
    with pytest.raises(DetkitError, match="outside the image, which has 200 x 100"):
        Area("line:0,150,200,150").check(200, 100)
