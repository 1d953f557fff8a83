"""From regions to inputs of one size for a head's trunk: RoI pooling, RoI align, or crops of the pixels themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.ops.inputs import check_positive
from detkit.ops.roi import roi_align, roi_pool

Pool = Literal["align", "max", "crops"]
# ImageNet's usual image: a region of this size is looked at on the level of stride 16.
CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16


class RegionPooling(nn.Module):
    """Regions as (R, C, size, size) in channels_last strides, from the level that suits each one's size.

    Args:
        strides: Of the maps.
        pool: ``max`` (Girshick 2015), ``align`` (He et al. 2017) or ``crops``: each region warped to size x size with
            its surroundings (Girshick et al. 2014, appendix A; what lies outside the input is 0, the mean colour of
            normalised pixels), which goes with the backbone ``identity``.
        size: Cells along a side of what comes out.
        sampling: Samples along a side of align's bins, 0 for about one per cell.
        padding: Pixels of its surroundings on every side of a crop.
        levels: Only the finest so many maps are looked at, 0 for all.
        aligned: False puts align's cells half a cell off, as it first was.

    Raises:
        DetkitError: ``pool`` does not fit the maps.
        ValueError: An option out of its range.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        pool: Pool = "align",
        size: int = 7,
        sampling: int = 2,
        padding: int = 16,
        levels: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        check_positive(size=size)
        if not 0 <= levels <= len(strides):
            raise ValueError(f"levels must lie within 0..{len(strides)}, got {levels}")
        if (pool == "crops") != (list(strides) == [1]):
            do = "take backbone {name: identity, cnn: ...} for pool: crops, and another pool for feature maps"
            raise DetkitError(f"pool: {pool} does not fit maps of strides {strides}", "head.pool", do)
        if pool == "crops" and 2 * padding >= size:
            raise ValueError(f"padding of {padding} pixels on both sides leaves nothing of a size of {size}")
        self.strides, self.pool, self.size = tuple(strides[: levels or None]), pool, size
        self.sampling, self.padding, self.aligned = sampling, padding, aligned

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Regions of maps.

        Args:
            features: (B, C, H_l, W_l), of one C.
            rois: (R, 5), batch index and xyxy in input pixels.
        """
        features = features[: len(self.strides)]
        if len(features) == 1:
            return self._pooled(features[0], rois, self.strides[0])
        level = level_of(rois[:, 1:], self.strides)
        order = level.argsort(stable=True)
        counts = torch.bincount(level, minlength=len(features)).tolist()
        parts = rois[order].split(counts)
        rows = [
            self._pooled(feature, part, stride).permute(0, 2, 3, 1).flatten(1)
            for feature, part, stride in zip(features, parts, self.strides, strict=True)
        ]
        table = torch.cat(rows)[order.argsort()]
        return table.view(-1, self.size, self.size, features[0].shape[1]).permute(0, 3, 1, 2)

    def _pooled(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        if self.pool == "max":
            return roi_pool(feature, rois, self.size, 1 / stride)
        if self.pool == "align":
            return roi_align(feature, rois, self.size, 1 / stride, self.sampling, self.aligned)
        # Align with a sample a pixel is a resize that averages where it shrinks.
        return roi_align(feature, with_context(rois, self.size, self.padding), self.size, 1 / stride, 0)


def with_context(rois: Tensor, size: int, padding: int) -> Tensor:
    """Regions enlarged about their centres so that, once warped, they fill all but a border.

    Args:
        rois: (R, 5), batch index and xyxy.
        size: Pixels along a side that they are warped to.
        padding: Of these, the border on every side.
    """
    factor = size / (size - 2 * padding)
    centre, half = (rois[:, 1:3] + rois[:, 3:]) / 2, (rois[:, 3:] - rois[:, 1:3]) / 2 * factor
    return torch.cat((rois[:, :1], centre - half, centre + half), dim=1)


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The level that each box is pooled from.

    k = floor(k0 + log2(sqrt(w h) / 224)), k0 the level of stride 16 (Lin et al. 2017, arXiv 1612.03144, eq. 1), limited
    to the levels there are.

    Args:
        boxes: (R, 4).
        strides: Rising.

    Returns:
        (R,) int64 places in ``strides``.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
    wanted = torch.log2(sides / CANONICAL_SIDE + 1e-8).floor() + math.log2(CANONICAL_STRIDE)
    steps = wanted.new_tensor([math.log2(stride) for stride in strides])
    return torch.searchsorted(steps, wanted.contiguous(), right=True).sub(1).clamp(min=0)
