"""YOLOX's neck (Ge et al. 2021, arXiv 2107.08430): a path aggregation network (Liu et al. 2018, arXiv 1803.01534) of
cross stage partial blocks."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.csp_darknet import CSP, repeats_of, unit
from detkit.interfaces import Neck


class PAFPN(Neck, nn.Module):
    """Coarse maps are joined with finer ones and those again with coarser ones; every map keeps its channels.

    Args:
        channels: Of the maps that come in, finest first.
        strides: Of the maps that come in.
        depth: Of the blocks, as a share of YOLOX-l's.
        depthwise: Each 3 x 3 for each channel by itself and then a 1 x 1 (nano).

    Raises:
        ValueError: Strides that do not divide one another.
    """

    def __init__(
        self, channels: list[int], strides: list[int], *, depth: float = 0.33, depthwise: bool = False
    ) -> None:
        super().__init__()
        if any(coarse % fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"pafpn needs strides that divide one another, not {strides}")
        steps, repeats = list(pairwise(channels)), repeats_of(depth)
        ratios = [coarse // fine for fine, coarse in pairwise(strides)]
        self.channels, self.strides = list(channels), list(strides)

        def block(inputs: int, outputs: int) -> CSP:
            return CSP(inputs, outputs, repeats, False, depthwise)

        self.lateral = nn.ModuleList(unit(coarse, fine, 1) for fine, coarse in reversed(steps))  # coarsest first
        self.down = nn.ModuleList(block(2 * fine, fine) for fine, _ in reversed(steps))
        self.shrink = nn.ModuleList(
            unit(fine, fine, 3, stride=ratio, separable=depthwise)
            for (fine, _), ratio in zip(steps, ratios, strict=True)
        )
        self.up = nn.ModuleList(block(2 * fine, coarse) for fine, coarse in steps)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, channels[i], H_i, W_i) maps to maps of the same shapes, finest first."""
        x, sides = features[-1], []
        for lateral, block, fine in zip(self.lateral, self.down, reversed(features[:-1]), strict=True):
            sides.append(lateral(x))
            x = block(torch.cat((F.interpolate(sides[-1], size=fine.shape[-2:]), fine), 1))
        maps = [x]
        for shrink, block, side in zip(self.shrink, self.up, reversed(sides), strict=True):
            maps.append(block(torch.cat((shrink(maps[-1]), side), 1)))
        return maps
