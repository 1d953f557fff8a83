"""Landmarks: K points of an object, always the same ones in the same order (eyes, corners of a mouth)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.errors import DetkitError
from detkit.structures import Loss, Target


class Landmarks:
    """How many points per object there are, and how they are learned.

    Args:
        beta: Where their loss turns from square to line.
        points: K; 0: none.
        flip_pairs: Those that change places where an image is mirrored, such as left and right eye, counted from 0.
        point_gain: Weight of their loss.

    Raises:
        ValueError: An option out of its range.
    """

    def __init__(
        self, beta: float, *, points: int = 0, flip_pairs: tuple[tuple[int, int], ...] = (), point_gain: float = 5.0
    ) -> None:
        if points < 0 or beta <= 0:
            raise ValueError(f"points must be 0 or more and beta above 0, got points {points} and beta {beta}")
        named = [index for pair in flip_pairs for index in pair]
        if len(set(named)) < len(named) or not all(0 <= index < points for index in named):
            raise ValueError(f"flip_pairs names each of the {points} points, from 0, at most once; got {flip_pairs}")
        self.beta, self.points, self.flip_pairs, self.point_gain = beta, points, tuple(flip_pairs), point_gain
        self.protocol = "points" if points else "coco"

    def table(self, targets: Sequence[Target]) -> Tensor:
        """(N, K, 3) x, y, visible of the objects of all ``targets`` (torch), in their order; zeros for one without.

        Raises:
            DetkitError: The data has another number of points per object.
        """
        parts = [t.boxes.new_zeros((len(t), self.points, 3)) if t.points is None else t.points for t in targets]
        for part in parts:
            if part.shape[1] != self.points:
                what = f"the data has {part.shape[1]} points an object, the model {self.points}"
                raise DetkitError(what, "model.head.points", "give the data's number")
        return torch.cat(parts) if parts else torch.zeros(0, self.points, 3)

    def loss(self, found: Tensor, wanted: Tensor, boxes: Tensor, weight: Tensor | None = None) -> Loss:
        """Smooth L1 of each visible point's error over the square root of its object's area, counted by such points.

        Args:
            found: (N, K, 2), in the pixels of ``boxes``.
            wanted: (N, K, 3), x, y, visible.
            boxes: (N, 4), not empty.
            weight: (N,), of the objects; None: 1.
        """
        wanted, side = wanted.to(found), (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().to(found)
        row, point = (wanted[..., 2] > 0).nonzero(as_tuple=True)
        error = (found[row, point] - wanted[row, point, :2]) / side[row, None]
        each = F.smooth_l1_loss(error, torch.zeros_like(error), beta=self.beta, reduction="none").sum(1)
        total = (each if weight is None else each * weight[row]).sum()
        return Loss(total * self.point_gain, found.new_tensor(float(len(row))))
