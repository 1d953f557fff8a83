"""torchvision's MobileNets: v2 (Sandler et al. 2018, arXiv 1801.04381), v3 (Howard et al. 2019, arXiv 1905.02244)."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Classifier, StagedBackbone, last_widths
from detkit.backbones.families import family
from detkit.backbones.pretrained import load_weights


def _network(name: str, weights: str | None) -> Classifier:
    """Five stages, each from where the stride doubles; the last 1 x 1 convolution belongs to the classifier."""
    net = models.get_model(name, weights=None)
    load_weights(net, weights, name)
    groups: list[list[nn.Module]] = []
    for block in net.features[:-1]:
        if not groups or any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in block.modules()):
            groups.append([])
        groups[-1].append(block)
    stages = [nn.Sequential(*group) for group in groups]
    body = StagedBackbone(stages, last_widths(stages))
    return Classifier(body, nn.Sequential(net.features[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *net.classifier))


mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large = family(
    _network, "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"
)
