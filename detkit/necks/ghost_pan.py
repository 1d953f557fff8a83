"""Ghost PAN, the neck of NanoDet-Plus (RangiLyu 2021, github.com/RangiLyu/nanodet): a path aggregation network (Liu et
al. 2018, arXiv 1803.01534) of Ghost blocks (Han et al. 2020, arXiv 1911.11907) for CPUs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.layers import Act, conv_block
from detkit.interfaces import Neck


class GhostPAN(Neck, nn.Module):
    """Coarse maps are joined with finer ones and those again with coarser ones; then one level more, which is made of
    the coarsest map in both its states, before the first way and after the second.

    Args:
        channels: Of the maps that come in, finest first.
        strides: Of the maps that come in.
        out: Channels of every map that goes out, an even number.
        kernel: Width of the depthwise filters, odd.

    Raises:
        ValueError: An even kernel, an odd out, or strides that do not divide one another.
    """

    def __init__(self, channels: list[int], strides: list[int], *, out: int = 96, kernel: int = 5) -> None:
        super().__init__()
        if kernel % 2 == 0 or out % 2:
            raise ValueError(f"kernel must be odd and out even, got {kernel} and {out}")
        if any(coarse % fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"ghost_pan needs strides that divide one another, not {strides}")
        ratios = [coarse // fine for fine, coarse in pairwise(strides)]
        self.channels, self.strides = [out] * (len(channels) + 1), [*strides, 2 * strides[-1]]
        self.divisor = strides[-1]
        self.lateral = nn.ModuleList(conv_block(width, out, 1, act="leaky") for width in channels)
        self.down = nn.ModuleList(GhostBlock(2 * out, out, kernel) for _ in ratios)  # coarsest first
        self.shrink = nn.ModuleList(_shrinking(out, max(kernel, ratio | 1), ratio) for ratio in ratios)
        self.up = nn.ModuleList(GhostBlock(2 * out, out, kernel) for _ in ratios)
        self.extra_in, self.extra_out = _shrinking(out, kernel, 2), _shrinking(out, kernel, 2)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, channels[i], H_i, W_i) maps to (B, out, H_i, W_i) maps, finest first, and one of half the last's sides,
        rounded up."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        coarsest = maps[-1]
        for level, block in zip(range(len(maps) - 2, -1, -1), self.down, strict=True):
            above = F.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="bilinear")
            maps[level] = block(torch.cat((above, maps[level]), 1))
        for level, (shrink, block) in enumerate(zip(self.shrink, self.up, strict=True)):
            maps[level + 1] = block(torch.cat((shrink(maps[level]), maps[level + 1]), 1))
        return [*maps, self.extra_in(coarsest) + self.extra_out(maps[-1])]


class Ghost(nn.Module):
    """Half of the channels by 1 x 1, the other half from those by a depthwise 3 x 3."""

    def __init__(self, inputs: int, outputs: int, act: bool) -> None:
        super().__init__()
        half = outputs // 2
        kind: Act | None = "leaky" if act else None
        self.primary = conv_block(inputs, half, 1, act=kind)
        self.cheap = conv_block(half, half, 3, groups=half, act=kind)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat((x, self.cheap(x)), 1)


class GhostBlock(nn.Module):
    """Two Ghost modules, the second without activation, beside a separable shortcut that has none either."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.ghosts = nn.Sequential(Ghost(inputs, outputs, True), Ghost(outputs, outputs, False))
        self.shortcut = conv_block(inputs, outputs, kernel, separable=True, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.ghosts(x) + self.shortcut(x)


def _shrinking(channels: int, kernel: int, stride: int) -> nn.Sequential:
    return conv_block(channels, channels, kernel, stride=stride, separable=True, act="leaky")
