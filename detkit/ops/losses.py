"""Loss terms of dense heads, one value per example, so that the caller weights, sums and counts them.

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
_NEVER = -1e4  # a logit whose probability, and its gradient, is 0 in float32


def iou_loss(pred: Tensor, boxes: Tensor, kind: BoxLoss = "ciou") -> Tensor:
    """1 - IoU of pairs of boxes; GIoU, DIoU or CIoU add their penalty.

    GIoU: Rezatofighi et al. 2019; DIoU and CIoU: Zheng et al. 2020, eq. 7 and 10.

    Args:
        pred: (N, 4) xyxy.
        boxes: (N, 4) xyxy.
        kind: The measure.

    Returns:
        (N,).
    """
    return 1 - box_ops.paired_iou(pred, boxes, kind)


def squared_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences over the last dimension: (N, D) -> (N,)."""
    return (pred - target).square().sum(-1)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    activation: Activation = "sigmoid",
    *,
    squared: bool = False,
    smoothing: float = 0.0,
    known: Tensor | None = None,
) -> Tensor:
    """Loss of class logits, summed over the classes.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        activation: "softmax": one class out of C, minus log-likelihood; "sigmoid": C independent yes/no questions,
            binary cross-entropy each.
        squared: The squared error of the probabilities instead.
        smoothing: Share of the target's mass that is spread evenly over all classes.
        known: (N, C) bool, the classes that count; None: all.

    Returns:
        (N,).
    """
    target = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / logits.shape[-1]
    if known is not None:
        logits, target = logits.masked_fill(~known, _NEVER), target * known
    if squared:
        return squared_loss(class_probabilities(logits, activation), target)
    if activation == "softmax":
        return -(logits.log_softmax(-1) * target).sum(-1)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def class_probabilities(logits: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """Probabilities of class logits (..., C)."""
    return logits.softmax(-1) if activation == "softmax" else logits.sigmoid()


def objectness_loss(logits: Tensor, target: Tensor, *, squared: bool = False) -> Tensor:
    """Loss of objectness logits, element by element.

    Args:
        logits: Any shape.
        target: Probabilities of that shape.
        squared: The squared error of the sigmoid instead of binary cross-entropy.

    Returns:
        That shape.
    """
    if squared:
        return (logits.sigmoid() - target).square()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def localization_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The textbook's squared loss of outputs P_c, b_x, b_y, b_h, b_w, c_1 .. c_C.

    With an object (the target's P_c is 1) the squares of all outputs are summed; without one only P_c counts, and the
    gradient of the other outputs is exactly 0 whatever they are.

    Args:
        pred: (..., 5 + C).
        target: (..., 5 + C).

    Returns:
        (...).

    Raises:
        ValueError: Different shapes.
    """
    if pred.shape != target.shape:
        raise ValueError(f"outputs and targets differ in shape: {tuple(pred.shape)} and {tuple(target.shape)}")
    squares = (pred - target).square()
    rest = squares[..., 1:].sum(-1)
    return squares[..., 0] + torch.where(target[..., 0] > 0, rest, torch.zeros_like(rest))


def dice_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - 2 sum p g / (sum p + sum g), the mean over the classes that an image has (Milletari et al. 2016, arXiv
    1606.04797, with sums instead of squares; ignored pixels are 0 in both).

    Args:
        found: (B, C, P) probabilities.
        wanted: (B, C, P) 0 or 1.

    Returns:
        (B,); 0 for an image without any.
    """
    there = wanted.any(-1)
    each = 1 - 2 * (found * wanted).sum(-1) / (found.sum(-1) + wanted.sum(-1)).clamp(min=1e-6)
    return (each * there).sum(1) / there.sum(1).clamp(min=1)


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """|q - sigmoid(z)|^beta * BCE(z, q), element by element (Generalized Focal Loss, Li et al. 2020, eq. 5).

    Args:
        logits: Any shape.
        quality: The score wanted, 0..1, of that shape.
        beta: How little an answer counts that is nearly right.

    Returns:
        That shape.
    """
    each = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return each * (quality - logits.sigmoid()).abs().pow(beta)


def varifocal_loss(logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """q * BCE(z, q) where q > 0, elsewhere alpha * sigmoid(z)^gamma * BCE(z, 0) (Zhang et al. 2021, eq. 2).

    Args:
        logits: Any shape.
        quality: The score wanted, 0..1, of that shape.
        alpha: Weight of the background.
        gamma: How little background counts that is nearly right.

    Returns:
        That shape.
    """
    each = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return each * torch.where(quality > 0, quality, alpha * logits.sigmoid().pow(gamma))


def distribution_focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy with the two whole numbers around ``wanted``, each by its nearness (Li et al. 2020, eq. 6).

    Args:
        logits: (..., R + 1) of the numbers 0 .. R.
        wanted: (...) in [0, R).

    Returns:
        (...).
    """
    low = wanted.floor()
    share, index = (wanted - low)[..., None], low.long()[..., None]
    log = logits.log_softmax(-1)
    return -((1 - share) * log.gather(-1, index) + share * log.gather(-1, index + 1))[..., 0]
