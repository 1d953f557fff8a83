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

    strides and offsets are told in pixels of the image itself: a map of stride 16 at scale 0.5 has a stride of 32.
    Stages, weights and their names are the backbone's.

    Raises:
        ValueError: no scales, or one that is not above 0.
    """

    def __init__(self, backbone: StagedBackbone, scales: Sequence[float]) -> None:
        channels, strides, offsets = backbone.every
        super().__init__(
            list(backbone.stages),
            channels,
            strides,
            taps=backbone.taps,
            frozen=backbone.frozen,
            offsets=offsets,
            mean=backbone.mean,
            std=backbone.std,
            size=backbone.size,
        )
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales must be numbers above 0, got {list(scales)}")
        self.scales = tuple(scales)
        maps = [(scale, tap) for scale in scales for tap in range(len(self.taps))]
        self.order = sorted(range(len(maps)), key=lambda i: self.strides[maps[i][1]] / maps[i][0])
        chosen = [maps[i] for i in self.order]
        self.offsets = [self.offsets[tap] / scale for scale, tap in chosen]
        self.channels = [self.channels[tap] for _, tap in chosen]
        exact = [self.strides[tap] / scale for scale, tap in chosen]
        self.strides = [int(s) if s == int(s) else s for s in exact]  # type: ignore[misc]
        self.train(backbone.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W)."""
        maps: list[Tensor] = []
        for scale in self.scales:
            maps += super().forward(_scaled(x, scale))
        return [maps[i] for i in self.order]

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s, scale after scale."""
        maps: list[Tensor] = []
        for scale in self.scales:
            maps += super().frozen_maps(_scaled(x, scale))
        return maps

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        each = len(maps) // len(self.scales)
        found: list[Tensor] = []
        for first in range(0, len(maps), each):
            found += super().from_frozen(maps[first : first + each])
        return [found[i] for i in self.order]


def _scaled(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    # A whole number of pixels must not be rounded down by the last bit of the product.
    return F.interpolate(x, scale_factor=scale * (1 + 1e-9), mode="bilinear", antialias=scale < 1)
