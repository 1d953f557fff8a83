"""What every backbone is: a chain of stages, some of which are tapped; and how a family's file makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_type_hints

from torch import Tensor, nn

from detkit.interfaces import Backbone

Frozen = int | Literal["all"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class StagedBackbone(Backbone, nn.Module):
    """A chain of stages and the outputs of some of them.

    stages: one module a stage, each continuing from the one before; stages after the last tap are dropped.
    channels, strides: of the tapped outputs, finest first; strides in input pixels. offsets: the centre of cell 0 in
    input pixels, half a stride for padded nets, whose cells tile the image. mean, std: a triple each, in units of
    0..255 pixels, by which ``Detector`` normalises. size: of the square images that the network was published for.
    frozen: how many stages, from the input on, neither train nor update their BatchNorm, whatever ``.train()`` says;
    ``"all"`` freezes the whole backbone.

    A family's constructor makes a ``Classifier`` of all stages when it is given a number of classes; heads that need
    the family's classifier trunk get it from there, by ``Classifier.split``.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        taps: Sequence[int],
        frozen: Frozen = 0,
        offsets: Sequence[float] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: int = 224,
    ) -> None:
        super().__init__()
        taps = tuple(taps)
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= len(stages):
            raise ValueError(f"taps must rise within 0..{len(stages) - 1}, got {list(taps)}")
        self.stages = nn.ModuleList(stages[: taps[-1] + 1])
        self.taps = taps
        self.every = tuple(channels), tuple(strides), None if offsets is None else tuple(offsets)
        self.channels = [channels[tap] for tap in taps]
        self.strides = [strides[tap] for tap in taps]
        self.offsets = [strides[tap] / 2 if offsets is None else offsets[tap] for tap in taps]
        self.mean, self.std, self.size = tuple(mean), tuple(std), size
        self.frozen = len(self.stages) if frozen == "all" else int(frozen)
        if not 0 <= self.frozen <= len(self.stages):
            raise ValueError(f"frozen must lie within 0..{len(self.stages)} or be 'all', got {frozen}")
        self.freeze(self.frozen)

    def freeze(self, count: int) -> None:
        """From now on the first ``count`` stages do not train; those that did not and come after them do."""
        for stage in self.stages[count : self.frozen]:
            stage.requires_grad_(True)
        for stage in self.stages[:count]:
            stage.requires_grad_(False)
        self.frozen = count
        self.train(self.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Tapped outputs (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W)."""
        return self._tapped(x, 0)

    def _tapped(self, x: Tensor, first: int) -> list[Tensor]:
        """The tapped outputs of stage ``first`` and those after it; ``x`` is what that one reads."""
        outputs = []
        for index in range(first, len(self.stages)):
            x = self.stages[index](x)
            if index in self.taps:
                outputs.append(x)
        return outputs

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """The frozen stages' part of ``forward``: the maps (B, C, H, W) of theirs that ``from_frozen`` needs."""
        maps = []
        for index in range(self.frozen):
            x = self.stages[index](x)
            if index in self.taps or index == self.frozen - 1:
                maps.append(x)
        return maps

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """The rest of ``forward``, which is ``from_frozen(frozen_maps(x))``."""
        return maps[: sum(tap < self.frozen for tap in self.taps)] + self._tapped(maps[-1], self.frozen)

    def train(self, mode: bool = True) -> StagedBackbone:
        """As usual, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self


class Classifier(nn.Module):
    """A backbone with a classifier on its last stage: (B, 3, H, W) normalised pixels to (B, num_classes) logits."""

    body: ClassVar[type[StagedBackbone]] = StagedBackbone  # what ``split`` makes

    def __init__(self, backbone: StagedBackbone, classifier: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.mean, self.std = backbone.mean, backbone.std

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)[-1])

    def split(self, taps: Sequence[int], frozen: Frozen = 0) -> tuple[StagedBackbone, nn.Sequential]:
        """A backbone that ends at the last of ``taps``, and the family's trunk: all that follows, but the logits.

        This is how a head that looks at single regions gets the rest of the classifier (VGG's fc6 and fc7, ResNet's
        layer4 and pooling, ...). The trunk takes (R, channels[-1], h, w).

        Raises:
            ValueError: taps or frozen outside the stages.
        """
        whole = self.backbone
        channels, strides, offsets = whole.every
        body = self.body(
            list(whole.stages),
            channels,
            strides,
            taps=taps,
            frozen=frozen,
            offsets=offsets,
            mean=self.mean,
            std=self.std,
        )
        layers = list(self.classifier)
        del layers[_place_of_logits(layers)]
        return body, nn.Sequential(*whole.stages[len(body.stages) :], *layers)

    def branches(self, body: StagedBackbone) -> Mapping[int, nn.Sequential]:
        """Side branches, which only help to train: each by the place, among what ``body`` (from ``split``) hands out
        while it trains, of the map (B, C, h, w) that it makes logits of. Their last layer is to be made for the classes
        (``set_logits``)."""
        return {}


def _place_of_logits(layers: Sequence[nn.Module]) -> int:
    """The index of the last layer of weights, linear or 1 x 1, or of fixed codes (LeNet-5's output has no weights).

    Raises TypeError where the last weights are of another kind of layer.
    """
    for index in reversed(range(len(layers))):
        last = layers[index]
        if hasattr(last, "out_features") or (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1)):
            return index
        if any(True for _ in last.parameters()):
            break
    raise TypeError(f"a classifier ends in a linear layer, got {type(layers[-1]).__name__}")


def set_logits(layers: nn.Sequential, num_classes: int) -> nn.Sequential:
    """``layers`` with the one that gives the logits made anew for ``num_classes``.

    A pretrained one of that size is kept. Raises TypeError where the last weights are not linear or 1 x 1.
    """
    index = _place_of_logits(list(layers))
    last: Any = layers[index]
    if isinstance(last, nn.Conv2d):
        if last.out_channels != num_classes:
            layers[index] = nn.Conv2d(last.in_channels, num_classes, 1)
    elif last.out_features != num_classes:
        layers[index] = type(last)(last.in_features, num_classes)
    return layers


@dataclass(frozen=True, slots=True)
class Parts:
    """A network taken apart: all its stages, with what ``Backbone`` wants to know of them, and its classifier's layers.

    classifier: from the last stage's output to logits, of any number of classes; make: joins backbone and classifier.
    """

    stages: Sequence[nn.Module]
    channels: Sequence[int]
    classifier: Sequence[nn.Module]
    strides: Sequence[int] = (2, 4, 8, 16, 32)
    offsets: Sequence[float] | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size: int = 224
    make: Callable[[StagedBackbone, nn.Sequential], Classifier] = Classifier


def assemble(parts: Parts, num_classes: int | None, taps: Sequence[int], frozen: Frozen) -> StagedBackbone | Classifier:
    """A ``Backbone`` of the parts with these taps; with ``num_classes`` a ``Classifier`` on the last stage instead, of
    as many classes as the network was published for where it is 0.

    Raises:
        ValueError: taps or frozen outside the stages.
    """
    taps = taps if num_classes is None else (len(parts.stages) - 1,)
    backbone = StagedBackbone(
        parts.stages,
        parts.channels,
        parts.strides,
        taps=taps,
        frozen=frozen,
        offsets=parts.offsets,
        mean=parts.mean,
        std=parts.std,
        size=parts.size,
    )
    if num_classes is None:
        return backbone
    classifier = nn.Sequential(*parts.classifier)
    return parts.make(backbone, set_logits(classifier, num_classes) if num_classes else classifier)


def family(
    name: str, parts: Callable[..., Parts], default_taps: tuple[int, ...] = (2, 3, 4)
) -> Callable[..., StagedBackbone | Classifier]:
    """The entry of the table of backbones for the network ``name``, which ``parts(name, weights, **options)`` builds.

    The keyword-only arguments of ``parts`` are keys of the backbone too.
    """

    def build(
        num_classes: int | None = None,
        *,
        weights: str | None = "none",
        taps: tuple[int, ...] = default_taps,
        frozen: Frozen = 0,
        scales: tuple[float, ...] = (1.0,),
        **options: object,
    ) -> StagedBackbone | Classifier:
        net = assemble(parts(name, weights, **options), num_classes, taps, frozen)
        return at_scales(net, scales) if isinstance(net, StagedBackbone) else net

    own = inspect.signature(build)
    keys = [key for key in own.parameters.values() if key.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [key for key in inspect.signature(parts).parameters.values() if key.kind is inspect.Parameter.KEYWORD_ONLY]
    build.__signature__ = own.replace(parameters=keys + added)  # type: ignore[attr-defined]
    build.__annotations__ = get_type_hints(parts) | get_type_hints(build)
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{(inspect.getdoc(parts) or name).rstrip()}

    weights: "none", "imagenet" or a file in the published layout; taps: the stages returned; frozen: the first stages
    that do not train, or "all"; scales: of the image, see ``detkit.backbones.pyramid``; num_classes: return a
    ``Classifier`` of the one scale instead, 0 for as many classes as published.

    Raises:
        DetkitError: the weights cannot be had. ValueError: taps or frozen outside the stages, scales not above 0.
    """
    return build


def at_scales(backbone: StagedBackbone, scales: Sequence[float]) -> StagedBackbone:
    """``backbone`` itself where ``scales`` is 1 alone, else a ``Pyramid`` of it."""
    from detkit.backbones.pyramid import Pyramid

    return backbone if tuple(scales) == (1.0,) else Pyramid(backbone, scales)


def he_init(net: nn.Module, after: Literal["relu", "linear"] = "relu") -> None:
    """He et al. 2015 (arXiv 1502.01852), by fan-in, so that activations keep their scale without BatchNorm.

    after: what follows a layer; "linear" is LeCun's rule, for tanh.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity=after)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
