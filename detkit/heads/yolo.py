"""YOLO: k anchors at every cell of a grid, each with an objectness, a box and class scores.

Redmon et al. 2016 (the grid and the midpoint rule), YOLO9000 2017 (anchors by k-means), YOLOv3 2018 (several scales,
the ignore band). The layers' outputs are in Darknet's order: x, y, w, h, objectness, classes, anchor after anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detkit.errors import DetkitError
from detkit.heads.dense import DenseHead, DenseOptions, gather_objects
from detkit.ops import boxes as box_ops
from detkit.ops.anchors import deal
from detkit.ops.assign import Assignment, Objects, assign_midpoint, assign_ratio
from detkit.ops.coder import Level, Priors, decode_fractions, decode_grid, encode_fractions, grid_priors, to_fractions
from detkit.ops.losses import squared_loss
from detkit.options import takes
from detkit.structures import Target


class YOLO(DenseHead):
    """A dense head whose priors are anchors on grids.

    Args:
        channels: Of the feature maps.
        strides: Of the feature maps.
        num_classes: C.
        anchors: (width, height) pairs in input pixels for all levels together; sorted by area, the smallest go to the
            finest stride, equally many to each level. Or a list of such pairs for each level, taken as it is. ``auto``
            stands for k-means on the training boxes, and is replaced before the head is built.
        anchors_per_level: How many ``auto`` computes for each level.
        assign: ``ratio`` (anchors within a factor ``ratio`` of the object, in the midpoint's cell and, with
            ``neighbours``, the two nearest ones) or ``midpoint`` (the midpoint's cell and the anchor of best IoU only).
        ratio: See ``assign``.
        neighbours: See ``assign``.
        ignore_above: With ``midpoint``: priors whose predicted box overlaps an object by more than this IoU are not
            negative either, Darknet's rule with 0.7.
        coder: How a box is told relative to its cell and anchor, ``bounded``, ``darknet`` or ``textbook``
            (``detkit.ops.coder``).
        xy_scale: Darknet's scale_x_y, one for all levels or one for each.
        options: ``DenseOptions``; with ``box_loss: squared`` the squared error of midpoint and size in fractions of the
            cell.

    Raises:
        DetkitError: anchors that do not divide or are no sizes, or options that do not go together.
        ValueError: Numbers of anchors, maps and options that do not fit.
    """

    @takes(DenseOptions)
    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        anchors: Literal["auto"] | list[tuple[float, float]] | list[list[tuple[float, float]]] = "auto",
        anchors_per_level: int = 3,
        assign: Literal["ratio", "midpoint"] = "ratio",
        ratio: float = 3.5,
        neighbours: bool = True,
        ignore_above: float | None = None,
        coder: Literal["bounded", "darknet", "textbook"] = "bounded",
        xy_scale: float | list[float] | None = None,
        **options: object,
    ) -> None:
        if isinstance(anchors, str):
            raise ValueError(f"anchors: {anchors} must be replaced by pairs of numbers before the head is built")
        if ignore_above is not None and assign != "midpoint":
            raise DetkitError("ignore_above belongs to assign: midpoint", "head.ignore_above", "leave it out")
        scales = xy_scale if isinstance(xy_scale, list) else [xy_scale or 1.0] * len(strides)
        if len(scales) != len(strides):
            raise ValueError(f"xy_scale needs one number per level: {len(strides)}, not {len(scales)}")
        if neighbours and assign == "ratio" and coder == "darknet" and min(scales) < 2:
            what = "coder: darknet keeps midpoints inside their cell and cannot answer from neighbouring ones"
            raise DetkitError(what, "head.coder", "take coder: bounded, or neighbours: false")
        super().__init__(channels, strides, num_classes, anchors=split_anchors(anchors, strides), **options)
        self.assign_rule, self.ratio, self.neighbours, self.ignore_above = assign, ratio, neighbours, ignore_above
        self.coder, self.xy_scale = coder, xy_scale

    def decode(self, code: Tensor, priors: Priors) -> Tensor:
        """Grid codes (..., 4) as boxes (..., 4) xyxy in input pixels."""
        return decode_grid(code, priors, self.coder, self._scale(priors))

    def _scale(self, priors: Priors) -> float | Tensor | None:
        """``xy_scale``, as a column (..., 1) where it differs from level to level."""
        if not isinstance(self.xy_scale, list):
            return self.xy_scale
        scale = torch.ones_like(priors.strides)
        for stride, value in zip(self.strides, self.xy_scale, strict=True):
            scale = torch.where(priors.strides == stride, value, scale)
        return scale

    def assign(self, priors: Priors, objects: Objects, raw: dict[str, Tensor]) -> Assignment:
        """By the rule chosen; see ``detkit.ops.assign`` for collisions and ignored regions."""
        levels, images = self.levels(raw), len(raw["boxes"])
        if self.assign_rule == "ratio":
            return assign_ratio(levels, objects, images, ratio=self.ratio, neighbours=self.neighbours)
        predicted = None if self.ignore_above is None else self.decode(raw["boxes"].detach(), priors)
        return assign_midpoint(levels, objects, images, ignore_above=self.ignore_above, pred=predicted)

    def box_terms(self, code: Tensor, priors: Priors, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the squared loss in fractions of a cell, the textbook's, to ``DenseHead``'s."""
        if self.options.box_loss != "squared":
            return super().box_terms(code, priors, boxes)
        fractions = to_fractions(code, priors, self.coder, self._scale(priors))
        iou = box_ops.paired_iou(decode_fractions(fractions.detach(), priors), boxes)
        return squared_loss(fractions, encode_fractions(boxes, priors)), iou


def split_anchors(anchors: Sequence[Sequence[Any]], strides: Sequence[float]) -> Sequence[Sequence[Sequence[float]]]:
    """Anchors (width, height) sorted by area and dealt to the levels, the smallest to the finest stride.

    Args:
        anchors: Pairs; or a list of them for each stride, which is only checked.
        strides: Of the levels.

    Returns:
        One list per stride, in the order of ``strides``.

    Raises:
        DetkitError: They do not divide or are no sizes.
    """
    dealt = bool(anchors) and bool(anchors[0]) and isinstance(anchors[0][0], Sequence)
    levels = [[tuple(float(v) for v in pair) for pair in level] for level in (anchors if dealt else [anchors])]
    pairs = [pair for level in levels for pair in level]
    if not pairs or any(len(pair) != 2 or min(pair) <= 0 for pair in pairs):
        do = "[[width, height], ...] in pixels"
        raise DetkitError("anchors must be pairs of positive numbers", "head.anchors", do)
    if not dealt:
        pairs.sort(key=lambda pair: pair[0] * pair[1])
        return deal(pairs, strides, "anchors", "head.anchors")
    if len(levels) != len(strides) or not all(levels):
        what = f"anchors are given for {len(levels)} levels, the head has {len(strides)}"
        raise DetkitError(what, "head.anchors", "give a list of [width, height] for each level")
    return levels


def textbook_target(
    target: Target, grid: int, anchors: Sequence[Sequence[float]], num_classes: int, size: tuple[int, int]
) -> tuple[Tensor, int]:
    """The y of textbooks: (S, S, k, 5 + C) float32 and the number of objects that lost their slot to another.

    Each slot of row, column, anchor holds (P_c, b_x, b_y, b_h, b_w, c_1 .. c_C): P_c is 1 where an object has its
    midpoint in the cell and its best IoU with the anchor; b_x, b_y lie in 0..1 inside the cell; b_h, b_w are in cells
    and may exceed 1. Everything else is 0. Two objects for one slot: the smaller has it, of equal ones the first.

    Args:
        target: Torch, in pixels of the image.
        grid: S.
        anchors: (width, height) pairs in the same pixels.
        num_classes: C.
        size: Height and width of the image.
    """
    cell = torch.tensor((size[1] / grid, size[0] / grid), device=target.boxes.device)
    scaled = Target(target.boxes / cell.repeat(2), target.labels, target.crowd, target.difficult)
    level = Level(grid, grid, 1.0, torch.tensor(anchors, device=cell.device).float().reshape(-1, 2) / cell)
    objects = gather_objects([scaled], cell.device)
    assignment = assign_midpoint([level], objects, 1)
    _, prior, row = assignment.positive.unbind(1)
    fractions = encode_fractions(objects.boxes[row], level.priors().rows(prior))
    y = torch.zeros((level.total, 5 + num_classes), device=cell.device)
    y[prior, 0] = 1
    y[prior, 1:5] = fractions[:, [0, 1, 3, 2]]
    y[prior, 5 + objects.labels[row]] = 1
    return y.reshape(grid, grid, -1, 5 + num_classes), int(assignment.lost)


class TextbookBoxes(NamedTuple):
    """boxes (N, 4) float32 xyxy pixels, scores (N,) float32 = P_c, labels (N,) int64 = the largest c."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def textbook_boxes(y: Tensor, size: tuple[int, int], threshold: float = 0.6) -> TextbookBoxes:
    """The boxes in a textbook's y; non-max suppression is up to the caller (``detkit.batched_nms``).

    Args:
        y: (S, S, k, 5 + C), as ``textbook_target`` makes it.
        size: Height and width of the image.
        threshold: Slots with P_c not above it are discarded.
    """
    rows, columns, k = y.shape[:3]
    level = Level(rows, columns, 1.0, torch.ones((k, 2), device=y.device))
    table = y.reshape(level.total, -1)
    kept = (table[:, 0] > threshold).nonzero().squeeze(1)
    chosen = table[kept]
    boxes = decode_fractions(chosen[:, [1, 2, 4, 3]], grid_priors([level]).rows(kept))
    cell = boxes.new_tensor((size[1] / columns, size[0] / rows))
    return TextbookBoxes(boxes * cell.repeat(2), chosen[:, 0], chosen[:, 5:].argmax(1))
