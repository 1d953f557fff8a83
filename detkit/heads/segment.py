"""Semantic segmentation: the class of each pixel, from maps of several strides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.heads.layers import exact_output
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


class FCN(nn.Module):
    """Class scores of every map, the coarse ones enlarged and added to the finer ones (Long et al. 2015, section 4.2).

    Args:
        channels: Of the maps, finest first; of strides 8, 16, 32 it is FCN-8s, of 32 alone FCN-32s.
        factors: By which each map but the finest is enlarged to the next finer one.
        outputs: Scores per cell.
        upsampling: See ``upsampling_layer``.
    """

    def __init__(self, channels: Sequence[int], factors: Sequence[int], outputs: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(count, outputs, 1) for count in channels)
        self.ups = nn.ModuleList(upsampling_layer(outputs, factor, upsampling) for factor in factors)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, outputs, H, W) float32, of the finest map's size."""
        *finer, x = map(exact_output, self.scores, features)  # type: ignore[arg-type]
        for up, score in zip(reversed(self.ups), reversed(finer), strict=True):
            x = _enlarged(up(x), score.shape[2:]) + score
        return x


class UNet(nn.Module):
    """The coarse map enlarged, joined with the finer one and convolved, step by step (Ronneberger et al. 2015, arXiv
    1505.04597), with one convolution a step, BatchNorm and padding.

    Args:
        channels: Of the maps, finest first.
        factors: As ``FCN``'s.
        outputs: Scores per cell.
        upsampling: See ``upsampling_layer``.
        width: Channels after each convolution.
    """

    def __init__(
        self, channels: Sequence[int], factors: Sequence[int], outputs: int, upsampling: Upsampling, width: int
    ) -> None:
        super().__init__()
        deeper = [*[width] * (len(channels) - 2), channels[-1]]
        self.ups = nn.ModuleList(map(upsampling_layer, deeper, factors, [upsampling] * len(deeper)))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a + b, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
            for a, b in zip(channels[:-1], deeper, strict=False)
        )
        self.scores = nn.Conv2d(width if self.blocks else channels[-1], outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, outputs, H, W) float32, of the finest map's size."""
        *finer, x = features
        for up, block, feature in zip(reversed(self.ups), reversed(self.blocks), reversed(finer), strict=True):
            x = block(torch.cat((_enlarged(up(x), feature.shape[2:]), feature), dim=1))
        return exact_output(self.scores, x)


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
        fcn, parts = decoder == "fcn", (channels, factors, outputs, upsampling)
        self.decoder = FCN(*parts) if fcn else UNet(*parts, width)
        lasts = [f"decoder.scores.{k}." for k in range(len(channels))] if fcn else ["decoder.scores."]
        self.class_rows = dict.fromkeys(lasts, (0, 1, int(background)))

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
                inside = place[: mask.shape[0], : mask.shape[1]]
                inside.copy_(mask[: place.shape[0], : place.shape[1]])
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
        """Detections (torch, input pixels, without class names), best first, with ``masks`` (N, h, w) bool of the
        image's part (``sizes``) of the input; classes whose mean probability is below ``limits.conf`` are left out."""
        wanted = range(self.num_classes) if limits.classes is None else limits.classes
        parts = zip(*raw["pixels"].softmax(1).max(1), sizes.tolist(), strict=True)
        return [_regions(score[:h, :w], label[:h, :w], wanted, limits) for score, label, (h, w) in parts]


def _regions(score: Tensor, label: Tensor, wanted: Sequence[int], limits: Limits) -> Detections:
    """One image's detections of (h, w) probabilities and labels."""
    from torchvision.ops import masks_to_boxes

    labels = label.new_tensor([k for k in label.unique().tolist() if k in wanted])
    masks = label == labels[:, None, None]
    means = (masks * score).sum((1, 2)) / masks.sum((1, 2))
    boxes = masks_to_boxes(masks).to(score) + score.new_tensor([0, 0, 1, 1])  # it ends in the last row and column
    order = means.argsort(descending=True, stable=True)
    order = order[means[order] >= limits.conf][: limits.max_detections]
    return Detections(boxes, means, labels, extra={"masks": masks})[order]
