"""Feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3), light enough for a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Coarse maps are enlarged and added to finer ones, so that every level knows what the coarsest has seen.

    channels, strides: of the maps that come in, finest first; out: channels of every map that goes out; kernel: width
    of the smoothing convolution (odd); depthwise: smooth each channel by itself and then mix with 1 x 1 (as light
    detectors do) instead of the paper's full convolution. Unlike the paper's, each convolution has a BatchNorm.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self, channels: list[int], strides: list[int], *, out: int = 96, kernel: int = 5, depthwise: bool = True
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.channels, self.strides = [out] * len(channels), list(strides)
        self.lateral = nn.ModuleList(_unit(width, out, 1) for width in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(_unit(out, out, kernel, groups=out), nn.ReLU(inplace=True), _unit(out, out, 1))
            if depthwise
            else _unit(out, out, kernel)
            for _ in channels
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, channels[i], H_i, W_i) maps to (B, out, H_i, W_i) maps, finest first."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + F.interpolate(maps[level], size=maps[level - 1].shape[-2:])
        return [F.relu(smooth(x), inplace=True) for smooth, x in zip(self.smooth, maps, strict=True)]


def _unit(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
