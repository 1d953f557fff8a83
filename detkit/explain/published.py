"""Networks as published, to be looked into."""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor, nn

from detkit import registry
from detkit.data.resize import Resize
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.interfaces import Head, Raw
from detkit.necks.identity import Identity


class _Answers(Head, nn.Module):
    """A published network's classifier in a head's place."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> Raw:
        """classes (B, C) logits."""
        return {"classes": self.classifier(features[-1])}


def published_network(name: str, weights: str = "imagenet", size: int | None = None) -> Detector:
    """A backbone with its classifier, to be looked into: it does not predict.

    Classes are ImageNet's where weights know 1000 of them, else numbers.

    Args:
        name: Of the backbone.
        weights: "imagenet", "none" or a file.
        size: Of the square that images are stretched to; None: the network's own.

    Raises:
        DetkitError: The weights cannot be had, no such network was published, or an image of this size is too small.
    """
    from torchvision.models import ResNet18_Weights

    build = registry.find_part("backbone", name)
    if "weights" not in signature(build).parameters:
        raise DetkitError(f"{name} is whatever its graph says, and has no published form", do="name another backbone")
    network = build(0, weights=weights).eval()
    backbone = network.backbone
    side = size or backbone.size
    try:
        with torch.no_grad():
            count = network(torch.zeros(1, 3, side, side)).shape[1]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DetkitError(f"{name} does not take {side} pixels: {reason}", "--size", "give a larger one") from None
    known = count == 1000 and weights != "none"
    names = ResNet18_Weights.DEFAULT.meta["categories"] if known else [str(k) for k in range(count)]
    neck, resize = Identity(backbone.channels, backbone.strides), Resize(side, mode="stretch", stride=1)
    return Detector(backbone, neck, _Answers(network.classifier), classes=names, resize=resize, config={}).eval()
