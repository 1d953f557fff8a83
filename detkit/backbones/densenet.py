"""torchvision's DenseNets (Huang et al. 2017, arXiv 1608.06993): every layer reads all maps before it."""

from __future__ import annotations

import re

from torch import nn
from torchvision import models

from detkit.backbones.base import Classifier, StagedBackbone
from detkit.backbones.families import family
from detkit.backbones.pretrained import load_weights


def _network(name: str, weights: str | None) -> Classifier:
    """Five stages of strides 2 to 32, the stem and four dense blocks; each ends in the next one's BatchNorm and ReLU,
    since a block's own output is maps as they were joined."""
    net = models.get_model(name, weights=None)
    # The published files are older than the rule that names hold no dots.
    load_weights(net, weights, name, lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key))
    f = net.features
    stages, before = [nn.Sequential(f.conv0, f.norm0, f.relu0)], [f.pool0]
    for block, after in (
        (f.denseblock1, f.transition1),
        (f.denseblock2, f.transition2),
        (f.denseblock3, f.transition3),
    ):
        stages.append(nn.Sequential(*before, block, after.norm, after.relu))
        before = [after.conv, after.pool]
    stages.append(nn.Sequential(*before, f.denseblock4, f.norm5, nn.ReLU(inplace=True)))
    norms = (f.norm0, f.transition1.norm, f.transition2.norm, f.transition3.norm, f.norm5)
    body = StagedBackbone(stages, [norm.num_features for norm in norms])
    return Classifier(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classifier))


densenet121, densenet169, densenet201 = family(_network, "densenet121", "densenet169", "densenet201")
