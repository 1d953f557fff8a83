"""How an image of any size becomes a model's input: letterbox or stretch, then padding to the stride.

The same object is used by training, evaluation, prediction and export, and is saved with the model, so that these
cannot disagree about where an image lies inside the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np

from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.structures import Target

Mode = Literal["letterbox", "stretch"]
_LARGEST = 16384  # pixels of a side


@dataclass(frozen=True)
class Resize:
    """Fits an image into ``size``, content at the top left; the input is ``input_size``.

    Args:
        size: (height, width) in pixels; one int: a square.
        mode: ``letterbox`` keeps the image's proportions and pads the rest; ``stretch`` fills ``size`` completely.
        stride: Sides that are no multiple of it are padded to the next one.
        fill: Grey of the padding, 0..255.

    Raises:
        DetkitError: A size, mode, stride or fill that makes no sense.
    """

    size: int | tuple[int, int]
    _: KW_ONLY
    mode: Mode = "letterbox"
    stride: int = 32
    fill: int = 114

    def __post_init__(self) -> None:
        sides = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        if len(sides) != 2 or any(int(s) != s or not 1 <= s <= _LARGEST for s in sides):
            what = f"size must be one number of pixels (1 to {_LARGEST}) or [height, width], got {self.size!r}"
            raise DetkitError(what, "model.size", "write size: 320, say")
        object.__setattr__(self, "size", (int(sides[0]), int(sides[1])))
        if self.mode not in get_args(Mode):
            raise DetkitError(f"resize must be letterbox or stretch, got {self.mode!r}", "model.resize")
        if not 1 <= self.stride <= _LARGEST:
            raise DetkitError(f"stride must be at least 1 and at most {_LARGEST}, got {self.stride}")
        if not 0 <= self.fill <= 255:
            raise DetkitError(f"fill must lie between 0 and 255, got {self.fill}")

    @property
    def height(self) -> int:
        """Height in pixels that content may fill."""
        return self.size[0]  # type: ignore[index]

    @property
    def width(self) -> int:
        """Width in pixels that content may fill."""
        return self.size[1]  # type: ignore[index]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input: ``size`` rounded up to the stride."""
        return -(-self.height // self.stride) * self.stride, -(-self.width // self.stride) * self.stride

    def content(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in input pixels that an image of ``height`` x ``width`` takes up."""
        if self.mode == "stretch":
            return self.height, self.width
        scale = min(self.height / height, self.width / width)
        return min(max(round(height * scale), 1), self.height), min(max(round(width * scale), 1), self.width)

    def geometry(self, height: int, width: int) -> Geometry:
        """Where an image of ``height`` x ``width`` pixels lies inside the input."""
        new_height, new_width = self.content(height, width)
        # The rounded size over the old one, axis by axis: this is what the pixels do, so boxes follow them exactly.
        return Geometry(width, height, new_width / width, new_height / height)

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, Geometry]:
        """The input for an image.

        Args:
            image: uint8 (h, w, 3).
            out: uint8 (H, W, 3) of ``input_size`` to write to; None: a new array, or ``image`` itself where it has
                that size already.

        Returns:
            uint8 (H, W, 3), and where the image lies in it.
        """
        height, width = image.shape[:2]
        new_height, new_width = self.content(height, width)
        geometry = self.geometry(height, width)
        if out is None:
            if (height, width) == (new_height, new_width) == self.input_size:
                return image, geometry
            out = np.empty((*self.input_size, 3), np.uint8)
        place = out[:new_height, :new_width]
        if (height, width) != (new_height, new_width):
            way = self.interpolation(smaller=new_height < height or new_width < width)
            image = cv2.resize(image, (new_width, new_height), interpolation=way)
        place[:] = image
        out[new_height:] = self.fill
        out[:new_height, new_width:] = self.fill
        return out, geometry

    def interpolation(self, smaller: bool) -> int:
        """OpenCV's number of the way in which pixels are made."""
        return cv2.INTER_AREA if smaller else cv2.INTER_LINEAR

    def to_dict(self) -> dict[str, object]:
        """Plain values for a model file's header."""
        return {**asdict(self), "size": [self.height, self.width]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Resize:
        """The inverse of ``to_dict``."""
        return cls(**values)


def moved_target(target: Target, geometry: Geometry) -> Target:
    """``target`` (numpy, original pixels) in input pixels; a mask has the size of the image in the input, no more."""
    points, mask = target.points, target.mask
    if points is not None:
        points = np.concatenate([geometry.to_input(points[..., :2]), points[..., 2:]], axis=-1)
    area = target.area * np.float32(geometry.scale_x * geometry.scale_y)
    if mask is not None:
        size = (round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y))
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return replace(target, boxes=geometry.to_input(target.boxes), area=area, points=points, mask=mask)
