"""Network in Network (Lin, Chen & Yan 2013, arXiv 1312.4400): 1 x 1 convolutions between the others, and the average
of one map per class instead of fully connected layers.
"""

from __future__ import annotations

from torch import nn

from detkit.backbones.base import Classifier, Network, StagedBackbone, family, he_init, stages_and

# A block is a convolution (width, kernel, stride, padding) and the widths of two 1 x 1 ones; blocks are pooled between.
_CIFAR = (((192, 5, 1, 2), (160, 96)), ((192, 5, 1, 2), (192, 192)), ((192, 3, 1, 1), (192, 10)))
_IMAGENET = (
    ((96, 11, 4, 0), (96, 96)),
    ((256, 5, 1, 2), (256, 256)),
    ((384, 3, 1, 1), (384, 384)),
    ((1024, 3, 1, 1), (1024, 1000)),
)


def _network(name: str) -> Network:
    """The authors' networks: ``nin`` for ImageNet, four stages of strides 4 to 32; ``nin_cifar`` for 32 pixels, three
    stages of strides 1, 2, 4. Every stage is a block; the last 1 x 1 convolution, to classes, is the classifier's.
    """
    cifar = name == "nin_cifar"
    table = _CIFAR if cifar else _IMAGENET
    stages: list[nn.Sequential] = []
    inputs = 3
    for index, ((width, kernel, stride, padding), mixed) in enumerate(table):
        layers: list[nn.Module] = []
        if index:
            # Caffe rounds sizes up.
            pool = nn.AvgPool2d if cifar and index == 2 else nn.MaxPool2d
            layers.append(pool(3, 2, ceil_mode=True))
        if index == len(table) - 1 or (index and cifar):
            layers.append(nn.Dropout(0.5))
        layers += [nn.Conv2d(inputs, width, kernel, stride, padding), nn.ReLU(inplace=True)]
        for before, outputs in zip((width, mixed[0]), mixed, strict=True):
            layers += [nn.Conv2d(before, outputs, 1), nn.ReLU(inplace=True)]
        stages.append(nn.Sequential(*layers))
        inputs = mixed[1]
    classifier = nn.Sequential(stages[-1].pop(-2), stages[-1].pop(-1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    strides, offsets = ((1, 2, 4), (0.5, 1.5, 3.5)) if cifar else ((4, 8, 16, 32), (5.5, 9.5, 17.5, 33.5))
    body = StagedBackbone(stages, strides=strides, offsets=offsets, size=32 if cifar else 224)
    return he_init(stages_and(stages, classifier)), Classifier(body, classifier)


(nin,) = family(_network, "nin", taps=(1, 2, 3))
(nin_cifar,) = family(_network, "nin_cifar", taps=(1, 2))
