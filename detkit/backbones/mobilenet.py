"""torchvision's MobileNets: v2 (Sandler et al. 2018, arXiv 1801.04381), v3 (Howard et al. 2019, arXiv 1905.02244)."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Parts, family
from detkit.backbones.pretrained import load_weights


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _parts(name: str, weights: str | None) -> Parts:
    """Five stages, each from where the stride doubles; the last 1 x 1 convolution belongs to the classifier."""
    net = load_weights(models.get_model(name, weights=None), weights, name)
    groups: list[list[nn.Module]] = []
    for block in net.features[:-1]:
        if not groups or any(conv.stride[0] == 2 for conv in _convolutions(block)):
            groups.append([])
        groups[-1].append(block)
    channels = [_convolutions(group[-1])[-1].out_channels for group in groups]
    classifier = [net.features[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *net.classifier]
    return Parts([nn.Sequential(*group) for group in groups], channels, classifier)


mobilenet_v2 = family("mobilenet_v2", _parts)
mobilenet_v3_small = family("mobilenet_v3_small", _parts)
mobilenet_v3_large = family("mobilenet_v3_large", _parts)
