"""torchvision's VGG networks (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1)."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Classifier, StagedBackbone, last_widths
from detkit.backbones.families import family
from detkit.backbones.pretrained import load_weights


def _network(name: str, weights: str | None) -> Classifier:
    """Five stages of strides 1, 2, 4, 8, 16, each but the first beginning with a pooling; the last pooling, fc6 and fc7
    belong to the classifier (7 x 7 cells for 224 pixels)."""
    net = models.get_model(name, weights=None)
    load_weights(net, weights, name)
    layers = list(net.features)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    stages = [nn.Sequential(*layers[start:end]) for start, end in zip([0, *pools], pools, strict=False)]
    body = StagedBackbone(stages, last_widths(stages), (1, 2, 4, 8, 16))
    return Classifier(body, nn.Sequential(layers[-1], net.avgpool, nn.Flatten(), *net.classifier))


vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn = family(
    _network, "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", taps=(3, 4)
)
