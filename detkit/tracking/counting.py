"""What tracks cross and where they stay: lines and zones in the image, each object counted once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from detkit.errors import DetkitError
from detkit.structures import Detections

_NUMBERS = re.compile(r"\s*-?\d+(\.\d*)?\s*(,\s*-?\d+(\.\d*)?\s*)*")
_MARGIN = 0.1  # of the shorter side of a box: nearer than that to a border, an object stays on the side where it was


@dataclass(slots=True)
class _Seen:
    """A track, where it was when last it was clear of the border, and what has been counted of it."""

    inside: bool  # of a zone; of a line: below it, or right of it
    centre: np.ndarray
    name: str = ""
    cut: bool = False  # its box reaches the edge of the image
    done: set[str] = field(default_factory=set)
    seconds: float | None = None  # in the zone


@dataclass(slots=True)
class _Stay:
    """Of one class, how many objects were in a zone, how long in all and at most."""

    objects: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class Area:
    """A line or a zone that counts objects by the centres of their boxes.

    Attributes:
        name: As it was asked for.
        points: (K, 2) x, y in pixels: both ends of a line, the corners of a zone.
        is_line: Not a zone.
        counts: Of each direction, objects by class. No object is counted twice in one direction.
    """

    def __init__(self, text: str) -> None:
        kind, _, rest = text.partition(":")
        do = "write line:x1,y1,x2,y2 or zone:x1,y1,x2,y2,x3,y3,... (two corners: a rectangle), in pixels"
        words = rest.split(",") if _NUMBERS.fullmatch(rest) else []
        if not {"line": len(words) == 4, "zone": len(words) >= 4 and len(words) % 2 == 0}.get(kind):
            raise DetkitError("this is neither a line nor a zone", f"--count {text}", do)
        self.name, self.is_line = text, kind == "line"
        self.points = np.array(words, np.float64).reshape(-1, 2)
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
        if (np.hypot(*normal) if self.is_line else cv2.contourArea(self.points.astype(np.float32))) < 1:
            raise DetkitError("its corners lie in one place, or in a row", f"--count {text}", do)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.directions}
        self._stays: dict[str, _Stay] = defaultdict(_Stay)
        self._seen: dict[int, _Seen] = {}
        self._size = np.full(2, np.inf)

    def check(self, width: int, height: int) -> None:
        """Tells it the images' size; raises DetkitError if it lies outside."""
        self._size = np.array([width, height])
        if (self.points.max(0) < 0).any() or (self.points.min(0) > self._size).any():
            what = f"this lies outside the image, which has {width} x {height} pixels"
            raise DetkitError(what, f"--count {self.name}", "give pixels, from 0,0 at the upper left")

    def update(self, found: Detections, elapsed: float, living: Collection[int]) -> None:
        """Counts one frame.

        Args:
            found: Detections with ``extra["track_id"]``.
            elapsed: Seconds since the last frame; 0 in the first.
            living: The tracks that may still come back; the others are forgotten.
        """
        ids = found.extra["track_id"].tolist()
        for track, box, name in zip(ids, found.boxes.astype(np.float64), found.names, strict=True):
            centre, margin = (box[:2] + box[2:]) / 2, _MARGIN * (box[2:] - box[:2]).min()
            distance, before = self._distance(centre), self._seen.get(track)
            inside = distance > 0
            seen = before or self._seen.setdefault(track, _Seen(inside, centre))
            seen.name, seen.cut = name, bool((box[:2] <= 1).any() or (box[2:] >= self._size - 1).any())
            if before is None:  # it came into the image, and so into the zone
                self._count(seen, inside and seen.cut and elapsed > 0 and not self.is_line)
            elif abs(distance) > margin:
                self._count(seen, inside != seen.inside and self._between(seen.centre, centre), inside)
                seen.inside, seen.centre = inside, centre
            if seen.inside and not self.is_line:
                stay = self._stays[name]
                stayed = elapsed if before else 0.0
                stay.objects += seen.seconds is None
                seen.seconds = (seen.seconds or 0.0) + stayed
                stay.seconds, stay.longest = stay.seconds + stayed, max(stay.longest, seen.seconds)
        for track in self._seen.keys() - set(living):
            seen = self._seen.pop(track)
            self._count(seen, seen.inside and seen.cut and not self.is_line, False)  # it went out of the image

    def _count(self, seen: _Seen, crossed: bool, inwards: bool = True) -> None:
        direction = self.directions[not inwards]
        if crossed and direction not in seen.done:
            seen.done.add(direction)
            self.counts[direction][seen.name] += 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and of a zone how many objects were in it and how long."""
        facts: dict[str, Any] = {"name": self.name, **{name: dict(count) for name, count in self.counts.items()}}
        if not self.is_line:
            facts["stayed"] = {
                name: {
                    "objects": stay.objects,
                    "mean_seconds": round(stay.seconds / stay.objects, 3),
                    "longest_seconds": round(stay.longest, 3),
                }
                for name, stay in self._stays.items()
            }
        return facts

    def lines(self) -> list[str]:
        """For a person."""
        parts = [f"{direction} {_listed(count)}" for direction, count in self.counts.items()]
        for name, stay in self._stays.items():
            mean = stay.seconds / stay.objects
            parts.append(f"{stay.objects} {name} stayed {mean:.1f} s on average, {stay.longest:.1f} s at most")
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
        share = self._distance(before) / (self._distance(before) - self._distance(now))  # on different sides
        where = (before + share * (now - before) - self.points[0]) @ along / (along @ along)
        return bool(0 <= where <= 1)


def _listed(count: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(count.items())) or "0"
