"""Where an image lies in a model's input, the way back, and how large objects are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from detkit.arrays import Either, is_tensor


class Geometry(NamedTuple):
    """How one original image lies inside a model's input: input = original * scale + offset.

    Attributes:
        width: Of the original, in pixels.
        height: Of the original, in pixels.
        scale_x: Input pixels per original pixel.
        scale_y: The same, downwards.
        left: The original's left edge, in input pixels.
        top: Its upper edge, in input pixels.
    """

    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def to_input(self, boxes: Either) -> Either:
        """Original xyxy (N, 4) to input pixels; numpy or torch."""
        return boxes * self._pairs(boxes, self.scale_x, self.scale_y) + self._pairs(boxes, self.left, self.top)

    def to_original(self, boxes: Either) -> Either:
        """Input xyxy (N, 4) to original pixels, clipped to the image; numpy or torch."""
        boxes = self.points_to_original(boxes)
        return boxes.clip(min=0).clip(max=self._pairs(boxes, self.width, self.height))

    def points_to_original(self, points: Either) -> Either:
        """Input points (..., 2) x, y, or (..., 4) two of them, to original pixels, not clipped; numpy or torch."""
        return (points - self._pairs(points, self.left, self.top)) / self._pairs(points, self.scale_x, self.scale_y)

    def masks_to_original(self, masks: Either) -> Either:
        """Masks (N, H, W) of the input as (N, height, width) of the original, by the nearest pixel; numpy or torch."""
        places = ((self.height, self.scale_y, self.top), (self.width, self.scale_x, self.left))
        rows, columns = (
            ((np.arange(side) + 0.5) * scale + start).astype(int).clip(0, most - 1).tolist()
            for (side, scale, start), most in zip(places, masks.shape[1:], strict=True)
        )
        return masks[:, rows][:, :, columns]

    @staticmethod
    def _pairs(like: Either, x: float, y: float) -> Either:
        """(x, y), repeated to the length of the last axis of ``like``, of its kind."""
        values = (x, y) * (like.shape[-1] // 2)
        return like.new_tensor(values) if is_tensor(like) else np.asarray(values, dtype=like.dtype)


class UsualSizes(NamedTuple):
    """How large objects are to a model: sides, square roots of width times height, in pixels of its input.

    Attributes:
        small: A tenth of the training's objects are smaller.
        typical: Half of them.
        large: Nine tenths.
        zoom: Input pixels per pixel of a training image.
    """

    small: float
    typical: float
    large: float
    zoom: float

    @classmethod
    def read(cls, values: object) -> UsualSizes | None:
        """Those in a model file, as ``_asdict`` wrote them; None where it has none."""
        if not isinstance(values, Mapping) or set(values) != set(cls._fields):
            return None
        sizes = cls(*(float(values[name]) if isinstance(values[name], (int, float)) else 0.0 for name in cls._fields))
        return sizes if all(0 < one < float("inf") for one in sizes) else None
