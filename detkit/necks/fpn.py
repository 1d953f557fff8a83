"""Feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3), light enough for a CPU.

With ``bottom_up`` a path aggregation network (Liu et al. 2018, arXiv 1803.01534, section 3.1): a second way, from fine
to coarse, on which places travel to the coarse maps in a few steps instead of through the whole backbone.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.interfaces import Neck


class FPN(Neck, nn.Module):
    """Coarse maps are enlarged and added to finer ones, so that every level knows what the coarsest has seen.

    Unlike the papers', each convolution has a BatchNorm, and a ReLU comes last.

    Args:
        channels: Of the maps that come in, finest first.
        strides: Of the maps that come in.
        out: Channels of every map that goes out.
        kernel: Width of the smoothing convolution, odd.
        depthwise: Smooth each channel by itself and then mix with 1 x 1 (as light detectors do) instead of the paper's
            full convolution.
        bottom_up: Add the second way.
        plain: As in the paper, neither BatchNorm nor ReLU.
        extra: One more level, every second cell of the coarsest, for the largest anchors of a proposal network (section
            4.1).

    Raises:
        ValueError: An even kernel, plain with what is not in the paper, or bottom_up between strides that do not divide
            one another.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        *,
        out: int = 96,
        kernel: int = 5,
        depthwise: bool = True,
        bottom_up: bool = False,
        plain: bool = False,
        extra: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if plain and (depthwise or bottom_up):
            raise ValueError("plain goes with depthwise: false and without bottom_up")
        if bottom_up and any(coarse % fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"bottom_up needs strides that divide one another, not {strides}")
        self.channels, self.strides = [out] * (len(channels) + extra), [*strides, *[2 * strides[-1]] * extra]
        self.plain, self.extra = plain, extra
        self.lateral = nn.ModuleList(_unit(width, out, 1, plain=plain) for width in channels)
        self.smooth = nn.ModuleList(_smoothing(out, kernel, depthwise, plain) for _ in channels)
        ratios = [coarse // fine for fine, coarse in pairwise(strides)] if bottom_up else []
        self.shrink = nn.ModuleList(
            _unit(out, out, max(3, ratio | 1), groups=out if depthwise else 1, stride=ratio) for ratio in ratios
        )
        self.join = nn.ModuleList(_smoothing(out, kernel, depthwise) for _ in ratios)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, channels[i], H_i, W_i) maps to (B, out, H_i, W_i) maps, finest first."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + F.interpolate(maps[level], size=maps[level - 1].shape[-2:])
        maps = [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]
        if not self.plain:
            maps = [F.relu(x, inplace=True) for x in maps]
        for level, (shrink, join) in enumerate(zip(self.shrink, self.join, strict=True)):
            maps[level + 1] = F.relu(join(maps[level + 1] + shrink(maps[level])), inplace=True)
        return [*maps, maps[-1][..., ::2, ::2]] if self.extra else maps


def _unit(
    inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1, plain: bool = False
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=plain)
    return nn.Sequential(conv) if plain else nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _smoothing(channels: int, kernel: int, depthwise: bool, plain: bool = False) -> nn.Sequential:
    if not depthwise:
        return _unit(channels, channels, kernel, plain=plain)
    return nn.Sequential(
        _unit(channels, channels, kernel, groups=channels), nn.ReLU(inplace=True), _unit(channels, channels, 1)
    )
