"""How a family's file makes the entries of the table of backbones."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from detkit.backbones.base import Classifier, Frozen, StagedBackbone, set_logits
from detkit.backbones.pyramid import at_scales
from detkit.options import takes

Entry = Callable[..., StagedBackbone | Classifier]


def family(make: Callable[..., Classifier], *names: str, taps: tuple[int, ...] = (2, 3, 4)) -> list[Entry]:
    """The entries of the table of backbones for the networks ``names``, in their order.

    Args:
        make: ``make(name, weights, **options)`` builds the whole network, of as many classes as it was published for,
            and loads its weights. Its keyword-only arguments are keys of the backbone too.
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
    build.__doc__ = f"""{(inspect.getdoc(make) or name).rstrip()}

    Args:
        num_classes: None for a backbone; else return a ``Classifier`` of the one scale, 0 for as many classes as
            published.
        weights: "none", "imagenet" or a file in the published layout.
        taps: The stages returned.
        frozen: The first stages that do not train, or "all".
        scales: Of the image, see ``detkit.backbones.pyramid``.

    Raises:
        DetkitError: The weights cannot be had.
        ValueError: taps or frozen outside the stages, scales not above 0.
    """
    return build
