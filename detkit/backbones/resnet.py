"""torchvision's ResNets (He et al. 2016, arXiv 1512.03385), with the paper's other shortcuts and without any."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

from detkit.backbones.base import Classifier, Network, StagedBackbone, family, he_init, stages_and

Shortcut = Literal["projection", "zero"]


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


def _network(name: str, *, shortcut: Shortcut = "projection", residual: bool = True) -> Network:
    """Five stages of strides 2, 4, 8, 16, 32.

    Args:
        name: Of the network.
        shortcut: Where the shape changes, a 1 x 1 ``projection`` or ``zero`` padding, which has no weights (the
            published weights have projections).
        residual: false leaves every shortcut out.
    """
    net = get_model(name, weights=None)
    for group in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in group:
            if not residual:
                block.downsample = NoShortcut()
            elif block.downsample is not None and shortcut == "zero":
                block.downsample = ZeroPaddedShortcut(block.downsample[0].out_channels, block.stride)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    stages = [stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]
    return net, Classifier(StagedBackbone(stages), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc))


resnet18, resnet34, resnet50, resnet101, resnet152 = family(
    _network,
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    published={"residual": True, "shortcut": "projection"},
)


def _small_network(name: str, *, shortcut: Shortcut = "zero", residual: bool = True) -> Network:
    """The networks for images of 32 x 32 (section 4.2): three stages of strides 1, 2, 4 with 16, 32, 64 channels.

    Args:
        name: Of the network.
        shortcut: Where the shape changes, ``zero`` padding or a 1 x 1 ``projection``.
        residual: false leaves every shortcut out.
    """
    width, stages = 16, []
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    for channels in (16, 32, 64):
        for _ in range((int(name.removeprefix("resnet")) - 2) // 6):
            stride = channels // width
            way: nn.Module | None = None if residual else NoShortcut()
            if residual and stride == 2 and shortcut == "zero":
                way = ZeroPaddedShortcut(channels, 2)
            elif residual and stride == 2:
                way = nn.Sequential(nn.Conv2d(width, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
            layers.append(BasicBlock(width, channels, stride, way))
            width = channels
        stages.append(nn.Sequential(*layers))
        layers = []
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return he_init(stages_and(stages, last)), Classifier(StagedBackbone(stages, strides=(1, 2, 4), size=32), last)


resnet20, resnet32, resnet44, resnet56, resnet110 = family(
    _small_network, "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", taps=(1, 2)
)
