"""Semantic segmentation: the class of each pixel, from maps of several strides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.arrays import as_numpy
from detkit.backbones.layers import conv_block
from detkit.heads.layers import exact_output
from detkit.heads.masks import class_regions
from detkit.interfaces import Head
from detkit.ops.losses import dice_loss
from detkit.rows import BACKGROUND, IGNORED
from detkit.structures import Detections, Limits, Loss, Target

Upsampling = Literal["bilinear", "learned"]


def upsampling_layer(channels: int, factor: int, upsampling: Upsampling) -> nn.Module:
    """What makes maps (B, C, H, W) ``factor`` times as large before ``_enlarged`` makes them fit.

    Args:
        channels: C.
        factor: Whole.
        upsampling: ``learned`` is Long et al.'s transposed convolution (2015, arXiv 1411.4038, section 3.3), a kernel
            per channel that begins as bilinear; ``bilinear`` leaves all to ``_enlarged``.
    """
    if upsampling == "bilinear" or factor == 1:
        return nn.Identity()
    size = 2 * factor - factor % 2
    layer = nn.ConvTranspose2d(channels, channels, size, factor, (size - factor) // 2, groups=channels, bias=False)
    tent = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    layer.weight.data.copy_(tent[:, None] * tent)
    return layer


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps of (height, width) ``size``; of networks without padding they are smaller than their strides say."""
    return x if list(x.shape[2:]) == list(size) else F.interpolate(x, (size[0], size[1]), mode="bilinear")


class Decoder(nn.Module):
    """Maps of several strides to class scores: the coarse ones are enlarged step by step and joined with the finer.

    FCN scores all maps and adds (Long et al. 2015, section 4.2): of strides 8, 16 and 32 it is FCN-8s, of 32 alone
    FCN-32s. U-Net joins and convolves maps, and scores the last (Ronneberger et al. 2015, arXiv 1505.04597), with one
    convolution a step, BatchNorm and padding.

    Args:
        channels: Of the maps, finest first.
        factors: By which each map but the finest is enlarged to the next finer one.
        outputs: Scores per cell.
        upsampling: See ``upsampling_layer``.
        width: Channels after each convolution of U-Net; 0: FCN.
    """

    def __init__(
        self, channels: Sequence[int], factors: Sequence[int], outputs: int, upsampling: Upsampling, width: int
    ) -> None:
        super().__init__()
        self.adds, count = width == 0, len(factors)
        coarser = [outputs] * count if self.adds else [*[width] * (count - 1), channels[-1]]
        steps = list(zip(channels, coarser, factors, strict=False))
        self.ups = nn.ModuleList(upsampling_layer(below, factor, upsampling) for _, below, factor in steps)
        self.blocks = nn.ModuleList(conv_block(a + b, width, 3, act="relu") for a, b, _ in steps if width)
        scored = channels if self.adds else [width if count else channels[-1]]
        layers = [nn.Conv2d(each, outputs, 1) for each in scored]
        self.scores: Any = nn.ModuleList(layers) if self.adds else layers[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, outputs, H, W) float32, of the finest map's size."""
        *finer, x = map(exact_output, self.scores, features) if self.adds else features
        for k in reversed(range(len(finer))):
            x = _enlarged(self.ups[k](x), finer[k].shape[2:])
            x = x + finer[k] if self.adds else self.blocks[k](torch.cat((x, finer[k]), dim=1))
        return x if self.adds else exact_output(self.scores, x)


class Segment(Head, nn.Module):
    """Semantic segmentation: a softmax over the classes at each pixel.

    An answer is a detection per class of the image: ``extra["masks"]`` has its pixels (those of which it is the most
    probable class), the box bounds them, the score is their mean probability. Which strides are joined, the backbone's
    ``taps`` say.

    Args:
        channels: Of the feature maps, finest first.
        strides: Of the feature maps.
        num_classes: C.
        decoder: ``fcn`` adds scores of all maps, ``unet`` convolves maps that are joined.
        upsampling: ``bilinear``, or ``learned``: transposed convolutions.
        width: Channels of ``unet``.
        background: Pixels may belong to no class. Without, those that the labels give none are ignored.
        pixel_gain: Weight of the cross-entropy of pixels.
        dice_gain: Weight of the dice loss.

    Raises:
        ValueError: Strides that are no multiples of each other, or an option out of its range.
    """

    protocol = "pixels"
    takes_masks = True
    allows_mosaic = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        decoder: Literal["fcn", "unet"] = "fcn",
        upsampling: Upsampling = "bilinear",
        width: int = 64,
        background: bool = True,
        pixel_gain: float = 1.0,
        dice_gain: float = 0.0,
    ) -> None:
        super().__init__()
        steps = (strides[0], *(b / a for a, b in pairwise(strides)))
        if width < 1 or min(pixel_gain, dice_gain) < 0 or pixel_gain + dice_gain == 0:
            raise ValueError("width must be at least 1, and of pixel_gain and dice_gain none below 0 and one above")
        if any(step < 1 or step != int(step) for step in steps):
            raise ValueError(f"maps are joined whose strides are multiples of the finer ones', got {list(strides)}")
        self.first, *factors = map(int, steps)
        self.num_classes, self.background, outputs = num_classes, background, num_classes + background
        self.gains = {"pixels": pixel_gain, "dice": dice_gain}
        self.decoder = Decoder(channels, factors, outputs, upsampling, width if decoder == "unet" else 0)
        self.class_rows = {"decoder.scores.": (0, 1, int(background))}

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """pixels (B, C or C + 1, H, W) float32 logits of the input's size; the last, with ``background``, is no
        class."""
        scores = self.decoder(features)  # enlarged by bilinear interpolation, as FCN-8s does at last
        return {"pixels": _enlarged(scores, [side * self.first for side in scores.shape[2:]])}

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """``pixels``, the cross-entropy counted by pixels that are not ignored, and ``dice``, counted by images; those
        of a gain above 0.

        Args:
            raw: What ``raw`` returned.
            targets: Per image, with ``mask`` (h, w) of the image's part of the input; one without teaches nothing.
            sizes: (B, 2) height, width.
        """
        logits = raw["pixels"]
        labels = logits.new_full((len(targets), *logits.shape[2:]), IGNORED, dtype=torch.int64)
        for place, target in zip(labels, targets, strict=True):
            if (mask := target.mask) is not None:
                place[: mask.shape[0], : mask.shape[1]] = mask[: place.shape[0], : place.shape[1]]
        labels[labels == BACKGROUND] = self.num_classes if self.background else IGNORED
        known = labels != IGNORED
        terms = {}
        if self.gains["pixels"]:
            each = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            terms["pixels"] = Loss(each * self.gains["pixels"], known.sum().to(each))
        if self.gains["dice"]:
            wanted = F.one_hot(labels.masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
            each = dice_loss((logits.softmax(1) * known[:, None]).flatten(2), wanted.flatten(2).to(logits))
            terms["dice"] = Loss(each.sum() * self.gains["dice"], known.flatten(1).any(1).sum().to(each))
        return terms

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch on the CPU, input pixels, no class names), best first, with ``masks`` (N, h, w) bool of the
        image's part (``sizes``) of the input; classes whose mean probability is below ``limits.conf`` are left out."""
        score, label = map(as_numpy, raw["pixels"].softmax(1).max(1))
        parts = zip(score, label, sizes.tolist(), strict=True)
        return [class_regions(p[:h, :w], k[:h, :w], self.num_classes, limits).to("cpu") for p, k, (h, w) in parts]
