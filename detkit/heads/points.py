"""Landmarks: K points of an object, always the same ones in the same order (eyes, corners of a mouth)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.errors import DetkitError
from detkit.structures import Loss, Target


def check_points(points: int, flip_pairs: Sequence[tuple[int, int]], beta: float) -> None:
    """Raises ValueError for arguments of a head that make no sense."""
    if points < 0 or beta <= 0:
        raise ValueError(f"points must be 0 or more and beta above 0, got points {points} and beta {beta}")
    named = [index for pair in flip_pairs for index in pair]
    if len(set(named)) < len(named) or not all(0 <= index < points for index in named):
        raise ValueError(f"flip_pairs names each of the {points} points, from 0, at most once; got {flip_pairs}")


def points_table(targets: Sequence[Target], points: int) -> Tensor:
    """(N, K, 3) x, y, visible of the objects of all ``targets`` (torch), in their order; a target without has zeros.

    Raises:
        DetkitError: the data has another number of points an object.
    """
    parts = []
    for target in targets:
        known = target.boxes.new_zeros((len(target), points, 3)) if target.points is None else target.points
        if known.shape[1] != points:
            what = f"the data has {known.shape[1]} points an object, the model {points}"
            raise DetkitError(what, "model.head.points", "give the data's number")
        parts.append(known)
    return torch.cat(parts) if parts else torch.zeros(0, points, 3)


def points_loss(found: Tensor, wanted: Tensor, boxes: Tensor, beta: float, weight: Tensor | None = None) -> Loss:
    """Smooth L1 of each visible point's error over the square root of its object's area, counted by such points.

    found (N, K, 2) and wanted (N, K, 3: x, y, visible) in the pixels of boxes (N, 4), which are not empty; beta: where
    it turns from square to line; weight (N,): of the objects, default 1.
    """
    wanted, side = wanted.to(found), (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().to(found)
    row, point = (wanted[..., 2] > 0).nonzero(as_tuple=True)
    error = (found[row, point] - wanted[row, point, :2]) / side[row, None]
    each = F.smooth_l1_loss(error, torch.zeros_like(error), beta=beta, reduction="none").sum(1)
    return Loss((each if weight is None else each * weight[row]).sum(), found.new_tensor(float(len(row))))
