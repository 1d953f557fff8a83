"""No backbone: the features are the normalised pixels, and a whole CNN is left for the head (R-CNN)."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from torch import nn

from detkit.backbones.base import Classifier, Frozen, StagedBackbone


def identity(
    num_classes: int | None = None,
    *,
    cnn: str = "efficientnet_lite0",
    weights: str | None = "none",
    taps: tuple[int, ...] = (0,),
    frozen: Frozen = 0,
) -> StagedBackbone | Classifier:
    """One stage of stride 1 that does nothing; what follows it, for heads that ask, is the whole of ``cnn``.

    cnn: another backbone's name, whose normalisation is this one's too; weights: that one's; num_classes: return its
    ``Classifier``, the CNN behind the one stage, of as many classes as published where it is 0.

    Raises:
        ValueError: no such backbone. DetkitError: the weights cannot be had.
    """
    from detkit.backbones import BACKBONES

    if cnn not in BACKBONES or cnn == "identity":
        raise ValueError(f"cnn must be another backbone's name, not {cnn!r}")
    module, attribute = BACKBONES[cnn].split(":")
    make = getattr(import_module(module), attribute)
    body_only = num_classes is None
    whole = cast(Classifier, make(1 if body_only else num_classes, weights="none" if body_only else weights))
    body = StagedBackbone([nn.Identity()], [3], [1], taps=taps, frozen=frozen, mean=whole.mean, std=whole.std)
    if body_only:
        return body
    return Classifier(body, nn.Sequential(*whole.backbone.stages, *whole.classifier))
