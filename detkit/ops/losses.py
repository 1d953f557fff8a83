"""Loss terms of dense heads, one value an example, so that the caller weights, sums and counts them.

Everything is computed in the dtype given (heads hand in float32, under mixed precision too) and is differentiable.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops import boxes as box_ops

BoxLoss = Literal["iou", "giou", "diou", "ciou"]
Activation = Literal["sigmoid", "softmax"]


def iou_loss(predicted: Tensor, boxes: Tensor, kind: BoxLoss = "ciou") -> Tensor:
    """1 - IoU of pairs of boxes, (N, 4) and (N, 4) xyxy -> (N,); GIoU, DIoU or CIoU add their penalty.

    GIoU: Rezatofighi et al. 2019; DIoU and CIoU: Zheng et al. 2020, eq. 7 and 10.
    """
    return 1 - box_ops.paired_iou(predicted, boxes, kind)


def squared_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Sum of squared differences over the last dimension: (N, D) -> (N,)."""
    return (predicted - wanted).square().sum(-1)


def class_loss(
    logits: Tensor, labels: Tensor, activation: Activation = "sigmoid", *, squared: bool = False, smoothing: float = 0.0
) -> Tensor:
    """Loss of class logits (N, C) against labels (N,) int64 -> (N,), summed over the classes.

    activation ``softmax``: one class out of C, minus log-likelihood; ``sigmoid``: C independent yes/no questions,
    binary cross-entropy each. ``squared``: the squared error of the probabilities instead. smoothing: share of the
    target's mass that is spread evenly over all classes.
    """
    wanted = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    if smoothing:
        wanted = wanted * (1 - smoothing) + smoothing / logits.shape[-1]
    if squared:
        return squared_loss(class_probabilities(logits, activation), wanted)
    if activation == "softmax":
        return -(logits.log_softmax(-1) * wanted).sum(-1)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)


def class_probabilities(logits: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """Probabilities of class logits (..., C)."""
    return logits.softmax(-1) if activation == "softmax" else logits.sigmoid()


def objectness_loss(logits: Tensor, wanted: Tensor, *, squared: bool = False) -> Tensor:
    """Loss of objectness logits against probabilities of the same shape, element by element.

    Binary cross-entropy, or the squared error of the sigmoid.
    """
    if squared:
        return (logits.sigmoid() - wanted).square()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def localization_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The textbook's squared loss of (..., 5 + C) outputs (P_c, b_x, b_y, b_h, b_w, c_1 .. c_C) -> (...).

    With an object (wanted P_c is 1) the squares of all outputs are summed; without one only P_c counts, and the
    gradient of the other outputs is exactly 0 whatever they are. Raises ValueError for different shapes.
    """
    if predicted.shape != wanted.shape:
        raise ValueError(f"outputs and targets differ in shape: {tuple(predicted.shape)} and {tuple(wanted.shape)}")
    squares = (predicted - wanted).square()
    rest = squares[..., 1:].sum(-1)
    return squares[..., 0] + torch.where(wanted[..., 0] > 0, rest, torch.zeros_like(rest))
