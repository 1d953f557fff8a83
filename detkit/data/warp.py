"""Moving an image and its boxes together: one affine map, then a smooth local displacement, in one resampling.

Coordinates are those of pixel edges, as boxes have them: the first pixel reaches from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from detkit.rows import IGNORED
from detkit.structures import Sample, Target

Outline = Literal["ellipse", "corners"]
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 64, endpoint=False)) for f in (np.cos, np.sin)], axis=1)
_OUTLINES = {"ellipse": _CIRCLE, "corners": _CIRCLE / np.abs(_CIRCLE).max(axis=1, keepdims=True)}


def _dense(nodes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 2) float32: the field of ``nodes`` (see ``Warp``) at the centres of all pixels."""
    cells = len(nodes) - 1
    rows, columns = (_weights((np.arange(side) + 0.5) * cells / side, cells) for side in (height, width))
    return np.stack([rows @ nodes[..., axis] @ columns.T for axis in range(2)], axis=-1)


def _at(nodes: np.ndarray, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., 2) float64: the field of ``nodes`` at ``points`` (..., 2) in output pixels."""
    cells = len(nodes) - 1
    columns = _weights(points[..., 0] * cells / width, cells)
    rows = _weights(points[..., 1] * cells / height, cells)
    return np.einsum("...i,ijc,...j->...c", rows, nodes, columns, optimize=True)


def _weights(places: np.ndarray, cells: int) -> np.ndarray:
    """(..., cells + 1) float32: the share of each node at ``places`` (...) in cells, smooth from node to node."""
    near = np.clip(1 - np.abs(np.clip(places, 0, cells)[..., None] - np.arange(cells + 1)), 0, 1)
    return (near * near * (3 - 2 * near)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Warp:
    """Where an image goes.

    Args:
        matrix: (2, 3) float64 from its pixels to the output's.
        size: (height, width) of the output.
        displacement: (g + 1, g + 1, 2) float32, x and y in output pixels at the corners of a grid of g x g cells, and
            smooth between them: the output pixel at q shows what the matrix puts at q + field(q). None: nothing.
        flip_pairs: Points that change places where the image is mirrored.
        outline: What stands for an object where its box is turned: the ellipse in the box, or the box itself.
    """

    matrix: np.ndarray
    size: tuple[int, int]
    displacement: np.ndarray | None = None
    flip_pairs: Sequence[tuple[int, int]] = ()
    outline: Outline = "ellipse"

    def image(self, image: np.ndarray, out: np.ndarray, fill: int) -> None:
        """Draws ``image`` (uint8 (h, w, 3)) into ``out`` (uint8, of ``size``); what it does not cover is ``fill``."""
        linear = self.matrix[:, :2]
        shrink = int(1 / np.sqrt(max(abs(np.linalg.det(linear)), 1e-6)))
        if shrink >= 2 and min(image.shape[:2]) >= 2 * shrink:
            # Bilinear sampling looks at four pixels only: what is left out would show as aliasing.
            height, width = image.shape[:2]
            small = cv2.resize(image, (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
            linear = linear * (width / small.shape[1], height / small.shape[0])
            image = small
        self._resample(image, out, linear, cv2.INTER_LINEAR, fill)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 of ``size``: the nearest pixel of a ``Target.mask``; what it does not cover is ignored."""
        out = np.empty(self.size, np.uint8)
        self._resample(mask, out, self.matrix[:, :2], cv2.INTER_NEAREST, IGNORED)
        return out

    def _resample(self, image: np.ndarray, out: np.ndarray, linear: np.ndarray, way: int, fill: int) -> None:
        # OpenCV counts from the first pixel's centre.
        centred = np.column_stack([linear, linear.sum(axis=1) / 2 + self.matrix[:, 2] - 0.5])
        height, width = self.size
        border = (fill, fill, fill)
        if self.displacement is None:
            out[:] = cv2.warpAffine(image, centred, (width, height), flags=way, borderValue=border)
            return
        inverse = cv2.invertAffineTransform(centred).astype(np.float32)
        field = _dense(self.displacement, height, width)
        field[..., 0] += np.arange(width, dtype=np.float32)
        field[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        source = cv2.transform(field, inverse)
        cv2.remap(image, source[..., 0], source[..., 1], way, dst=out, borderValue=border)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) float64: where ``boxes`` (N, 4) xyxy end up, not clipped.

        A box that is turned is replaced by the bound of its inscribed ellipse, not of its corners: objects seldom
        reach into the corners, so that stays tight (``outline``: else). Under mirror and scale both are the same.
        """
        boxes = np.asarray(boxes, dtype=np.float64)
        if self.displacement is None:
            centre, half = self.points((boxes[:, :2] + boxes[:, 2:]) / 2), (boxes[:, 2:] - boxes[:, :2]) / 2
            power = 2 if self.outline == "ellipse" else 1
            half = (half**power @ np.abs(self.matrix[:, :2].T) ** power) ** (1 / power)
            return np.concatenate([centre - half, centre + half], axis=1)
        outlines = self._outlines(boxes)
        return np.concatenate([outlines.min(axis=1), outlines.max(axis=1)], axis=1).reshape(-1, 4)

    def _outlines(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 64, 2) float64: points of what stands for the objects in ``boxes``, moved."""
        centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        return self.points(centre[:, None] + half[:, None] * _OUTLINES[self.outline])

    def _cut(self, boxes: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """(N, 4): the parts of ``moved`` inside the output; across its border, bounds of what is left there."""
        height, width = self.size
        cut = np.clip(moved, 0, (width, height, width, height))
        if self.displacement is None and not (self.matrix[0, 1] or self.matrix[1, 0]):
            return cut
        window = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        crossing = np.flatnonzero((cut != moved).any(axis=1))
        for i, outline in zip(crossing, self._outlines(boxes[crossing]), strict=True):
            area, part = cv2.intersectConvexConvex(cv2.convexHull(outline.astype(np.float32)), window)
            cut[i] = (*part.min(axis=(0, 1)), *part.max(axis=(0, 1))) if area > 0 else 0
        return cut

    def points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) float64: where ``points`` (..., 2) x, y end up."""
        landed = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        if self.displacement is None:
            return landed
        place = landed
        for _ in range(8):  # the field is a contraction (Augment limits its strength), so this converges
            place = landed - _at(self.displacement, place, *self.size)
        return place

    def target(self, target: Target, min_visible: float) -> Target:
        """``target`` (numpy) moved and clipped to the output; see ``visible``."""
        scale = float(np.linalg.det(self.matrix[:, :2]))
        points = target.points
        if points is not None:
            points = swapped(points, self.flip_pairs) if scale < 0 else points.copy()
            points[..., :2] = self.points(points[..., :2])
        mask = None if target.mask is None else self.mask(target.mask)
        moved = replace(target, area=target.area * np.float32(abs(scale)), points=points, mask=mask)
        boxes = self.boxes(target.boxes)
        return visible(moved, boxes, self._cut(target.boxes, boxes), self.size, min_visible)

    def sample(self, sample: Sample, image: np.ndarray, min_visible: float, *, clip: bool = True) -> Sample:
        """``sample`` with target and proposals moved.

        Args:
            sample: What is moved.
            image: Its pixels, moved already.
            min_visible: See ``visible``.
            clip: Proposals are cut to the output; False: what is moved lies inside.
        """
        proposals = sample.proposals
        if proposals is not None:
            boxes = self.boxes(proposals)
            proposals = clipped(boxes, self.size) if clip else boxes.astype(np.float32)
        return sample.replace(image=image, target=self.target(sample.target, min_visible), proposals=proposals)


def swapped(points: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """A copy of points (N, K, ...) in which the two of each pair have changed places."""
    order = np.arange(points.shape[1])
    for first, second in pairs:
        order[[first, second]] = second, first
    return points[:, order]


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(M, 4) float32: the parts of ``boxes`` inside an image of ``size``, without those that lie outside."""
    height, width = size
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)]


def visible(target: Target, boxes: np.ndarray, cut: np.ndarray, size: tuple[int, int], min_visible: float) -> Target:
    """``target`` with other boxes, cut to an image.

    What is left of an object must be at least one pixel wide and high, else it is dropped. Points outside the image
    are not visible.

    Args:
        target: Numpy.
        boxes: (N, 4) xyxy, not cut.
        cut: (N, 4), the parts of them that are in the image.
        size: (height, width) of the image.
        min_visible: An object of which a smaller share is left becomes difficult: too little to be learned, but not
            background either.
    """
    height, width = size
    sides = cut[:, 2:] - cut[:, :2]
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    share = (sides.prod(axis=1) / np.maximum(whole, 1e-9)).astype(np.float32)
    difficult = target.difficult | (share < min_visible)
    points = target.points
    if points is not None:
        inside = (points[..., :2] >= 0).all(axis=-1) & (points[..., :2] <= (width, height)).all(axis=-1)
        points = np.concatenate([points[..., :2], np.where(inside[..., None], points[..., 2:], 0)], axis=-1)
    moved = replace(target, boxes=cut.astype(np.float32), difficult=difficult, area=target.area * share, points=points)
    return moved[(sides >= 1 - 1e-6).all(axis=1)]


def cropped(sample: Sample, window: tuple[int, int, int, int], min_visible: float) -> Sample:
    """The part ``window`` (x1, y1, x2, y2 in whole pixels) of a sample; the image is a view, not a copy."""
    x1, y1, x2, y2 = window
    shift = Warp(np.array([[1.0, 0, -x1], [0, 1, -y1]]), (y2 - y1, x2 - x1))
    return shift.sample(sample, sample.image[y1:y2, x1:x2], min_visible)


def turned(sample: Sample, mirror: bool, flip: bool, flip_pairs: Sequence[tuple[int, int]] = ()) -> Sample:
    """``sample`` mirrored left-right and, or, upside down, exactly; see ``Warp`` for ``flip_pairs``."""
    if not (mirror or flip):
        return sample
    height, width = sample.image.shape[:2]
    matrix = np.array([[-1.0 if mirror else 1.0, 0, width * mirror], [0, -1.0 if flip else 1.0, height * flip]])
    image = cv2.flip(sample.image, -1 if mirror and flip else int(mirror))
    return Warp(matrix, (height, width), flip_pairs=flip_pairs).sample(sample, image, 0, clip=False)
