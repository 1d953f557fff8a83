"""torchvision's DenseNets (Huang et al. 2017, arXiv 1608.06993): every layer reads all maps before it."""

from __future__ import annotations

import re

from torch import nn
from torchvision import models

from detkit.backbones.base import Parts, family
from detkit.backbones.pretrained import load_weights


def _parts(name: str, weights: str | None) -> Parts:
    """Five stages of strides 2 to 32, the stem and four dense blocks; each ends in the next one's BatchNorm and ReLU,
    since a block's own output is maps as they were joined."""
    net = models.get_model(name, weights=None)
    # The published files are older than the rule that names hold no dots.
    load_weights(net, weights, name, lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key))
    f = net.features
    stages = [
        nn.Sequential(f.conv0, f.norm0, f.relu0),
        nn.Sequential(f.pool0, f.denseblock1, f.transition1.norm, f.transition1.relu),
        nn.Sequential(f.transition1.conv, f.transition1.pool, f.denseblock2, f.transition2.norm, f.transition2.relu),
        nn.Sequential(f.transition2.conv, f.transition2.pool, f.denseblock3, f.transition3.norm, f.transition3.relu),
        nn.Sequential(f.transition3.conv, f.transition3.pool, f.denseblock4, f.norm5, nn.ReLU(inplace=True)),
    ]
    norms = (f.norm0, f.transition1.norm, f.transition2.norm, f.transition3.norm, f.norm5)
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classifier]
    return Parts(stages, [norm.num_features for norm in norms], classifier)


densenet121 = family("densenet121", _parts)
densenet169 = family("densenet169", _parts)
densenet201 = family("densenet201", _parts)
