"""Large images in overlapping tiles, so that small objects keep their pixels (Akyon, Altinuc and Temizel 2022,
"Slicing aided hyper inference"), and what was found in the tiles as one set: nothing twice, nothing cut, nothing glued.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from detkit.errors import DetkitError
from detkit.geometry import UsualSizes
from detkit.ops.boxes import area, iou
from detkit.predictor import PredictsSamples, Wrapped
from detkit.printed import counted
from detkit.structures import Detections, Limits, Sample

_LARGE = 1.5  # times the input: images from here on may need slicing
_ASSUMED = (0.05, 0.2, 0.6)  # of the input's longer side: small, typical and large objects, where the model is silent
_LEAST, _MOST = 0.1, 0.3  # of a tile's side: what typical objects may make of the overlap
_SAME = 0.5  # IoU of a box with what its tile would see of another one
_SURE = 0.3  # of a cut box's score, which the whole one's must reach
_PAIRS = 1 << 18  # of boxes that are compared at a time
_TOLD = 10  # lines


class SlicePlan(NamedTuple):
    """How an image is looked at.

    Attributes:
        windows: (T, 4) int64 xyxy, pixels: tiles of one size, row by row; the image itself where it is not sliced.
        whole: The image as a whole is looked at too, for objects of more than half a tile.
        text: The same for a person.
    """

    windows: np.ndarray
    whole: bool
    text: str


class Sliced(Wrapped):
    """Any predictor, shown large images tile by tile.

    Args:
        predictor: Finds boxes.
        tile: Width and height in the image's pixels: ``640``, ``(640, 480)`` or ``"640x480"``; or ``"auto"``: as many
            as filled the input in training, for images of more than 1.5 times the input in which objects of typical
            size would be too small; others are not sliced.
        overlap: What neighbouring tiles share at least, of a tile's side; None: the side of a typical object.
        budget: Seconds per image: tiles grow, and small objects shrink, until they can be looked at in that time.
        batch: Tiles at a time.
        tell: Called with a line for each way in which images are looked at, ten at most.

    Raises:
        DetkitError: A value that makes no sense, a classifier, or ``auto`` where the model's input is not known.
    """

    def __init__(
        self,
        predictor: PredictsSamples,
        tile: int | str | Sequence[int] = "auto",
        *,
        overlap: float | None = None,
        budget: float | None = None,
        batch: int = 8,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(predictor)
        if self.protocol == "classify":
            raise DetkitError("a classifier looks at whole images", "--slice", "leave it out, or name a detector")
        if overlap is not None and not 0 <= overlap <= 0.8:
            what = f"the overlap is a share of a tile from 0 to 0.8, got {overlap:g}"
            raise DetkitError(what, "--overlap", "give 0.2, say")
        if budget is not None and not 0 < budget < math.inf:
            raise DetkitError(f"a budget is a number of seconds above 0, got {budget:g}", "--budget", "give 2, say")
        self.tile, self.overlap, self.budget, self.batch, self.tell = _sides(tile), overlap, budget, batch, tell
        if self.tile is None and self.input_size is None:
            what = "the input size of this model is not known"
            raise DetkitError(what, "--slice auto", "give the sides of a tile: --slice 640")
        self._seconds: float | None = None  # per window
        self._told: set[str] = set()

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's pixels."""
        return [self._look(sample.image, limits) for sample in samples]

    def plan(self, height: int, width: int, most: float = math.inf) -> SlicePlan:
        """How an image of this size is looked at.

        Args:
            height: Pixels.
            width: Pixels.
            most: Windows that the budget allows.
        """
        seen = self.input_size or self.tile
        assert seen is not None
        small, middle, large = (share * max(seen) for share in _ASSUMED)
        usual = self.usual_sizes or UsualSizes(small, middle, large, zoom=1.0)
        typical = usual.typical / usual.zoom
        guess = "" if self.usual_sizes else f" (typical objects are taken to have {typical:.0f} pixels)"
        tile = np.array(self.tile or [round(side / usual.zoom) for side in seen])
        shrunk = max(height / seen[0], width / seen[1])
        why = ""
        if (tile >= (height, width)).all():
            why = f"a tile has {tile[1]} x {tile[0]} pixels"
        elif self.tile is None and shrunk <= _LARGE:
            why = f"it is at most {_LARGE} times the input of {seen[1]} x {seen[0]}"
        elif self.tile is None and typical / shrunk >= usual.small:
            why = f"typical objects keep {typical / shrunk:.0f} pixels in the input of {seen[1]} x {seen[0]}{guess}"
        whole = bool(usual.large / max(seen) * max(height, width) > tile.min() / 2)
        windows = np.array([[0, 0, width, height]])
        while not why:
            share = np.clip(typical / tile, _LEAST, _MOST) if self.overlap is None else self.overlap
            windows = tile_grid(height, width, tile, share)
            if len(windows) == 1:
                why = "the budget allows one look"
            elif len(windows) + whole <= most:
                break
            tile = np.ceil(tile * 1.1).astype(int)
        if why:
            return SlicePlan(windows, False, f"{width} x {height}: not sliced, {why}")
        text = f"{width} x {height}: {counted(len(windows), 'tile')} of {windows[0, 2]} x {windows[0, 3]}"
        text += " and the whole image" * whole + " within the budget" * (most < math.inf)
        return SlicePlan(windows, whole, text + guess)

    def _look(self, image: np.ndarray, limits: Limits) -> Detections:
        height, width = image.shape[:2]
        plan, left = self.plan(height, width), self.budget
        if left is not None and len(plan.windows) > 1:
            if self._seconds is None:
                self._ask([image], limits)  # the first call of all takes longer, as loading does
                began = time.perf_counter()
                self._ask([image], limits)
                self._seconds = time.perf_counter() - began
                left -= self._seconds
            plan = self.plan(height, width, int(left / self._seconds))
        self._say(plan.text)
        began = time.perf_counter()
        shown = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in plan.windows] + [image] * plan.whole
        found = self._ask(shown, limits)
        self._seconds = (time.perf_counter() - began) / len(shown)
        if len(shown) == 1:
            return found[0]
        merged = merge_windows(found, plan, limits.iou)
        if limits.max_detections < len(merged) and limits.conf > Limits.evaluation().conf:
            self._say(f"more than {limits.max_detections} objects were found; --max-detections keeps more")
        return merged[: limits.max_detections]

    def _ask(self, images: Sequence[np.ndarray], limits: Limits) -> list[Detections]:
        found: list[Detections] = []
        for start in range(0, len(images), self.batch):
            found += self.inner.predict_samples([Sample(one) for one in images[start : start + self.batch]], limits)
        return found

    def _say(self, text: str) -> None:
        if text not in self._told and len(self._told) < _TOLD:
            self._told.add(text)
            self.tell(text)


def _sides(tile: int | str | Sequence[int]) -> tuple[int, int] | None:
    """Height and width of a tile, or None for "auto"; DetkitError where it is neither."""
    if tile == "auto":
        return None
    if isinstance(tile, str):
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", tile.strip())
        sides = [int(side) for side in match.groups(match[1])] if match else []
    else:
        sides = [tile, tile] if isinstance(tile, int) else list(tile)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise DetkitError(f"{tile!r} is no size of a tile", "--slice", "give auto, 640 or 640x480 (width x height)")
    if min(sides) < 32:
        raise DetkitError(f"a tile of {sides[0]} x {sides[1]} pixels is too small", "--slice", "give 320, say")
    return sides[1], sides[0]


def tile_grid(height: int, width: int, tile: Sequence[int] | np.ndarray, overlap: float | np.ndarray) -> np.ndarray:
    """Tiles of one size that cover an image, spread evenly, so that none is cut and all overlap alike.

    Args:
        height: Of the image, pixels.
        width: The same.
        tile: Height and width, pixels; what is larger than the image is cut to it.
        overlap: Share of a tile's side that neighbours have in common, at least: both ways, or down and across.

    Returns:
        (T, 4) int64 xyxy, row by row.
    """
    places = []
    for side, size, share in zip((height, width), tile, np.broadcast_to(overlap, 2), strict=True):
        size = min(int(size), side)
        step = max(1, int(size * (1 - share)))
        places.append((np.linspace(0, side - size, 1 + -(-(side - size) // step)).round().astype(np.int64), size))
    (rows, high), (columns, wide) = places
    y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([x, y, x + wide, y + high], axis=1)


def merge_windows(found: Sequence[Detections], plan: SlicePlan, iou_threshold: float) -> Detections:
    """What was found in the windows of one image, as one set.

    A box that its tile cuts loses to a more complete one of the same class from another window; the whole image adds
    boxes of more than half a tile; then comes NMS within each class.

    Args:
        found: Of each window, and last of the whole image where it was looked at; numpy, pixels of the window.
        plan: The windows.
        iou_threshold: Of NMS.

    Returns:
        Detections in the image's pixels, best first.
    """
    windows = plan.windows
    width, height = windows[:, 2:].max(axis=0)
    if plan.whole:
        windows = np.concatenate([windows, [[0, 0, width, height]]])
        sides = found[-1].xywh[:, 2:]
        large = (sides > (windows[0, 2:] - windows[0, :2]) / 2).any(axis=1)
        found = [*found[:-1], found[-1][large]]
    placed = []
    for number, (one, (x, y, _, _)) in enumerate(zip(found, windows, strict=True)):
        extra = {**one.extra, "window": np.full(len(one), number)}
        if "points" in extra:
            extra["points"] = extra["points"].copy()
            extra["points"][..., :2] += np.array([x, y], np.float32)
        placed.append(replace(one, boxes=one.boxes + np.array([x, y, x, y], np.float32), extra=extra))
    every = Detections.merge(placed)
    whole = every[~cut_boxes(every, every.extra["window"], windows)].with_nms(iou_threshold)
    return replace(whole, extra={name: column for name, column in whole.extra.items() if name != "window"})


def cut_boxes(found: Detections, window: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Which boxes are only what their window shows of another box.

    Box B, of another window, makes box A of window W needless where it crosses a border of W, is larger, is of the same
    class and nearly as sure, and where the part of it that lies in W is A (by IoU). Two touching objects never are that
    to each other, and two halves without a whole both stay.

    Args:
        found: In the image's pixels, numpy.
        window: (N,) the window of each.
        windows: (T, 4) xyxy.

    Returns:
        (N,) bool.
    """
    boxes, areas = found.boxes, area(found.boxes)
    lost = np.zeros(len(found), bool)
    order = np.argsort(window, kind="stable")
    ends = np.searchsorted(window[order], np.arange(len(windows) + 1))
    for side in range(4):
        axis, across = side % 2, 1 - side % 2
        extent = boxes[:, axis + 2] - boxes[:, axis]
        lines = windows[:, side]
        border = lines.min() if side < 2 else lines.max()  # of the image: nothing is cut there
        for line in np.unique(lines[lines != border]):
            crossing = np.flatnonzero((boxes[:, axis] < line) & (boxes[:, axis + 2] > line))
            first, last, of = boxes[crossing, across], boxes[crossing, across + 2], window[crossing]
            for number in np.flatnonzero(lines == line):
                tile = windows[number].astype(np.float32)
                others = crossing[(first < tile[across + 2]) & (last > tile[across]) & (of != number)]
                mine = order[ends[number] : ends[number + 1]]
                mine = mine[np.abs(boxes[mine, side] - line) <= extent[mine]]  # else the IoU is below a half
                if not len(mine) or not len(others):
                    continue
                seen = np.concatenate([boxes[others, :2].clip(tile[:2]), boxes[others, 2:].clip(None, tile[2:])], 1)
                step = max(1, _PAIRS // max(1, len(others)))
                for part in (mine[i : i + step] for i in range(0, len(mine), step)):
                    twin = iou(boxes[part], seen) >= _SAME
                    twin &= found.labels[part, None] == found.labels[others]
                    twin &= areas[others] > areas[part, None]
                    twin &= found.scores[others] >= _SURE * found.scores[part, None]
                    lost[part] |= twin.any(axis=1)
    return lost
