"""CSPDarknet, the trunk of YOLOX (Ge et al. 2021, arXiv 2107.08430), of cross stage partial blocks (CSPNet, Wang et al.
2019, arXiv 1911.11929); its blocks, of which ``detkit.necks.pafpn`` is made too."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Classifier, Network, StagedBackbone, family, stages_and
from detkit.backbones.layers import conv_block

unit = partial(conv_block, norm_eps=1e-3, momentum=0.03)


class Bottleneck(nn.Module):
    """1 x 1 and 3 x 3, and the input on top of that if ``add``."""

    def __init__(self, channels: int, add: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = unit(channels, channels, 1), unit(channels, channels, 3, separable=depthwise)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.add else y


class CSP(nn.Module):
    """Half of the channels go through ``repeats`` bottlenecks, half pass by; a 1 x 1 joins them."""

    def __init__(self, inputs: int, outputs: int, repeats: int, add: bool, depthwise: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.conv2, self.conv3 = unit(inputs, half, 1), unit(inputs, half, 1), unit(2 * half, outputs, 1)
        self.m = nn.Sequential(*(Bottleneck(half, add, depthwise) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        through, beside = self.conv1(x), self.conv2(x)  # in the order of published files
        return self.conv3(torch.cat((self.m(through), beside), 1))


class SPP(nn.Module):
    """Spatial pyramid pooling: the largest values of 5 x 5, 9 x 9 and 13 x 13 cells beside the map itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = unit(channels, channels // 2, 1), unit(channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.conv1(x)]
        for _ in range(3):  # each 5 x 5 of the one before widens the window by 4
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.conv2(torch.cat(maps, 1))


def repeats_of(depth: float) -> int:
    """Bottlenecks of a block for this share of YOLOX-l's depth."""
    return max(round(3 * depth), 1)


def _network(name: str, *, depth: float = 0.33, width: float = 0.5, depthwise: bool = False) -> Network:
    """Five stages of strides 2, 4, 8, 16, 32; pixels come as 0..255, neither mean nor deviation taken off.

    The stem is the paper's focus layer (2 x 2 pixels to channels, then 3 x 3) as the one convolution that it is, 6 x 6
    of stride 2.

    Args:
        depth: Of the blocks, as a share of YOLOX-l's: 0.33 (nano, tiny, s), 0.67 (m), 1 (l), 1.33 (x).
        width: Of the channels, the same: 0.25 (nano), 0.375 (tiny), 0.5 (s), 0.75 (m), 1 (l), 1.25 (x).
        depthwise: Each 3 x 3 for each channel by itself and then a 1 x 1 (nano).
    """
    base, repeats = int(64 * width), repeats_of(depth)
    channels = [base * 2**i for i in range(5)]
    stages: list[nn.Module] = [unit(3, base, 6, stride=2)]
    for i, factor in enumerate((1, 3, 3, 1), 1):
        inputs, outputs = channels[i - 1 : i + 1]
        last = i == 4
        layers: list[nn.Module] = [
            unit(inputs, outputs, 3, stride=2, separable=depthwise),
            *([SPP(outputs)] if last else []),
        ]
        layers.append(CSP(outputs, outputs, factor * repeats, not last, depthwise))
        stages.append(nn.Sequential(*layers))
    body = StagedBackbone(stages, channels, mean=(0.0,) * 3, std=(1.0,) * 3, size=640)
    last_layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 1000))
    return stages_and(stages, last_layers), Classifier(body, last_layers)


(csp_darknet,) = family(_network, "csp_darknet")
