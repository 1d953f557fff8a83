"""torchvision's VGG networks (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1)."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Parts, family
from detkit.backbones.pretrained import load_weights


def _parts(name: str, weights: str | None) -> Parts:
    """Five stages of strides 1, 2, 4, 8, 16, each but the first beginning with a pooling; the last pooling, fc6 and fc7
    belong to the classifier (7 x 7 cells for 224 pixels)."""
    net = load_weights(models.get_model(name, weights=None), weights, name)
    layers = list(net.features)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    stages = [nn.Sequential(*layers[start:end]) for start, end in zip([0, *pools], pools, strict=False)]
    channels = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)][-1] for stage in stages]
    classifier = [layers[-1], net.avgpool, nn.Flatten(), *net.classifier]
    return Parts(stages, channels, classifier, (1, 2, 4, 8, 16))


vgg11 = family("vgg11", _parts, (3, 4))
vgg11_bn = family("vgg11_bn", _parts, (3, 4))
vgg13 = family("vgg13", _parts, (3, 4))
vgg13_bn = family("vgg13_bn", _parts, (3, 4))
vgg16 = family("vgg16", _parts, (3, 4))
vgg16_bn = family("vgg16_bn", _parts, (3, 4))
vgg19 = family("vgg19", _parts, (3, 4))
vgg19_bn = family("vgg19_bn", _parts, (3, 4))
