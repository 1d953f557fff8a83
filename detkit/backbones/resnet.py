"""torchvision's residual networks (He et al. 2016, arXiv 1512.03385, table 1)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from detkit.backbones.base import Backbone, Classifier, Frozen, set_logits
from detkit.backbones.pretrained import load_weights


def _resnet(name: str) -> Callable[..., Backbone | Classifier]:
    def build(
        num_classes: int | None = None,
        *,
        weights: str | None = "none",
        taps: tuple[int, ...] = (2, 3, 4),
        frozen: Frozen = 0,
    ) -> Backbone | Classifier:
        """Five stages of strides 2, 4, 8, 16, 32: the stem, then the pooling and four groups of residual blocks.

        weights: "none", "imagenet" (torchvision's) or a file in torchvision's layout; taps: the stages returned;
        frozen: the first stages that do not train, or "all"; num_classes: return a ``Classifier`` instead.

        Raises:
            DetkitError: the weights cannot be had. ValueError: taps or frozen outside the stages.
        """
        from torchvision import models

        net = load_weights(models.get_model(name, weights=None), weights, name)
        stages = [
            nn.Sequential(net.conv1, net.bn1, net.relu),
            nn.Sequential(net.maxpool, net.layer1),
            net.layer2,
            net.layer3,
            net.layer4,
        ]
        wide = net.fc.in_features
        channels = [64, wide // 8, wide // 4, wide // 2, wide]
        if num_classes is None:
            return Backbone(stages, channels, [2, 4, 8, 16, 32], taps=taps, frozen=frozen)
        backbone = Backbone(stages, channels, [2, 4, 8, 16, 32], taps=(4,), frozen=frozen)
        return Classifier(backbone, set_logits(nn.Sequential(net.avgpool, nn.Flatten(), net.fc), num_classes))

    build.__name__ = name
    return build


resnet18 = _resnet("resnet18")
resnet34 = _resnet("resnet34")
resnet50 = _resnet("resnet50")
resnet101 = _resnet("resnet101")
resnet152 = _resnet("resnet152")
