"""AlexNet: torchvision's, of one tower (Krizhevsky 2014, arXiv 1404.5997), and the original of two (Krizhevsky,
Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks").
"""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Parts, family, he_init
from detkit.backbones.pretrained import load_weights

# Padding is less than half of the kernels, so the first cells' centres are not half a stride away from the border.
_STRIDES, _OFFSETS = (4, 8, 16), (3.5, 7.5, 15.5)


def _features(widths: tuple[int, ...], groups: int, normalise: bool) -> nn.Sequential:
    def conv(index: int, kernel: int, split: int = 1, stride: int = 1) -> list[nn.Module]:
        inputs = widths[index - 1] if index else 3
        padding = 2 if index == 0 else kernel // 2
        layer = nn.Conv2d(inputs, widths[index], kernel, stride, padding, groups=split)
        return [layer, nn.ReLU(inplace=True)]

    # Section 3.3's alpha of 1e-4 is a factor of the sum; torch's of the mean of the five.
    norm = [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if normalise else []
    pool = nn.MaxPool2d(3, 2)
    layers = [*conv(0, 11, stride=4), *norm, pool, *conv(1, 5, groups), *norm, pool]
    return nn.Sequential(*layers, *conv(2, 3), *conv(3, 3, groups), *conv(4, 3, groups), pool)


def _parts(name: str, weights: str | None) -> Parts:
    """Three stages of strides 4, 8, 16; the last pooling belongs to the classifier (6 x 6 cells for 224 pixels)."""
    net = models.get_model("alexnet", weights=None)
    if name == "alexnet_2012":
        net.features = _features((96, 256, 384, 384, 256), groups=2, normalise=True)
    he_init(net)
    load_weights(net, weights, name)
    layers = list(net.features)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    ends = zip([0, *pools[:2]], pools, strict=True)
    stages = [nn.Sequential(*layers[start:end]) for start, end in ends]
    channels = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)][-1] for stage in stages]
    classifier = [layers[-1], net.avgpool, nn.Flatten(), *net.classifier]
    return Parts(stages, channels, classifier, _STRIDES, _OFFSETS)


alexnet = family("alexnet", _parts, (1, 2))
alexnet_2012 = family("alexnet_2012", _parts, (1, 2))
