"""Priors, the grids they come from, and the codes in which a network tells a box relative to its prior.

Every prior is a box (centre, width, height) with the stride of the cell that it belongs to, all in input pixels. So one
``Priors`` serves the grids of YOLO, the anchors of a region proposal network and the windows of a sliding classifier.

Two families of codes, each an ``encode`` and a ``decode`` that undo each other:

* R-CNN's deltas: the centre's shift in prior widths and the log of the size ratio.
* The grid codes of YOLO, which go through the **fractions of a cell** (b_x, b_y, b_w, b_h): b_x, b_y is the midpoint,
  0..1 inside the cell; b_w, b_h is the size in cells and may exceed 1. ``textbook`` predicts the fractions themselves,
  ``darknet`` a sigmoid for the midpoint and ``anchor * exp(t)`` for the size, ``bounded`` a midpoint from -0.5 to 1.5
  and ``anchor * (2 sigmoid(t))^2`` for the size, which cannot overflow and reaches the neighbouring cells.

All functions take float tensors, keep their device, and are plain differentiable formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

GridCode = Literal["textbook", "darknet", "bounded"]

# exp(10) = 22026 prior sizes: far beyond any image, far below overflow.
_LARGEST_EXPONENT = 10.0
_LARGEST_LOG = math.log(1000 / 16)  # of R-CNN's sizes over their priors', as in Faster R-CNN's implementations


class Priors(NamedTuple):
    """Reference boxes, in float32 input pixels.

    A row index (``rows``) may have any shape; the codes broadcast over leading dimensions.

    Attributes:
        centres: (A, 2) x and y.
        sizes: (A, 2) width and height.
        strides: (A, 1) of the cells that they belong to.
    """

    centres: Tensor
    sizes: Tensor
    strides: Tensor

    @property
    def boxes(self) -> Tensor:
        """(A, 4) xyxy."""
        return torch.cat((self.centres - self.sizes / 2, self.centres + self.sizes / 2), dim=-1)

    def rows(self, index: Tensor) -> Priors:
        """The priors at ``index`` (int64, any shape)."""
        return Priors(self.centres[index], self.sizes[index], self.strides[index])


class Level(NamedTuple):
    """One grid of priors, ordered row by row, cell by cell, then anchor by anchor.

    Attributes:
        height: In cells.
        width: In cells.
        stride: In input pixels.
        anchors: (k, 2) width and height in input pixels.
        first_centre: Of the first cell in pixels; half a stride unless the network has no padding.
    """

    height: int
    width: int
    stride: float
    anchors: Tensor
    first_centre: float | None = None

    @property
    def total(self) -> int:
        """The number of priors."""
        return self.height * self.width * len(self.anchors)

    @property
    def centre(self) -> float:
        """The first cell's centre in pixels, in x and in y."""
        return self.stride / 2 if self.first_centre is None else self.first_centre

    def priors(self) -> Priors:
        """The level's priors on the anchors' device; a cell's priors share its centre."""
        device, k = self.anchors.device, len(self.anchors)
        y, x = torch.meshgrid(
            torch.arange(self.height, device=device), torch.arange(self.width, device=device), indexing="ij"
        )
        cells = torch.stack((x, y), dim=-1).reshape(-1, 1, 2).expand(-1, k, 2).reshape(-1, 2)
        sizes = self.anchors.float().repeat(self.height * self.width, 1)
        strides = sizes.new_full((sizes.shape[0], 1), self.stride)
        return Priors(cells.float() * self.stride + self.centre, sizes, strides)


def grid_priors(levels: Sequence[Level]) -> Priors:
    """The priors of all levels, one after the other."""
    parts = [level.priors() for level in levels]
    return Priors(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def encode_deltas(boxes: Tensor, priors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """R-CNN's deltas: t_x = (x - x_a) / w_a, t_w = log(w / w_a) (Girshick et al. 2014, appendix C).

    Args:
        boxes: (..., 4) xyxy, of positive width and height.
        priors: (..., 4) xyxy, of positive width and height.
        weights: What the four are multiplied by.

    Returns:
        (..., 4): t_x, t_y, t_w, t_h.
    """
    centres, sizes = _centre_form(boxes)
    prior_centres, prior_sizes = _centre_form(priors)
    deltas = torch.cat(((centres - prior_centres) / prior_sizes, (sizes / prior_sizes).log()), dim=-1)
    return deltas * deltas.new_tensor(weights)


def decode_deltas(deltas: Tensor, priors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The boxes that ``encode_deltas`` turned into deltas.

    Args:
        deltas: (..., 4).
        priors: (..., 4) xyxy.
        weights: As for ``encode_deltas``.

    Returns:
        (..., 4) xyxy, at most 62.5 times their priors' sizes, so that an untrained network cannot overflow.
    """
    deltas = deltas / deltas.new_tensor(weights)
    centres, sizes = _centre_form(priors)
    centres = centres + deltas[..., :2] * sizes
    sizes = sizes * deltas[..., 2:].clamp(max=_LARGEST_LOG).exp()
    return _corner_form(centres, sizes)


def encode_fractions(boxes: Tensor, priors: Priors) -> Tensor:
    """Boxes (..., 4) xyxy as fractions of their priors' cells: (b_x, b_y, b_w, b_h), each (..., 4)."""
    centres, sizes = _centre_form(boxes)
    return torch.cat(((centres - priors.centres) / priors.strides + 0.5, sizes / priors.strides), dim=-1)


def decode_fractions(fractions: Tensor, priors: Priors) -> Tensor:
    """Boxes (..., 4) xyxy from fractions of the priors' cells; a negative size counts as 0."""
    centres = (fractions[..., :2] - 0.5) * priors.strides + priors.centres
    return _corner_form(centres, fractions[..., 2:].clamp(min=0) * priors.strides)


def to_fractions(code: Tensor, priors: Priors, kind: GridCode, xy_scale: float | Tensor | None = None) -> Tensor:
    """A network's grid code as fractions of cells.

    Args:
        code: (..., 4).
        priors: Of the cells.
        kind: ``textbook``, ``darknet`` or ``bounded``.
        xy_scale: The midpoint's range around the cell's centre: YOLOv4's ``scale_x_y``, or a tensor (..., 1) with one
            for each prior; by default 1 (YOLOv3) for ``darknet``, 2 for ``bounded``.

    Returns:
        (..., 4): b_x, b_y, b_w, b_h.

    Raises:
        ValueError: Another kind.
    """
    if kind == "textbook":
        return code
    if kind not in ("darknet", "bounded"):
        raise ValueError(f"a grid code is textbook, darknet or bounded, not {kind!r}")
    scale = xy_scale if xy_scale is not None else (1.0 if kind == "darknet" else 2.0)
    midpoint = (code[..., :2].sigmoid() - 0.5) * scale + 0.5
    anchors = priors.sizes / priors.strides
    if kind == "darknet":
        sizes = anchors * code[..., 2:].clamp(max=_LARGEST_EXPONENT).exp()
    else:
        sizes = anchors * (2 * code[..., 2:].sigmoid()).square()
    return torch.cat((midpoint, sizes), dim=-1)


def decode_grid(code: Tensor, priors: Priors, kind: GridCode, xy_scale: float | Tensor | None = None) -> Tensor:
    """Boxes (..., 4) xyxy from the grid code ``kind``: see ``to_fractions``."""
    return decode_fractions(to_fractions(code, priors, kind, xy_scale), priors)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _corner_form(centres: Tensor, sizes: Tensor) -> Tensor:
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1)
