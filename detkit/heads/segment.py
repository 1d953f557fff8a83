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


class Upsample(nn.Module):
    """Maps (B, C, H, W) made ``factor`` times as large: bilinear, or by a kernel per channel that begins as bilinear.

    Args:
        channels: C.
        factor: 1 changes nothing.
        upsampling: Learned is Long et al.'s transposed convolution (2015, arXiv 1411.4038, section 3.3).
    """

    def __init__(self, channels: int, factor: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.factor, self.layer = factor, None
        if upsampling == "learned" and factor > 1:
            size = 2 * factor - factor % 2
            self.layer = nn.ConvTranspose2d(
                channels, channels, size, factor, (size - factor) // 2, groups=channels, bias=False
            )
            tent = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
            with torch.no_grad():
                self.layer.weight.copy_(tent[:, None] * tent)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is not None:
            return self.layer(x)
        return x if self.factor == 1 else F.interpolate(x, scale_factor=self.factor, mode="bilinear")


def _of_size(x: Tensor, like: Tensor) -> Tensor:
    """Maps made as large as others: those of networks without padding are somewhat smaller than their strides say."""
    size = like.shape[2:]
    return x if x.shape[2:] == size else F.interpolate(x, tuple(size), mode="bilinear")


class FCN(nn.Module):
    """Class scores of every map, the coarse ones enlarged and added to the finer ones (Long et al. 2015, section 4.2).

    Args:
        channels: Of the maps, finest first; of strides 8, 16, 32 it is FCN-8s, of 32 alone FCN-32s.
        factors: By which each map but the finest is enlarged to the next finer one.
        outputs: Scores per cell.
        upsampling: See ``Upsample``.
    """

    def __init__(self, channels: Sequence[int], factors: Sequence[int], outputs: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(count, outputs, 1) for count in channels)
        self.ups = nn.ModuleList(Upsample(outputs, factor, upsampling) for factor in factors)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, outputs, H, W) float32, of the finest map's size."""
        pairs = zip(self.scores, features, strict=True)
        *finer, x = (exact_output(layer, feature) for layer, feature in pairs)  # type: ignore[arg-type]
        for up, score in zip(reversed(self.ups), reversed(finer), strict=True):
            x = _of_size(up(x), score) + score
        return x


class UNet(nn.Module):
    """The coarse map enlarged, joined with the finer one and convolved, step by step (Ronneberger et al. 2015, arXiv
    1505.04597), with one convolution a step, BatchNorm and padding.

    Args:
        channels: Of the maps, finest first.
        factors: As ``FCN``'s.
        outputs: Scores per cell.
        upsampling: See ``Upsample``.
        width: Channels after each convolution.
    """

    def __init__(
        self, channels: Sequence[int], factors: Sequence[int], outputs: int, upsampling: Upsampling, width: int
    ) -> None:
        super().__init__()
        deeper = [*[width] * (len(channels) - 2), channels[-1]]
        self.ups = nn.ModuleList(map(Upsample, deeper, factors, [upsampling] * len(deeper)))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a + b, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
            for a, b in zip(channels[:-1], deeper, strict=False)
        )
        self.scores = nn.Conv2d(width if self.blocks else channels[-1], outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, outputs, H, W) float32, of the finest map's size."""
        *finer, x = features
        for up, block, feature in zip(reversed(self.ups), reversed(self.blocks), reversed(finer), strict=True):
            x = block(torch.cat((_of_size(up(x), feature), feature), dim=1))
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
        first, *factors = (int(step) for step in steps)
        self.num_classes, self.background, outputs = num_classes, background, num_classes + background
        self.gains = {"pixels": pixel_gain, "dice": dice_gain}
        fcn = decoder == "fcn"
        parts = (channels, factors, outputs, upsampling)
        self.decoder = FCN(*parts) if fcn else UNet(*parts, width)
        self.last = Upsample(outputs, first, "bilinear")  # FCN-8s fixes its last one, too
        lasts = [f"decoder.scores.{k}." for k in range(len(channels))] if fcn else ["decoder.scores."]
        self.class_rows = dict.fromkeys(lasts, (0, 1, int(background)))

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """pixels (B, C or C + 1, H, W) float32 logits of the input's size; the last, with ``background``, is no
        class."""
        return {"pixels": self.last(self.decoder(features))}

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
            if target.mask is not None:
                mask = target.mask[: place.shape[0], : place.shape[1]]
                place[: mask.shape[0], : mask.shape[1]] = mask
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
        scores, labels = raw["pixels"].softmax(1).max(1)
        wanted = range(self.num_classes) if limits.classes is None else limits.classes
        return [
            _regions(score[:height, :width], label[:height, :width], wanted, limits)
            for score, label, (height, width) in zip(scores, labels, sizes.tolist(), strict=True)
        ]


def _regions(score: Tensor, label: Tensor, wanted: Sequence[int], limits: Limits) -> Detections:
    """One image's detections of (h, w) probabilities and labels."""
    there = [k for k in label.unique().tolist() if k in wanted]
    masks = torch.stack([label == k for k in there]) if there else label.new_zeros((0, *label.shape), dtype=torch.bool)
    means = (masks * score).flatten(1).sum(1) / masks.flatten(1).sum(1)
    ends = []
    for axis in (1, 2):  # of columns, then rows
        inside = masks.any(axis)
        cells = torch.arange(inside.shape[1], device=inside.device)
        ends.append(torch.where(inside, cells, inside.shape[1]).amin(1))
        ends.append(torch.where(inside, cells, -1).amax(1) + 1)
    boxes = torch.stack(ends, dim=1)[:, [0, 2, 1, 3]].to(score)
    order = means.argsort(descending=True, stable=True)
    order = order[means[order] >= limits.conf][: limits.max_detections]
    return Detections(boxes, means, label.new_tensor(there), extra={"masks": masks})[order]
