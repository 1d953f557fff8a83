"""torchvision's networks as they are, cut into stages: AlexNet (and the original of 2012), VGG, MobileNet, DenseNet."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise

from torch import nn
from torchvision.models import VGG, AlexNet, get_model

from detkit.backbones import FAMILIES
from detkit.backbones.base import Classifier, Network, StagedBackbone, family, he_init
from detkit.backbones.pretrained import load_weights


def _cut_at_pools(net: VGG | AlexNet, strides: tuple[int, ...], offsets: tuple[float, ...] | None = None) -> Network:
    """Each stage but the first begins with a pooling; the last pooling belongs to the classifier."""
    layers = list(net.features)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    stages = [nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *pools])]
    last = nn.Sequential(layers[-1], net.avgpool, nn.Flatten(), *net.classifier)
    return net, Classifier(StagedBackbone(stages, strides=strides, offsets=offsets), last)


def _two_towers() -> nn.Sequential:
    """The features of 2012: groups keep the towers apart."""

    def conv(inputs: int, width: int, kernel: int, towers: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, kernel, stride, min(kernel // 2, 2), groups=towers), nn.ReLU(inplace=True)]

    # Section 3.3's alpha of 1e-4 is a factor of the sum; torch's of the mean of the five.
    norm, pool = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), nn.MaxPool2d(3, 2)
    layers = [*conv(3, 96, 11, 1, 4), norm, pool, *conv(96, 256, 5, 2), norm, pool]
    return nn.Sequential(*layers, *conv(256, 384, 3, 1), *conv(384, 384, 3, 2), *conv(384, 256, 3, 2), pool)


def _alexnet(name: str) -> Network:
    """AlexNet: torchvision's, of one tower (Krizhevsky 2014, arXiv 1404.5997), or the original of two (Krizhevsky,
    Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks").

    Three stages of strides 4, 8, 16; the last pooling belongs to the classifier (6 x 6 cells for 224 pixels).
    """
    net = get_model("alexnet", weights=None)
    if name == "alexnet_2012":
        net.features = _two_towers()
    he_init(net)
    # Padding is less than half of the kernels, so the first cells' centres are not half a stride from the border.
    return _cut_at_pools(net, (4, 8, 16), (3.5, 7.5, 15.5))


def _vgg(name: str) -> Network:
    """VGG networks (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1).

    Five stages of strides 1, 2, 4, 8, 16, each but the first beginning with a pooling; the last pooling, fc6 and fc7
    belong to the classifier (7 x 7 cells for 224 pixels).
    """
    return _cut_at_pools(get_model(name, weights=None), (1, 2, 4, 8, 16))


def _mobilenet(name: str) -> Network:
    """MobileNets: v2 (Sandler et al. 2018, arXiv 1801.04381), v3 (Howard et al. 2019, arXiv 1905.02244).

    Five stages, each from where the stride doubles; the last 1 x 1 convolution belongs to the classifier.
    """
    net = get_model(name, weights=None)
    stages: list[nn.Sequential] = []
    for block in net.features[:-1]:
        if not stages or any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in block.modules()):
            stages.append(nn.Sequential())
        stages[-1].append(block)
    last = nn.Sequential(net.features[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *net.classifier)
    return net, Classifier(StagedBackbone(stages), last)


def _densenet(name: str) -> Network:
    """DenseNets (Huang et al. 2017, arXiv 1608.06993): every layer reads all maps before it.

    Five stages of strides 2 to 32, the stem and four dense blocks; each ends in the next one's BatchNorm and ReLU,
    since a block's own output is maps as they were joined.
    """
    net = get_model(name, weights=None)
    f = net.features
    stages, before = [nn.Sequential(f.conv0, f.norm0, f.relu0)], [f.pool0]
    blocks = ((f.denseblock1, f.transition1), (f.denseblock2, f.transition2), (f.denseblock3, f.transition3))
    for block, after in blocks:
        stages.append(nn.Sequential(*before, block, after.norm, after.relu))
        before = [after.conv, after.pool]
    stages.append(nn.Sequential(*before, f.denseblock4, f.norm5, nn.ReLU(inplace=True)))
    widths = [norm.num_features for norm in (f.norm0, *(after.norm for _, after in blocks), f.norm5)]
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classifier)
    return net, Classifier(StagedBackbone(stages, widths), last)


def _without_dots(key: str) -> str:
    """The published DenseNets are older than the rule that names hold no dots."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


alexnet, alexnet_2012 = family(_alexnet, *FAMILIES["alexnet"], taps=(1, 2))
vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn = family(_vgg, *FAMILIES["vgg"], taps=(3, 4))
mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large = family(_mobilenet, *FAMILIES["mobilenet"])
densenet121, densenet169, densenet201 = family(
    _densenet, *FAMILIES["densenet"], load=partial(load_weights, rename=_without_dots)
)
