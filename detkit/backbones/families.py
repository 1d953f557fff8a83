"""How a family's file makes the entries of the table of backbones."""

from __future__ import annotations

from collections.abc import Callable

from detkit.backbones.base import Classifier, Frozen, StagedBackbone, set_logits
from detkit.backbones.pyramid import at_scales
from detkit.options import takes

Entry = Callable[..., StagedBackbone | Classifier]


def family(make: Callable[..., Classifier], *names: str, taps: tuple[int, ...] = (2, 3, 4)) -> list[Entry]:
    """The entries of the table of backbones for the networks ``names``, in their order.

    An entry returns a backbone, or with ``num_classes`` a ``Classifier`` of one scale, of as many classes as published
    where it is 0. Its keys are ``weights`` ("none", "imagenet" or a file in the published layout), ``taps`` (the stages
    returned), ``frozen`` (the first stages that do not train, or "all"), ``scales`` (of the image, see
    ``detkit.backbones.pyramid``), and the keyword-only arguments of ``make``. It raises DetkitError where the weights
    cannot be had, ValueError for taps or frozen outside the stages and scales not above 0.

    Args:
        make: ``make(name, weights, **options)`` builds the whole network, of as many classes as it was published for,
            and loads its weights.
        names: Of the networks that ``make`` builds.
        taps: The default of that key.
    """
    return [_entry(name, make, taps) for name in names]


def _entry(name: str, make: Callable[..., Classifier], default_taps: tuple[int, ...]) -> Entry:
    @takes(make)
    def build(
        num_classes: int | None = None,
        *,
        weights: str | None = "none",
        taps: tuple[int, ...] = default_taps,
        frozen: Frozen = 0,
        scales: tuple[float, ...] = (1.0,),
        **options: object,
    ) -> StagedBackbone | Classifier:
        net = make(name, weights, **options)
        if num_classes is None:
            body = StagedBackbone(list(net.backbone.stages), **net.backbone.every, taps=taps, frozen=frozen)
            return at_scales(body, scales)
        net.backbone.freeze(frozen)
        if num_classes:
            set_logits(net.classifier, num_classes)
        return net

    build.__name__ = build.__qualname__ = name
    build.__doc__ = make.__doc__
    return build
