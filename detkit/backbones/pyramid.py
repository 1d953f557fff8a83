"""One network on an image at several scales, so that windows of one size meet objects of all (OverFeat, Sermanet et
al. 2014, arXiv 1312.6229, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from detkit.backbones.base import StagedBackbone


class Pyramid(StagedBackbone):
    """``backbone`` on the image enlarged or reduced by each of ``scales``; its maps of all of them, finest first.

    Strides and offsets are told in pixels of the image itself: a map of stride 16 at scale 0.5 has a stride of 32.
    Stages, weights and their names are the backbone's.

    Args:
        backbone: The network.
        scales: Of the image.

    Raises:
        ValueError: No scales, or one that is not above 0.
    """

    def __init__(self, backbone: StagedBackbone, scales: Sequence[float]) -> None:
        super().__init__(list(backbone.stages), **backbone.every, taps=backbone.taps, frozen=backbone.frozen)
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales must be numbers above 0, got {list(scales)}")
        self.scales = tuple(scales)
        maps = [
            (self.strides[i] / scale, self.offsets[i] / scale, c)
            for scale in scales
            for i, c in enumerate(self.channels)
        ]
        self.order = sorted(range(len(maps)), key=lambda i: maps[i][0])
        chosen = [maps[i] for i in self.order]
        self.strides = [int(stride) if stride == int(stride) else stride for stride, _, _ in chosen]
        self.offsets, self.channels = [offset for _, offset, _ in chosen], [channels for _, _, channels in chosen]
        self.train(backbone.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W)."""
        maps = [y for scale in self.scales for y in super(Pyramid, self).forward(_scaled(x, scale))]
        return [maps[i] for i in self.order]

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s, scale after scale."""
        return [y for scale in self.scales for y in super(Pyramid, self).frozen_maps(_scaled(x, scale))]

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        each = len(maps) // len(self.scales)
        parts = [maps[first : first + each] for first in range(0, len(maps), each)]
        found = [y for part in parts for y in super(Pyramid, self).from_frozen(part)]
        return [found[i] for i in self.order]


def _scaled(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    # A whole number of pixels must not be rounded down by the last bit of the product.
    return F.interpolate(x, scale_factor=scale * (1 + 1e-9), mode="bilinear", antialias=scale < 1)


def at_scales(backbone: StagedBackbone, scales: Sequence[float]) -> StagedBackbone:
    """``backbone`` itself where ``scales`` is 1 alone, else a ``Pyramid`` of it."""
    return backbone if tuple(scales) == (1.0,) else Pyramid(backbone, scales)
