"""What most backbones are: a chain of stages, some of which are tapped; and the classifier around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypedDict

from torch import Tensor, nn

from detkit.interfaces import Backbone

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
        channels: Of every stage's output.
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
        channels: Sequence[int],
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
    for index in reversed(range(len(layers))):
        last = layers[index]
        if hasattr(last, "out_features") or (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1)):
            return index
        if any(True for _ in last.parameters()):
            break
    raise TypeError(f"a classifier ends in a linear layer, got {type(layers[-1]).__name__}")


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


def last_widths(stages: Sequence[nn.Module]) -> list[int]:
    """The channels of the last convolution of each stage."""
    return [[m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)][-1] for stage in stages]


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
