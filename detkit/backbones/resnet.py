"""torchvision's ResNets (He et al. 2016, arXiv 1512.03385), with the paper's other shortcuts and without any."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from detkit.backbones.base import Parts, family
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
