"""Tracks drawn: boxes with numbers, the ways they came, and what was counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np

from detkit.io.draw import colour_of, draw_marked, line_width
from detkit.io.sources import Frame
from detkit.structures import Detections
from detkit.tracking.counting import Area

_SECONDS = 2.0  # of the way of an object that is drawn


class TrackDrawing:
    """Draws frame after frame.

    Args:
        fps: Frames a second.
        areas: Lines and zones, drawn with their counts.
    """

    def __init__(self, fps: float, areas: Sequence[Area] = ()) -> None:
        self._length, self._areas = max(2, round(_SECONDS * fps)), areas
        self._ways: dict[int, deque[tuple[int, tuple[int, int]]]] = {}
        self._number = 0

    def __call__(self, frame: Frame, found: Detections) -> np.ndarray:
        """A copy of the frame's image with its tracks: a colour per track, its number and class."""
        self._number += 1
        ids = found.extra["track_id"].tolist()
        for track, (x1, _, x2, y2) in zip(ids, found.boxes.tolist(), strict=True):
            way = self._ways.setdefault(track, deque(maxlen=self._length))
            way.append((self._number, (round((x1 + x2) / 2), round(y2))))
        old = [track for track, way in self._ways.items() if way[-1][0] <= self._number - self._length]
        for track in old:
            del self._ways[track]
        canvas = frame.image.copy()
        width = line_width(canvas)
        for track, way in self._ways.items():
            points = np.array([point for number, point in way if number > self._number - self._length])
            cv2.polylines(canvas, [points], False, colour_of(track), width, cv2.LINE_AA)
        for area in self._areas:
            for colour, wide in (((255, 255, 255), width + 2), ((200, 0, 0), width)):
                cv2.polylines(canvas, [np.rint(area.points).astype(int)], not area.is_line, colour, wide, cv2.LINE_AA)
        texts = [f"{track} {name}" for track, name in zip(ids, found.names, strict=True)]
        canvas = draw_marked(canvas, found.boxes, texts, ids)
        around = np.array([[*area.points.min(0), *area.points.max(0)] for area in self._areas]).reshape(-1, 4)
        said = [", ".join(f"{way} {sum(count.values())}" for way, count in area.counts.items()) for area in self._areas]
        return draw_marked(canvas, around, said, [0] * len(said), framed=False)
