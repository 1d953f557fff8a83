"""torchvision's ResNets (He et al. 2016, arXiv 1512.03385), with the paper's other shortcuts and without any."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from detkit.backbones.base import Parts, family, he_init
from detkit.backbones.pretrained import load_weights, refuse_imagenet


class ZeroPaddedShortcut(nn.Module):
    """The paper's option A: every ``stride``-th pixel of (B, C, H, W), and zeros for the channels that are missing."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


class NoShortcut(nn.Module):
    """Adds nothing: the plain network that the paper compares with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def _parts(
    name: str,
    weights: str | None,
    *,
    shortcut: Literal["projection", "zero"] = "projection",
    residual: bool = True,
) -> Parts:
    """Five stages of strides 2, 4, 8, 16, 32.

    shortcut: where the shape changes, a 1 x 1 ``projection`` or ``zero`` padding, which has no weights (the published
    weights have projections); residual: false leaves every shortcut out.
    """
    if shortcut != "projection" or not residual:
        refuse_imagenet(weights, "shortcut" if residual else "residual")
    net = models.get_model(name, weights=None)
    for group in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in group:
            if not residual:
                block.downsample = NoShortcut()
            elif block.downsample is not None and shortcut == "zero":
                block.downsample = ZeroPaddedShortcut(block.downsample[0].out_channels, block.stride)
    load_weights(net, weights, name)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    stages = [stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]
    channels = [net.bn1.num_features, *(net.fc.in_features // 2**k for k in (3, 2, 1, 0))]
    return Parts(stages, channels, [nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc])


resnet18 = family("resnet18", _parts)
resnet34 = family("resnet34", _parts)
resnet50 = family("resnet50", _parts)
resnet101 = family("resnet101", _parts)
resnet152 = family("resnet152", _parts)


def _small_parts(
    name: str,
    weights: str | None,
    *,
    shortcut: Literal["projection", "zero"] = "zero",
    residual: bool = True,
) -> Parts:
    """The networks for images of 32 x 32 (section 4.2): three stages of strides 1, 2, 4 with 16, 32, 64 channels.

    shortcut: where the shape changes, ``zero`` padding or a 1 x 1 ``projection``; residual: false leaves every one
    out.
    """
    depth, width, stages = int(name.removeprefix("resnet")), 16, []
    for index in range(3):
        channels = 16 * 2**index
        layers: list[nn.Module] = []
        if index == 0:
            layers += [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        for number in range((depth - 2) // 6):
            stride = 2 if index and not number else 1
            way: nn.Module | None = None
            if not residual:
                way = NoShortcut()
            elif stride == 2 and shortcut == "zero":
                way = ZeroPaddedShortcut(channels, 2)
            elif stride == 2:
                way = nn.Sequential(nn.Conv2d(width, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
            layers.append(BasicBlock(width, channels, stride, way))
            width = channels
        stages.append(nn.Sequential(*layers))
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    net = nn.ModuleDict({"stages": nn.ModuleList(stages), "classifier": nn.Sequential(*last)})
    he_init(net)
    load_weights(net, weights, name)
    return Parts(stages, (16, 32, 64), last, (1, 2, 4), size=32)


resnet20 = family("resnet20", _small_parts, (1, 2))
resnet32 = family("resnet32", _small_parts, (1, 2))
resnet44 = family("resnet44", _small_parts, (1, 2))
resnet56 = family("resnet56", _small_parts, (1, 2))
resnet110 = family("resnet110", _small_parts, (1, 2))
