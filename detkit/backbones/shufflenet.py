"""torchvision's ShuffleNets v2 (Ma et al. 2018, arXiv 1807.11164): half the channels pass by, then all are shuffled."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detkit.backbones.base import Classifier, StagedBackbone
from detkit.backbones.families import family
from detkit.backbones.pretrained import load_weights


def _network(name: str, weights: str | None) -> Classifier:
    """Five stages of strides 2 to 32: convolution, pooling, three groups; the last 1 x 1 belongs to the classifier."""
    net = models.get_model(name, weights=None)
    load_weights(net, weights, name)
    stages = [net.conv1, net.maxpool, net.stage2, net.stage3, net.stage4]
    stem, *groups = net._stage_out_channels[:4]
    body = StagedBackbone(stages, [stem, stem, *groups])
    return Classifier(body, nn.Sequential(net.conv5, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc))


shufflenet_v2_x0_5, shufflenet_v2_x1_0, shufflenet_v2_x1_5, shufflenet_v2_x2_0 = family(
    _network, "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"
)
