"""torchvision's MobileNets: v2 (Sandler et al. 2018, arXiv 1801.04381), v3 (Howard et al. 2019, arXiv 1905.02244)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from detkit.backbones.base import Backbone, Classifier, Frozen, set_logits
from detkit.backbones.pretrained import load_weights


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _by_stride(blocks: nn.Sequential) -> tuple[list[nn.Module], list[int]]:
    """The blocks in stages that each begin where the stride doubles, and the stages' channels."""
    groups: list[list[nn.Module]] = []
    for block in blocks:
        if not groups or any(conv.stride[0] == 2 for conv in _convolutions(block)):
            groups.append([])
        groups[-1].append(block)
    channels = [_convolutions(group[-1])[-1].out_channels for group in groups]
    return [nn.Sequential(*group) for group in groups], channels


def _mobilenet(name: str) -> Callable[..., Backbone | Classifier]:
    def build(
        num_classes: int | None = None,
        *,
        weights: str | None = "none",
        taps: tuple[int, ...] = (2, 3, 4),
        frozen: Frozen = 0,
    ) -> Backbone | Classifier:
        """Five stages of strides 2, 4, 8, 16, 32; the last 1 x 1 convolution belongs to the classifier.

        weights: "none", "imagenet" (torchvision's) or a file in torchvision's layout; taps: the stages returned;
        frozen: the first stages that do not train, or "all"; num_classes: return a ``Classifier`` instead.

        Raises:
            DetkitError: the weights cannot be had. ValueError: taps or frozen outside the stages.
        """
        from torchvision import models

        net = load_weights(models.get_model(name, weights=None), weights, name)
        stages, channels = _by_stride(net.features[:-1])
        if num_classes is None:
            return Backbone(stages, channels, [2, 4, 8, 16, 32], taps=taps, frozen=frozen)
        backbone = Backbone(stages, channels, [2, 4, 8, 16, 32], taps=(4,), frozen=frozen)
        layers = [net.features[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *net.classifier]
        return Classifier(backbone, set_logits(nn.Sequential(*layers), num_classes))

    build.__name__ = name
    return build


mobilenet_v2 = _mobilenet("mobilenet_v2")
mobilenet_v3_small = _mobilenet("mobilenet_v3_small")
mobilenet_v3_large = _mobilenet("mobilenet_v3_large")
