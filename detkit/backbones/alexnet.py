"""AlexNet: torchvision's, of one tower (Krizhevsky 2014, arXiv 1404.5997), and the original of two (Krizhevsky,
Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks").
"""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Classifier, StagedBackbone, he_init, last_widths
from detkit.backbones.families import family
from detkit.backbones.pretrained import load_weights


def _two_towers() -> nn.Sequential:
    """The features of 2012: groups keep the towers apart."""

    def conv(inputs: int, width: int, kernel: int, towers: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, kernel, stride, min(kernel // 2, 2), groups=towers), nn.ReLU(inplace=True)]

    # Section 3.3's alpha of 1e-4 is a factor of the sum; torch's of the mean of the five.
    norm, pool = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), nn.MaxPool2d(3, 2)
    layers = [*conv(3, 96, 11, 1, 4), norm, pool, *conv(96, 256, 5, 2), norm, pool]
    return nn.Sequential(*layers, *conv(256, 384, 3, 1), *conv(384, 384, 3, 2), *conv(384, 256, 3, 2), pool)


def _network(name: str, weights: str | None) -> Classifier:
    """Three stages of strides 4, 8, 16; the last pooling belongs to the classifier (6 x 6 cells for 224 pixels)."""
    net = models.get_model("alexnet", weights=None)
    if name == "alexnet_2012":
        net.features = _two_towers()
    he_init(net)
    load_weights(net, weights, name)
    layers = list(net.features)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    ends = zip([0, *pools[:2]], pools, strict=True)
    stages = [nn.Sequential(*layers[start:end]) for start, end in ends]
    # Padding is less than half of the kernels, so the first cells' centres are not half a stride from the border.
    body = StagedBackbone(stages, last_widths(stages), (4, 8, 16), offsets=(3.5, 7.5, 15.5))
    return Classifier(body, nn.Sequential(layers[-1], net.avgpool, nn.Flatten(), *net.classifier))


alexnet, alexnet_2012 = family(_network, "alexnet", "alexnet_2012", taps=(1, 2))
