"""ONNX detectors of other programs: how they are fed, and what their outputs mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detkit.data.resize import Resize
from detkit.errors import DetkitError, nearest

Answers = tuple[np.ndarray, np.ndarray]  # boxes (B, A, 4) xyxy in input pixels, scores (B, A, C)
Shapes = Sequence[tuple[int, ...]]
_IMAGENET = (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)


class _CubicResize(Resize):
    def interpolation(self, smaller: bool) -> int:
        return cv2.INTER_CUBIC


@dataclass(frozen=True)
class OutputLayout:
    """A family's convention.

    Attributes:
        read: The outputs and the input's height and width to boxes and scores.
        fits: Whether outputs of these shapes, of an input of this height and width, may be of the family.
        bgr: Of the pixels.
        mean: Subtracted from pixels 0..255, in their order.
        std: What they are divided by then.
        stretch: The image fills the input, whatever its proportions; else the rest is padded.
        cubic: It is scaled by cubic interpolation, which a network may depend on by hundredths of AP.
        iou: Of NMS; 1: there is none.
    """

    read: Callable[[Sequence[np.ndarray], tuple[int, int]], Answers]
    fits: Callable[[Shapes, tuple[int, int]], bool]
    bgr: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stretch: bool = False
    cubic: bool = False
    iou: float = 0.6

    def resize(self, size: tuple[int, int]) -> Resize:
        """How an image becomes an input of this height and width."""
        kind = _CubicResize if self.cubic else Resize
        return kind(size, mode="stretch" if self.stretch else "letterbox", stride=1)

    def feed(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (B, 3, H, W) of uint8 (B, H, W, 3) RGB."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        values = (ordered - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def _cells(size: tuple[int, int], strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row (A, 2) of each cell, level by level and row by row, and its stride (A, 1)."""
    cells, steps = [], []
    for stride in strides:
        high, wide = (-(-side // stride) for side in size)
        y, x = np.mgrid[:high, :wide]
        cells.append(np.stack([x.ravel(), y.ravel()], 1))
        steps.append(np.full((high * wide, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


_THREE, _FOUR = (8, 16, 32), (8, 16, 32, 64)


def _corners(centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)


def _distances(codes: np.ndarray, points: np.ndarray, strides: np.ndarray) -> np.ndarray:
    """Boxes (B, A, 4) around points by the means of four distributions over 0, 1, .. R strides (Li et al. 2020)."""
    codes = codes.reshape(*codes.shape[:2], 4, -1)
    weights = np.exp(codes - codes.max(-1, keepdims=True))
    sides = (weights / weights.sum(-1, keepdims=True)) @ np.arange(codes.shape[-1], dtype=np.float32) * strides
    return np.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)


def _yolox(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """x, y, log size, objectness, classes, in strides (Ge et al. 2021, arXiv 2107.08430)."""
    table, (cells, strides) = outputs[0], _cells(size, _THREE)
    boxes = _corners((table[..., :2] + cells) * strides, np.exp(table[..., 2:4]) * strides)
    return boxes, table[..., 4:5] * table[..., 5:]


def _nanodet(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """Class scores, then four distributions of 8, around a cell's corner (github.com/RangiLyu/nanodet)."""
    table, (cells, strides) = outputs[0], _cells(size, _FOUR)
    return _distances(table[..., -32:], cells * strides, strides), table[..., :-32]


def _picodet(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """Class scores of four levels, then their distributions, around a centre (Yu et al. 2021, arXiv 2111.00902)."""
    cells, strides = _cells(size, _FOUR)
    scores, codes = (np.concatenate(part, 1) for part in (outputs[:4], outputs[4:]))
    return _distances(codes, (cells + 0.5) * strides, strides), scores


def _yolov8(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """Centre, size in input pixels and class scores, by columns."""
    table = outputs[0].transpose(0, 2, 1)
    return _corners(table[..., :2], table[..., 2:4]), table[..., 4:]


def _by_width(outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The output of boxes, and the other."""
    boxes, other = outputs if outputs[0].shape[-1] == 4 else outputs[::-1]
    return boxes, other


def _detr(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """Centre and size as shares of the input; logits, nothing last (Carion et al. 2020, arXiv 2005.12872)."""
    boxes, logits = _by_width(outputs)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return _corners(boxes[..., :2], boxes[..., 2:]) * np.array([size[1], size[0]] * 2, np.float32), shares[..., :-1]


def _ssd(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> Answers:
    """Corners as shares of the input; probabilities, background first (Liu et al. 2016, arXiv 1512.02325)."""
    boxes, scores = _by_width(outputs)
    return boxes * np.array([size[1], size[0]] * 2, np.float32), scores[..., 1:]


def _pair(shapes: Shapes, size: tuple[int, int]) -> bool:
    return len(shapes) == 2 and all(len(shape) == 3 for shape in shapes) and 4 in (shapes[0][2], shapes[1][2])


def _table(strides: Sequence[int], axis: int) -> Callable[[Shapes, tuple[int, int]], bool]:
    def fits(shapes: Shapes, size: tuple[int, int]) -> bool:
        return len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][axis] == len(_cells(size, strides)[0])

    return fits


def _eight(shapes: Shapes, size: tuple[int, int]) -> bool:
    return len(shapes) == 8 and all(len(shape) == 3 for shape in shapes) and all(s[2] == 32 for s in shapes[4:])


LAYOUTS = {
    "yolox": OutputLayout(_yolox, _table(_THREE, 1), bgr=True, iou=0.65),
    "nanodet": OutputLayout(
        _nanodet, _table(_FOUR, 1), bgr=True, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), stretch=True
    ),
    "picodet": OutputLayout(_picodet, _eight, mean=_IMAGENET[0], std=_IMAGENET[1], stretch=True, cubic=True),
    "yolov8": OutputLayout(_yolov8, _table(_THREE, 2), std=(255.0, 255.0, 255.0), iou=0.7),
    "detr": OutputLayout(_detr, _pair, mean=_IMAGENET[0], std=_IMAGENET[1], stretch=True, iou=1.0),
    "ssd": OutputLayout(_ssd, _pair, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0), stretch=True, iou=0.45),
}


def find_layout(name: str | None, shapes: Shapes, size: tuple[int, int], where: str) -> str:
    """The name of the layout that is asked for, or that the outputs' shapes tell.

    Args:
        name: Of ``LAYOUTS``; None: by the shapes.
        shapes: Of the outputs.
        size: Height and width of the input.
        where: The file, for errors.

    Raises:
        DetkitError: No such layout, one that these outputs cannot be of, or shapes that fit none or several.
    """
    seen = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
    if name is None:
        fitting = [key for key, layout in LAYOUTS.items() if layout.fits(shapes, size)]
        if len(fitting) != 1:
            said = f"may be of {' or '.join(fitting)}" if fitting else "are of none that is known"
            do = f"name it: --layout {'|'.join(fitting or LAYOUTS)}"
            raise DetkitError(f"not a file of detkit export, and its outputs of {seen} {said}", where, do)
        return fitting[0]
    if name not in LAYOUTS:
        raise DetkitError(f"there is no layout {name!r}", "--layout", nearest(name, LAYOUTS))
    if not LAYOUTS[name].fits(shapes, size):
        what = f"outputs of {seen} are not {name}'s"
        raise DetkitError(what, where, "leave out --layout, and what fits the shapes is tried")
    return name
