"""No backbone: the features are the normalised pixels, and a whole CNN is left for the head (R-CNN)."""

from __future__ import annotations

from torch import nn

from detkit import registry
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

    Args:
        num_classes: None for a backbone; else return a ``Classifier``, the CNN behind the one stage, of as many
            classes as published where it is 0.
        cnn: Another backbone's name, whose normalisation is this one's too.
        weights: That one's.
        taps: The one stage.
        frozen: Of no effect, since nothing trains here.

    Raises:
        DetkitError: No such backbone, or the weights cannot be had.
        ValueError: ``cnn`` is this one, or taps or frozen outside the one stage.
    """
    if cnn == "identity":
        raise ValueError(f"cnn must be another backbone's name, not {cnn!r}")
    body_only = num_classes is None
    make = registry.find_part("backbone", cnn, where="backbone.cnn", trusted=False)
    whole: Classifier = make(1 if body_only else num_classes, weights="none" if body_only else weights)
    body = StagedBackbone([nn.Identity()], [3], [1], taps=taps, frozen=frozen, mean=whole.mean, std=whole.std)
    if body_only:
        return body
    return Classifier(body, nn.Sequential(*whole.backbone.stages, *whole.classifier))
