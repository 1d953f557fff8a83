"""Darknet's networks as backbones, built from their graph: any imported one, Darknet-19 and Darknet-53.

Redmon & Farhadi 2017, YOLO9000, table 6 (Darknet-19); 2018, YOLOv3, table 1 (Darknet-53).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Classifier, Frozen, StagedBackbone
from detkit.backbones.families import family
from detkit.errors import DetkitError
from detkit.importers.darknet_cfg import Layer, plan, read_lines

# A convolution and its batch norm, if it has one, as they follow each other in a weights file.
Convolution = tuple[nn.Conv2d, nn.BatchNorm2d | None]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
    "linear": nn.Identity,
}


class MaxPool(nn.Module):
    """Darknet's: ``padding`` cells in all, one more at the right and bottom than at the left and top if it is odd."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        before = self.padding // 2
        if self.padding % 2:
            x, before = F.pad(x, (before, before + 1) * 2, value=-torch.inf), 0
        return F.max_pool2d(x, self.size, self.stride, before)


class Route(nn.Module):
    """Inputs one after the other; of ``groups`` equal parts of each only part ``group``."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self.groups, self.group = groups, group

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [x.chunk(self.groups, dim=1)[self.group] for x in inputs]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class Shortcut(nn.Module):
    """The sum of the inputs, and an activation."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[activation]()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.act(reduce(torch.add, inputs))


class Reorg(nn.Module):
    """Cells to channels in Darknet's own order, that of published weights: (B, C, H, W) to (B, C s^2, H / s, W / s).

    Darknet reads the map as if it had C / s^2 channels and s times the sides, regroups that, and reads the result anew.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, high, wide = x.shape
        s = self.stride
        x = x.reshape(batch, channels // s**2, high, s, wide, s).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(batch, channels * s**2, high // s, wide // s)


class Stage(nn.ModuleDict):
    """Consecutive layers of a graph, under their numbers."""

    def __init__(self, layers: Sequence[Layer], kept: frozenset[int], channels: Mapping[int, int]) -> None:
        layers = [layer for layer in layers if layer.kind != "head"]
        super().__init__({str(layer.number): _module(layer, channels[layer.inputs[0]]) for layer in layers})
        self.layers = [(layer.number, layer.inputs, layer.number in kept) for layer in layers]

    def forward(self, x: Tensor, saved: dict[int, Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """The last layer's output; ``x`` is that of the layer before the first, ``saved`` holds what is read later."""
        saved = {} if saved is None else saved
        for (number, inputs, kept), module in zip(self.layers, self.values(), strict=True):
            x = module(*(x if i == number - 1 else saved[i] for i in inputs))
            if kept:
                saved[number] = x
        return x


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

    def __init__(self, layers: Sequence[Layer], *, outputs: Sequence[int], frozen: Frozen = 0) -> None:
        for number in outputs:
            if not 0 <= number < len(layers) or layers[number].kind == "head":
                raise ValueError(f"outputs must be layers of the graph, 0..{len(layers) - 1}, got {number}")
            if not layers[number].stride:
                raise layers[number].section.error("its cells do not tile the image, so boxes have no place in it")
        layers = layers[: max(outputs) + 1]
        groups = _stages(layers)
        far = {i for layer in layers for i in layer.inputs if i != layer.number - 1}
        channels = {-1: 3, **{layer.number: layer.channels for layer in layers}}
        stages = [Stage(group, frozenset(far | set(outputs)), channels) for group in groups]
        # The base counts taps in stages; here outputs may lie anywhere in one.
        none = [0] * len(stages)
        super().__init__(stages, none, none, frozen=frozen, mean=(0.0,) * 3, std=(255.0,) * 3)
        self.outputs = tuple(outputs)
        self.channels = [layers[number].channels for number in outputs]
        self.strides = [layers[number].stride for number in outputs]
        self.offsets = [stride / 2 for stride in self.strides]
        self._firsts = [*(group[0].number for group in groups), len(layers)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s."""
        return self._returned(x, {}, list(self.stages))

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """As ``Backbone``'s: the outputs of frozen layers that are returned or read by others."""
        saved: dict[int, Tensor] = {}
        for stage in self.stages[: self.frozen]:
            x = stage(x, saved)
        saved[self._firsts[self.frozen] - 1] = x
        return [saved[number] for number in self._kept()]

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        saved = dict(zip(self._kept(), maps, strict=True))
        x = saved.get(self._firsts[self.frozen] - 1, maps[-1])  # the next layer may read others only
        return self._returned(x, saved, list(self.stages[self.frozen :]))

    def _returned(self, x: Tensor, saved: dict[int, Tensor], stages: Sequence[nn.Module]) -> list[Tensor]:
        for stage in stages:
            x = stage(x, saved)
        return [saved[number] for number in self.outputs]

    def _kept(self) -> list[int]:
        """Numbers of the frozen layers that are returned or that others read."""
        later = [stage for stage in self.stages[self.frozen :] if isinstance(stage, Stage)]
        read = {number for stage in later for _, inputs, _ in stage.layers for number in inputs}
        return sorted(number for number in read | set(self.outputs) if number < self._firsts[self.frozen])

    def convolutions(self) -> dict[int, Convolution]:
        """The convolution and batch norm of each layer that has them, by its number."""
        parts = {name: m for name, m in self.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))}
        found = {}
        for name, conv in parts.items():
            if isinstance(conv, nn.Conv2d):
                layer = name.removesuffix(".conv")
                norm = parts.get(f"{layer}.norm")
                found[int(layer.rpartition(".")[2])] = conv, norm if isinstance(norm, nn.BatchNorm2d) else None
        return found


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
    lasts = [group[-1].number for group in _stages(layers)]
    if num_classes is not None:
        outputs = (lasts[-1],)
    elif not outputs:
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= len(lasts):
            raise ValueError(f"taps must rise within 0..{len(lasts) - 1}, got {list(taps)}")
        outputs = tuple(lasts[tap] for tap in taps)
    net = Darknet(layers, outputs=outputs, frozen=frozen)
    if num_classes is None:
        return net
    return _classifier(net, net.channels[-1], num_classes or 1000)


def _classifier(body: StagedBackbone, channels: int, num_classes: int) -> Classifier:
    logits = nn.Linear(channels, num_classes)
    return Classifier(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), logits))


def load_darknet_weights(convolutions: Mapping[int, Convolution], path: Path, *, whole: bool = True) -> int:
    """Fills convolutions from a Darknet weights file; returns how many images it was trained on.

    The file: int32 major, minor, revision; the images seen, 8 bytes from version 0.2 on, else 4; then float32,
    convolution by convolution: biases, with batch norm scales, means and variances, then weights.

    Args:
        convolutions: By the number of their layer.
        path: The file.
        whole: The file must end with the last one; else it may go on.

    Raises:
        DetkitError: No Darknet weights, another number of them than these layers have, or values that cannot be.
    """
    where, do = str(path), "give the weights file that was made with this very cfg"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DetkitError(f"the weights cannot be read: {error.strerror}", where, "check the path") from None
    major, minor, _ = struct.unpack("<3i", data[:12].ljust(12, b"\xff"))
    header = 20 if major * 10 + minor >= 2 else 16
    if not (0 <= major < 1000 and 0 <= minor < 1000) or len(data) < header:
        raise DetkitError("this is not a Darknet weights file", where, do)
    seen = int.from_bytes(data[12:header], "little")
    values = np.frombuffer(data, "<f4", (len(data) - header) // 4, header)
    expected = sum(conv.weight.numel() + conv.out_channels * (4 if norm else 1) for conv, norm in convolutions.values())
    if len(values) < expected or (whole and (len(values) > expected or (len(data) - header) % 4)):
        what = f"the weights do not fit the graph: {expected:,} numbers expected, {len(values):,} found"
        raise DetkitError(what, where, do)
    at = 0
    for number, (conv, norm) in sorted(convolutions.items()):
        parts = [norm.bias, norm.weight, norm.running_mean, norm.running_var] if norm else [conv.bias]
        for part in (part for part in (*parts, conv.weight) if part is not None):
            chunk = values[at : at + part.numel()]
            at += part.numel()
            if not np.isfinite(chunk).all() or (norm is not None and part is norm.running_var and (chunk < 0).any()):
                what = f"layer {number} would get values that are not finite, or variances below 0"
                raise DetkitError(what, where, f"the file is damaged or of another net: {do}")
            part.data.copy_(torch.from_numpy(chunk.copy()).view(part.shape))
    return seen


def _module(layer: Layer, channels: int) -> nn.Module:
    v = layer.values
    if layer.kind == "convolutional":
        norm, shape = bool(v["batch_normalize"]), (layer.channels, v["size"], v["stride"], v["padding"])
        conv = nn.Conv2d(channels, *shape, groups=v["groups"], bias=not norm)
        # Darknet divides by sqrt(variance) + 1e-6; OpenCV, whose outputs these equal, by this.
        norms = [("norm", nn.BatchNorm2d(layer.channels, eps=1e-6))] if norm else []
        return nn.Sequential(OrderedDict([("conv", conv), *norms, ("act", _ACTIVATIONS[layer.activation]())]))
    if layer.kind == "maxpool":
        return MaxPool(v["size"], v["stride"], v["padding"])
    if layer.kind == "upsample":
        return nn.Upsample(scale_factor=v["stride"], mode="nearest")
    if layer.kind == "route":
        return Route(v["groups"], v["group_id"])
    if layer.kind == "shortcut":
        return Shortcut(layer.activation)
    if layer.kind == "reorg":
        return Reorg(v["stride"])
    if layer.kind == "dropout":
        return nn.Dropout(layer.section.number_of("probability", 0.2))
    return nn.AdaptiveAvgPool2d(1)


def _stages(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in groups: a new one where the stride exceeds all before, and where it first falls back."""
    groups: list[list[Layer]] = [[]]
    largest, neck = 1, False
    for layer in layers:
        stride = layer.stride
        falls = 0 < stride < largest and not neck
        if groups[-1] and (falls or stride > largest > 1):
            groups.append([])
        neck |= falls
        largest = max(largest, stride)
        groups[-1].append(layer)
    return groups


def _convolution(filters: int, size: int = 3, stride: int = 1) -> str:
    return f"convolutional batch_normalize=1 filters={filters} size={size} stride={stride} pad=1 activation=leaky"


def _darknet19() -> list[str]:
    lines: list[str] = []
    for filters, convolutions in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5)):
        if lines:
            lines.append("maxpool size=2 stride=2")
        lines += [_convolution(filters // 2, 1) if i % 2 else _convolution(filters) for i in range(convolutions)]
    return lines


def _darknet53() -> list[str]:
    lines = [_convolution(32)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        lines += [_convolution(filters, stride=2)]
        lines += [_convolution(filters // 2, 1), _convolution(filters), "shortcut from=-3"] * blocks
    return lines


def _network(name: str, weights: str | None) -> Classifier:
    """Five stages of strides 2, 4, 8, 16, 32 with 64, 128, 256, 512, 1024 channels; pixels come as 0..1.

    A file of weights is Darknet's and begins with this net's layers, as darknet53.conv.74 and darknet19_448.conv.23 do.
    """
    if weights == "imagenet":
        do = f"fetch a Darknet file such as {_PUBLISHED[name]} and give its path, or none"
        raise DetkitError(f"the ImageNet weights of {name} are not fetched by detkit", "backbone.weights", do)
    layers = plan(read_lines(_darknet19() if name == "darknet19" else _darknet53()))
    net = Darknet(layers, outputs=[group[-1].number for group in _stages(layers)])
    if weights not in (None, "none"):
        load_darknet_weights(net.convolutions(), Path(str(weights)), whole=False)
    body = StagedBackbone(list(net.stages), net.channels, mean=net.mean, std=net.std)
    return _classifier(body, net.channels[-1], 1000)


_PUBLISHED = {"darknet19": "darknet19_448.conv.23", "darknet53": "darknet53.conv.74"}
darknet19, darknet53 = family(_network, *_PUBLISHED)
