"""What tracks cross and where they stay: lines and zones in the image, each object counted once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from detkit.errors import DetkitError
from detkit.structures import Detections

_MARGIN = 0.1  # of the shorter side of a box: nearer than that to a border, an object stays on the side where it was


class _Place(NamedTuple):
    """Where a track was when last it was clear of the border."""

    inside: bool  # of a zone; of a line: below it, or right of it
    centre: np.ndarray


class Area:
    """A line or a zone that counts objects by the centres of their boxes.

    Attributes:
        name: As it was asked for.
        points: (K, 2) x, y in pixels: both ends of a line, the corners of a zone.
        is_line: Not a zone.
        counts: Of each direction, objects by class. No object is counted twice in one direction.
        seconds: By class, how long each object that left a zone, or was lost in it, had been there in all.
    """

    def __init__(self, text: str) -> None:
        kind, _, rest = text.partition(":")
        do = "write line:x1,y1,x2,y2 or zone:x1,y1,x2,y2,x3,y3,... (two corners: a rectangle), in pixels"
        try:
            numbers = [float(word) for word in rest.split(",")]
        except ValueError:
            raise DetkitError("the corners are not numbers", f"--count {text}", do) from None
        wanted = len(numbers) == 4 if kind == "line" else len(numbers) >= 4 and len(numbers) % 2 == 0
        if kind not in ("line", "zone") or not wanted or not np.isfinite(numbers).all():
            raise DetkitError("this is neither a line nor a zone", f"--count {text}", do)
        self.name, self.is_line = text, kind == "line"
        self.points = np.array(numbers).reshape(-1, 2)
        if not self.is_line and len(self.points) == 2:
            (x1, y1), (x2, y2) = self.points
            self.points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        # A line's normal points down, or right where the line stands.
        (x1, y1), (x2, y2) = self.points[:2]
        normal = np.array([y1 - y2, x2 - x1])
        steep = abs(normal[0]) > abs(normal[1])
        self._normal = normal * (1 if normal[0 if steep else 1] >= 0 else -1) / max(np.hypot(*normal), 1e-9)
        self.directions = ("right", "left") if steep else ("down", "up")
        if not self.is_line:
            self.directions = ("entered", "left")
            if cv2.contourArea(self.points.astype(np.float32)) < 1:
                raise DetkitError("this zone has no area", f"--count {text}", do)
        elif np.hypot(*normal) < 1:
            raise DetkitError("both ends of this line are one point", f"--count {text}", do)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.directions}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._places: dict[int, _Place] = {}
        self._done: dict[int, set[str]] = defaultdict(set)
        self._stays: dict[int, tuple[str, float]] = {}

    def check(self, width: int, height: int) -> None:
        """Raises DetkitError if it lies outside an image of this size."""
        box, size = np.array([self.points.min(0), self.points.max(0)]), np.array([width, height])
        if (box[1] < 0).any() or (box[0] > size).any():
            what = f"this lies outside the image, which has {width} x {height} pixels"
            raise DetkitError(what, f"--count {self.name}", "give pixels, from 0,0 at the upper left")

    def update(self, found: Detections, elapsed: float, living: Collection[int]) -> None:
        """Counts one frame.

        Args:
            found: Detections with ``extra["track_id"]``.
            elapsed: Seconds since the last frame.
            living: The tracks that may still come back; the others are forgotten.
        """
        for track, (centre, margin), name in zip(
            found.extra["track_id"].tolist(), map(_centre, found.boxes), found.names, strict=True
        ):
            distance = self._distance(centre)
            before = self._places.get(track)
            inside = distance > 0 if before is None or abs(distance) > margin else before.inside
            if before is not None and inside != before.inside and self._between(before.centre, centre):
                direction = self.directions[not inside]
                if direction not in self._done[track]:
                    self._done[track].add(direction)
                    self.counts[direction][name] += 1
            if before is None or inside != before.inside or abs(distance) > margin:
                self._places[track] = _Place(inside, centre)
            if inside and not self.is_line:
                self._stays[track] = name, self._stays.get(track, (name, 0.0))[1] + (elapsed if before else 0.0)
        for track in self._places.keys() - set(living):
            del self._places[track]
            self._done.pop(track, None)
            if track in self._stays:
                name, seconds = self._stays.pop(track)
                self.seconds[name].append(seconds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and of a zone how many objects were in it and how long."""
        facts: dict[str, Any] = {"name": self.name, **{name: dict(count) for name, count in self.counts.items()}}
        if not self.is_line:
            stays = {name: list(seconds) for name, seconds in self.seconds.items()}
            for name, seconds in self._stays.values():
                stays.setdefault(name, []).append(seconds)
            facts["stayed"] = {
                name: {
                    "objects": len(s),
                    "mean_seconds": round(float(np.mean(s)), 3),
                    "longest_seconds": round(max(s), 3),
                }
                for name, s in stays.items()
            }
        return facts

    def lines(self) -> list[str]:
        """For a person."""
        parts = [f"{direction} {_listed(count)}" for direction, count in self.counts.items()]
        facts: Mapping[str, Mapping[str, Any]] = self.to_dict().get("stayed", {})
        for name, stay in facts.items():
            parts.append(
                f"{stay['objects']} {name} stayed {stay['mean_seconds']:.1f} s on average, "
                f"{stay['longest_seconds']:.1f} s at most"
            )
        return [f"{self.name}: {'; '.join(parts)}"]

    def _distance(self, point: np.ndarray) -> float:
        """Pixels into the zone, or below or right of the line; negative on the other side."""
        if self.is_line:
            return float((point - self.points[0]) @ self._normal)
        return float(cv2.pointPolygonTest(self.points.astype(np.float32), (float(point[0]), float(point[1])), True))

    def _between(self, before: np.ndarray, now: np.ndarray) -> bool:
        """True if the way from one place to another passes between the ends of the line (any way into a zone does)."""
        if not self.is_line:
            return True
        along = self.points[1] - self.points[0]
        from_line, to_line = self._distance(before), self._distance(now)
        share = from_line / (from_line - to_line) if from_line != to_line else 0.0
        where = (before + share * (now - before) - self.points[0]) @ along / (along @ along)
        return bool(0 <= where <= 1)


def _centre(box: np.ndarray) -> tuple[np.ndarray, float]:
    """The centre of a box, and how far it must be from a border to have crossed it."""
    return (box[:2] + box[2:]).astype(np.float64) / 2, _MARGIN * float(min(box[2:] - box[:2]))


def _listed(count: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(count.items())) or "0"
