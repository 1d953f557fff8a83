"""Darknet's networks as backbones, built from their graph: any imported one, Darknet-19 and Darknet-53.

Redmon & Farhadi 2017, YOLO9000, table 6 (Darknet-19); 2018, YOLOv3, table 1 (Darknet-53).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from detkit.backbones.base import Classifier, Frozen, Network, StagedBackbone, family
from detkit.errors import DetkitError
from detkit.importers.darknet_files import Convolution, load_darknet_weights, read_lines
from detkit.importers.darknet_graph import DarknetLayer, plan


class Stage(nn.ModuleDict):
    """Consecutive layers of a graph, under their numbers.

    Args:
        layers: Them; those of a detection head are left out.
        last_read: Of each layer's output, the number of the last layer that reads it.
    """

    def __init__(self, layers: Sequence[DarknetLayer], last_read: Mapping[int, int]) -> None:
        layers = [layer for layer in layers if layer.section.kind != "head"]
        super().__init__({str(layer.number): layer.make() for layer in layers})
        self.inputs, self.last_read = {layer.number: layer.inputs for layer in layers}, last_read

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The last layer's output; ``x`` is that of the layer before the first."""
        maps = {min(self.inputs) - 1: x}
        self.run(maps)
        return maps[max(self.inputs)]

    def run(self, maps: dict[int, Tensor]) -> None:
        """Adds the layers' outputs to ``maps``, by number, and takes away what nobody reads any more."""
        for (number, inputs), module in zip(self.inputs.items(), self.values(), strict=True):
            maps[number] = module(*(maps[i] for i in inputs))
            for i in set(inputs):
                if self.last_read[i] == number:
                    del maps[i]


class Darknet(StagedBackbone):
    """A graph as a backbone; pixels come as 0..1.

    A stage begins where the stride grows and where a neck begins, that is, where it first shrinks. Stages may read
    layers of earlier ones.

    Args:
        layers: What ``plan`` makes of the graph.
        outputs: Numbers of the layers that are returned, in this order; those after the last of them are not built.
        frozen: The first stages that do not train, or "all".

    Raises:
        DetkitError: Cells of an output do not tile the image.
        ValueError: outputs or frozen outside the graph.
    """

    def __init__(self, layers: Sequence[DarknetLayer], *, outputs: Sequence[int], frozen: Frozen = 0) -> None:
        for number in outputs:
            if not 0 <= number < len(layers) or layers[number].section.kind == "head":
                raise ValueError(f"outputs must be layers of the graph, 0..{len(layers) - 1}, got {number}")
            if not layers[number].stride:
                raise layers[number].section.error("its cells do not tile the image, so boxes have no place in it")
        layers = layers[: max(outputs) + 1]
        self.last_read = {i: layer.number for layer in layers for i in layer.inputs}
        self.last_read |= dict.fromkeys(outputs, len(layers))
        groups = _stages(layers)
        stages = [Stage(group, self.last_read) for group in groups]
        widths = [group[-1].channels for group in groups]
        strides = [group[-1].stride for group in groups]
        super().__init__(stages, widths, strides, frozen=frozen, mean=(0.0,) * 3, std=(255.0,) * 3)
        # The base counts taps in stages; here outputs may lie anywhere in one.
        self.outputs = tuple(outputs)
        self.channels = [layers[number].channels for number in outputs]
        self.strides = [layers[number].stride for number in outputs]
        self.offsets = [stride / 2 for stride in self.strides]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s."""
        return self._rest({-1: x}, 0)

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s: the outputs of frozen layers that are returned or read by others."""
        maps = {-1: x}
        for stage in self._graph()[: self.frozen]:
            stage.run(maps)
        return [maps[number] for number in self._kept()]

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """As ``Backbone``'s."""
        return self._rest(dict(zip(self._kept(), maps, strict=True)), self.frozen)

    def _rest(self, maps: dict[int, Tensor], first: int) -> list[Tensor]:
        for stage in self._graph()[first:]:
            stage.run(maps)
        return [maps[number] for number in self.outputs]

    def _kept(self) -> list[int]:
        """Numbers of the frozen layers that are returned or that others read."""
        frozen = {-1, *(number for stage in self._graph()[: self.frozen] for number in stage.inputs)}
        return sorted(number for number in frozen if self.last_read.get(number, -1) not in frozen)

    def _graph(self) -> list[Stage]:
        return cast(list[Stage], list(self.stages))

    def convolutions(self) -> dict[int, Convolution]:
        """The convolution and batch norm of each layer that has them, by its number."""
        found = {}
        for stage in self._graph():
            for number, layer in stage.items():
                parts = dict(layer.named_children())
                if "conv" in parts:
                    found[int(number)] = parts["conv"], parts.get("norm")
        return cast(dict[int, Convolution], found)


def darknet(
    num_classes: int | None = None,
    *,
    graph: list[str] | None = None,
    taps: tuple[int, ...] = (2, 3, 4),
    outputs: tuple[int, ...] = (),
    frozen: Frozen = 0,
) -> StagedBackbone | Classifier:
    """The network that a graph describes; pixels come as 0..1.

    Args:
        num_classes: None for a backbone; else return a ``Classifier`` on the last stage, of ImageNet's 1000 where it is
            0.
        graph: A line per layer in the words of a Darknet cfg: "convolutional filters=32 size=3 stride=2 pad=1
            batch_normalize=1 activation=leaky"; None: Darknet-19.
        taps: The stages returned, parts of the graph of one stride.
        outputs: Numbers of the layers returned, from 0, in place of taps, finest stride first.
        frozen: The first stages that do not train, or "all".

    Raises:
        DetkitError: A layer that is unknown or does not fit.
        ValueError: taps, outputs or frozen outside the graph.
    """
    layers = plan(read_lines(_darknet19() if graph is None else graph))
    if num_classes is not None:
        return _classifier(Darknet(layers, outputs=(len(layers) - 1,), frozen=frozen), num_classes or 1000)
    if not outputs:
        lasts = [group[-1].number for group in _stages(layers)]
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= len(lasts):
            raise ValueError(f"taps must rise within 0..{len(lasts) - 1}, got {list(taps)}")
        outputs = tuple(lasts[tap] for tap in taps)
    return Darknet(layers, outputs=outputs, frozen=frozen)


def _classifier(body: Darknet, num_classes: int) -> Classifier:
    logits = nn.Linear(body.channels[-1], num_classes)
    return Classifier(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), logits))


def _stages(layers: Sequence[DarknetLayer]) -> list[list[DarknetLayer]]:
    """The layers in groups: a new one where the stride exceeds all before, and where it first falls back."""
    groups: list[list[DarknetLayer]] = []
    largest, neck = 1, False
    for layer in layers:
        falls = 0 < layer.stride < largest and not neck
        if not groups or falls or layer.stride > largest > 1:
            groups.append([])
        groups[-1].append(layer)
        neck |= falls
        largest = max(largest, layer.stride)
    return groups


def _conv_line(filters: int, size: int = 3, stride: int = 1) -> str:
    return f"convolutional batch_normalize=1 filters={filters} size={size} stride={stride} pad=1 activation=leaky"


def _darknet19() -> list[str]:
    lines: list[str] = []
    for filters, convolutions in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5)):
        if lines:
            lines.append("maxpool size=2 stride=2")
        lines += [_conv_line(filters // 2, 1) if i % 2 else _conv_line(filters) for i in range(convolutions)]
    return lines


def _darknet53() -> list[str]:
    lines = [_conv_line(32)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        lines += [_conv_line(filters, stride=2)]
        lines += [_conv_line(filters // 2, 1), _conv_line(filters), "shortcut from=-3"] * blocks
    return lines


def _network(name: str) -> Network:
    """Five stages of strides 2, 4, 8, 16, 32 with 64, 128, 256, 512, 1024 channels; pixels come as 0..1.

    A file of weights is Darknet's and begins with this net's layers, as darknet53.conv.74 and darknet19_448.conv.23 do.
    """
    layers = plan(read_lines(_darknet19() if name == "darknet19" else _darknet53()))
    net = Darknet(layers, outputs=(len(layers) - 1,))
    return net, _classifier(net, 1000)


def _load(net: nn.Module, weights: str, name: str) -> None:
    if weights == "imagenet":
        do = f"fetch a Darknet file such as {_PUBLISHED[name]} and give its path, or none"
        raise DetkitError(f"the ImageNet weights of {name} are not fetched by detkit", "backbone.weights", do)
    load_darknet_weights(cast(Darknet, net).convolutions(), Path(weights), whole=False)


_PUBLISHED = {"darknet19": "darknet19_448.conv.23", "darknet53": "darknet53.conv.74"}
darknet19, darknet53 = family(_network, *_PUBLISHED, load=_load)
