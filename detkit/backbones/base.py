"""What most backbones are: a chain of stages, some of which are tapped, on one scale of the image or on several; the
classifier around it; and how a family of networks makes its entries of the table of backbones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import ClassVar, Literal, TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.pretrained import load_weights
from detkit.errors import DetkitError
from detkit.interfaces import Backbone
from detkit.options import takes

Frozen = int | Literal["all"]


class Stages(TypedDict):
    """What ``StagedBackbone`` is told of all its stages, by its arguments' names."""

    channels: Sequence[int]
    strides: Sequence[int]
    offsets: Sequence[float] | None
    mean: Sequence[float]
    std: Sequence[float]
    size: int


class StagedBackbone(Backbone, nn.Module):
    """A chain of stages and the outputs of some of them.

    A family's constructor makes a ``Classifier`` of all stages when it is given a number of classes; heads that need
    the family's classifier trunk get it from there, by ``Classifier.split``.

    Args:
        stages: One module per stage, each continuing from the one before; those after the last tap are dropped.
        channels: Of every stage's output; None: of its last convolution.
        strides: The same, in input pixels per cell.
        taps: The stages whose outputs are returned, rising; None: the last.
        frozen: How many stages, from the input on, neither train nor update their BatchNorm, whatever ``.train()``
            says; ``"all"`` freezes the whole backbone.
        offsets: The centre of cell 0 of every stage in input pixels; None: half a stride, as of padded nets, whose
            cells tile the image.
        mean: A triple in units of 0..255 pixels that ``Detector`` subtracts.
        std: The same, by which it divides.
        size: Of the square images that the network was published for.

    Raises:
        ValueError: taps or frozen outside the stages.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int] | None = None,
        strides: Sequence[int] = (2, 4, 8, 16, 32),
        *,
        taps: Sequence[int] | None = None,
        frozen: Frozen = 0,
        offsets: Sequence[float] | None = None,
        mean: Sequence[float] = Backbone.mean,
        std: Sequence[float] = Backbone.std,
        size: int = 224,
    ) -> None:
        super().__init__()
        taps = (len(stages) - 1,) if taps is None else tuple(taps)
        channels = [_last_width(stage) for stage in stages] if channels is None else channels
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= len(stages):
            raise ValueError(f"taps must rise within 0..{len(stages) - 1}, got {list(taps)}")
        self.stages = nn.ModuleList(stages[: taps[-1] + 1])
        self.taps, self.mean, self.std, self.size = taps, tuple(mean), tuple(std), size
        self.every = Stages(channels=channels, strides=strides, offsets=offsets, mean=mean, std=std, size=size)
        self.channels = [channels[tap] for tap in taps]
        self.strides = [strides[tap] for tap in taps]
        self.offsets = [strides[tap] / 2 if offsets is None else offsets[tap] for tap in taps]
        self.freeze(frozen)

    def freeze(self, count: Frozen) -> None:
        """From now on the first ``count`` stages (or all) do not train; those that did not and come after them do."""
        first = len(self.stages) if count == "all" else count
        if not 0 <= first <= len(self.stages):
            raise ValueError(f"frozen must lie within 0..{len(self.stages)} or be 'all', got {count}")
        for stage in self.stages[first : self.frozen]:
            stage.requires_grad_(True)
        for stage in self.stages[:first]:
            stage.requires_grad_(False)
        self.frozen = first
        self.train(self.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Tapped outputs (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W)."""
        return self._maps(x, range(len(self.stages)), self.taps)

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """The frozen stages' part of ``forward``: the maps (B, C, H, W) of theirs that ``from_frozen`` needs."""
        return self._maps(x, range(self.frozen), (*self.taps, self.frozen - 1))

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """The rest of ``forward``, which is ``from_frozen(frozen_maps(x))``."""
        done = sum(tap < self.frozen for tap in self.taps)
        return maps[:done] + self._maps(maps[-1], range(self.frozen, len(self.stages)), self.taps)

    def _maps(self, x: Tensor, stages: range, kept: Sequence[int]) -> list[Tensor]:
        """The outputs of those of ``stages`` that are ``kept``; ``x`` is what the first one reads."""
        outputs: list[Tensor] = []
        for index in stages:
            x = self._stage(index, x, outputs)
            if index in kept:
                outputs.append(x)
        return outputs

    def _stage(self, index: int, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """One stage's output; a stage that hands out more than that appends it to ``outputs``."""
        return self.stages[index](x)

    def train(self, mode: bool = True) -> StagedBackbone:
        """As usual, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self


class Pyramid(StagedBackbone):
    """One network on an image at several scales, so that windows of one size meet objects of all (OverFeat, Sermanet et
    al. 2014, arXiv 1312.6229, section 3.3); its maps of all of them, finest first.

    strides and offsets are told in pixels of the image itself: a map of stride 16 at scale 0.5 has a stride of 32.
    Stages, weights and their names are the backbone's.

    Args:
        backbone: The network.
        scales: By which the image is enlarged or reduced.

    Raises:
        ValueError: no scales, or one that is not above 0.
    """

    def __init__(self, backbone: StagedBackbone, scales: Sequence[float]) -> None:
        super().__init__(list(backbone.stages), **backbone.every, taps=backbone.taps, frozen=backbone.frozen)
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales must be numbers above 0, got {list(scales)}")
        self.scales = tuple(scales)
        places = list(product(scales, range(len(self.strides))))
        strides = [self.strides[i] / scale for scale, i in places]
        self.order = sorted(range(len(places)), key=lambda k: strides[k])
        self.strides = [int(strides[k]) if strides[k].is_integer() else strides[k] for k in self.order]
        chosen = [places[k] for k in self.order]
        self.offsets = [self.offsets[i] / scale for scale, i in chosen]
        self.channels = [self.channels[i] for _, i in chosen]
        self.train(backbone.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W)."""
        return self._sorted(super(Pyramid, self).forward(y) for y in self._scaled(x))

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s, scale after scale."""
        return [y for scaled in self._scaled(x) for y in super(Pyramid, self).frozen_maps(scaled)]

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """As ``Backbone``'s."""
        each = len(maps) // len(self.scales)
        parts = [maps[first : first + each] for first in range(0, len(maps), each)]
        return self._sorted(super(Pyramid, self).from_frozen(part) for part in parts)

    def _scaled(self, x: Tensor) -> Iterable[Tensor]:
        for scale in self.scales:
            # A whole number of pixels must not be rounded down by the last bit of the product.
            factor = scale * (1 + 1e-9)
            yield x if scale == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=scale < 1)

    def _sorted(self, per_scale: Iterable[list[Tensor]]) -> list[Tensor]:
        maps = [y for outputs in per_scale for y in outputs]
        return [maps[k] for k in self.order]


def at_scales(backbone: StagedBackbone, scales: Sequence[float]) -> StagedBackbone:
    """``backbone`` itself where ``scales`` is 1 alone, else a ``Pyramid`` of it."""
    return backbone if tuple(scales) == (1.0,) else Pyramid(backbone, scales)


class Classifier(nn.Module):
    """A backbone with a classifier on its last stage: (B, 3, H, W) normalised pixels to (B, num_classes) logits.

    Args:
        backbone: All of the network's stages, the last one tapped.
        classifier: From that one's output to logits.
    """

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

        Args:
            taps: Of the backbone.
            frozen: Of the backbone.

        Raises:
            ValueError: taps or frozen outside the stages.
        """
        stages = list(self.backbone.stages)
        body = self.body(stages, **self.backbone.every, taps=taps, frozen=frozen)
        layers = list(self.classifier)
        del layers[_place_of_logits(layers)]
        return body, nn.Sequential(*stages[len(body.stages) :], *layers)

    def branches(self, body: StagedBackbone) -> Mapping[int, nn.Sequential]:
        """Side branches, which only help to train; their last layer is to be made for the classes (``set_logits``).

        Args:
            body: From ``split``.

        Returns:
            Each by the place, among what ``body`` hands out while it trains, of the map (B, C, h, w) that it reads.
        """
        return {}


def _place_of_logits(layers: Sequence[nn.Module]) -> int:
    """The index of the last layer of weights, linear or 1 x 1, or of fixed codes (LeNet-5's output has no weights).

    Raises TypeError where the last weights are of another kind of layer.
    """
    index = max((i for i, layer in enumerate(layers) if layer.state_dict()), default=-1)
    last = layers[index]
    if hasattr(last, "out_features") or (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1)):
        return index
    raise TypeError(f"a classifier ends in a linear layer, got {type(last).__name__}")


def set_logits(layers: nn.Sequential, num_classes: int) -> nn.Sequential:
    """Makes the layer that gives the logits anew for ``num_classes``; a pretrained one of that size is kept.

    Args:
        layers: A classifier's, changed in place.
        num_classes: Logits.

    Returns:
        ``layers``.

    Raises:
        TypeError: The last weights are not linear or 1 x 1.
    """
    index = _place_of_logits(list(layers))
    last = layers[index]
    if isinstance(last, nn.Conv2d):
        if last.out_channels != num_classes:
            layers[index] = nn.Conv2d(last.in_channels, num_classes, 1)
    elif last.out_features != num_classes:
        layers[index] = type(last)(last.in_features, num_classes)
    return layers


def _last_width(stage: nn.Module) -> int:
    return [module.out_channels for module in stage.modules() if isinstance(module, nn.Conv2d)][-1]


def dilate(backbone: StagedBackbone, last: int, dilation: int) -> None:
    """Stage ``last`` without its stride: its further filters look ``dilation`` cells apart instead (Yu & Koltun 2016,
    arXiv 1511.07122); with 2 they see as much of the image as before, on a map twice as fine. In place.

    Raises:
        ValueError: Its stride is not that of its first convolutions with a stride of 2.
    """
    strides, found = list(backbone.every["strides"]), False
    layers = [module for module in backbone.stages[last].modules() if not any(True for _ in module.children())]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    steps = {getattr(layer, "stride", 1) for layer in layers if layer not in convs}  # of pools and shortcuts
    if dilation < 1 or not steps <= {1, (1, 1)} or all(conv.stride == (1, 1) for conv in convs):
        raise ValueError(
            f"dilation {dilation}: stage {last} has no stride of convolutions alone that it could stand for"
        )
    for conv in convs:
        high, wide = conv.kernel_size
        spread = dilation if found else 1
        if conv.stride != (1, 1):
            conv.stride, found = (1, 1), found or high > 1
        conv.dilation = (spread, spread)
        conv.padding = (spread * (high // 2), spread * (wide // 2))
    backbone.every["strides"] = [*strides[:last], *(stride // 2 for stride in strides[last:])]


def he_init(net: nn.Module, after: Literal["relu", "linear"] = "relu") -> nn.Module:
    """Random weights that keep the activations' scale without BatchNorm (He et al. 2015, arXiv 1502.01852), by fan-in.

    Args:
        net: Changed in place.
        after: What follows a layer; "linear" is LeCun's rule, for tanh.

    Returns:
        ``net``.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity=after)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def stages_and(stages: Sequence[nn.Module], classifier: nn.Module) -> nn.Module:
    """A whole network under the names that its files have."""
    return nn.ModuleDict({"stages": nn.ModuleList(stages), "classifier": classifier})


Entry = Callable[..., StagedBackbone | Classifier]
# A module whose tensors have the published names, and the classifier of the same tensors.
Network = tuple[nn.Module, Classifier]


def family(
    make: Callable[..., Network],
    *names: str,
    taps: tuple[int, ...] = (2, 3, 4),
    published: Mapping[str, object] = MappingProxyType({}),
    load: Callable[[nn.Module, str, str], None] = load_weights,
) -> list[Entry]:
    """The entries of the table of backbones for the networks ``names``, in their order.

    Args:
        make: ``make(name, **options)`` builds a network of as many classes as it was published for. Its keyword-only
            arguments are keys of the backbone too.
        names: Of the networks that ``make`` builds.
        taps: The default of that key.
        published: Those of ``make``'s options without which the ImageNet weights fit no longer.
        load: ``load(module, weights, name)`` fills the module from "imagenet" or a file.
    """

    def entry(name: str) -> Entry:
        @takes(make)
        def build(
            num_classes: int | None = None,
            *,
            weights: str | None = "none",
            taps: tuple[int, ...] = taps,
            frozen: Frozen = 0,
            scales: tuple[float, ...] = (1.0,),
            dilation: int = 1,
            **options: object,
        ) -> StagedBackbone | Classifier:
            """
            Args:
                num_classes: None for a backbone; else return a ``Classifier`` of the one scale, 0 for as many classes
                    as published.
                weights: "none", "imagenet" or a file in the published layout.
                taps: The stages returned.
                frozen: The first stages that do not train, or "all".
                scales: Of the image, see ``Pyramid``.
                dilation: Above 1 the last stage keeps the stride of the one before, see ``dilate``.

            Raises:
                DetkitError: The weights cannot be had.
                ValueError: taps or frozen outside the stages, scales not above 0.
            """
            for key, value in published.items():
                if weights == "imagenet" and options.get(key, value) != value:
                    do = f"leave {key} out, or set backbone.weights to none or a file"
                    raise DetkitError(f"there are no ImageNet weights for another {key}", f"backbone.{key}", do)
            module, net = make(name, **options)
            if weights not in (None, "none"):
                load(module, weights, name)
            if dilation != 1:
                dilate(net.backbone, max(taps), dilation)
            if num_classes is None:
                body = StagedBackbone(list(net.backbone.stages), **net.backbone.every, taps=taps, frozen=frozen)
                return at_scales(body, scales)
            net.backbone.freeze(frozen)
            if num_classes:
                set_logits(net.classifier, num_classes)
            return net

        build.__name__ = build.__qualname__ = name
        build.__doc__ = f"{inspect.getdoc(make) or name}\n\n{inspect.getdoc(build)}"
        return build

    return [entry(name) for name in names]
