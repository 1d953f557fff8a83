"""Darknet's graphs: what every layer reads, makes and puts out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.importers.darknet_files import KEYS, Section

_SIDE = 4096  # any image's: large enough that every stride divides it
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
    "linear": nn.Identity,
}
_LARGEST = 1 << 27  # weights of a layer; published ones have below 1 << 24
_NAMES_LAYERS = {"route": "layers", "shortcut": "from", "scale_channels": "from", "sam": "from"}


def max_pool(size: int, stride: int, padding: int) -> nn.Module:
    """Darknet's: ``padding`` cells in all, one more at the right and bottom than at the left and top if it is odd."""
    before = padding // 2
    if padding % 2 == 0:
        return nn.MaxPool2d(size, stride, before)
    return nn.Sequential(nn.ConstantPad2d((before, before + 1) * 2, -torch.inf), nn.MaxPool2d(size, stride))


class Route(nn.Module):
    """Inputs one after the other; of ``groups`` equal parts of each only part ``group``."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self.groups, self.group = groups, group

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [x.chunk(self.groups, dim=1)[self.group] for x in inputs]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class Shortcut(nn.Module):
    """The sum of the inputs, and an activation.

    An input of more channels than the first is cut to those, to one of fewer the missing ones are added as zeros.
    """

    def __init__(self, channels: Sequence[int], activation: str) -> None:
        super().__init__()
        self.missing = [channels[0] - c for c in channels]
        self.act = _ACTIVATIONS[activation]()

    def forward(self, *inputs: Tensor) -> Tensor:
        fitted = (F.pad(x, (0, 0, 0, 0, 0, n)) if n else x for x, n in zip(inputs, self.missing, strict=True))
        return self.act(reduce(torch.add, fitted))


class Scale(nn.Module):
    """The second input times the first, of one cell (squeeze and excitation) or as many, and an activation."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[activation]()

    def forward(self, gate: Tensor, x: Tensor) -> Tensor:
        return self.act(gate * x)


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


def _convolution(
    channels: int, shape: tuple[int, int, int, int], groups: int, normed: bool, activation: str
) -> nn.Sequential:
    conv = nn.Conv2d(channels, *shape, groups=groups, bias=not normed)
    # Darknet divides by sqrt(variance) + 1e-6; OpenCV, whose outputs these equal, by this.
    norm = [("norm", nn.BatchNorm2d(shape[0], eps=1e-6))] if normed else []
    return nn.Sequential(OrderedDict([("conv", conv), *norm, ("act", _ACTIVATIONS[activation]())]))


class DarknetLayer(NamedTuple):
    """A layer of a graph.

    Attributes:
        number: Its place, from 0.
        make: Makes its module.
        inputs: Numbers of the layers that it reads, -1 for the image.
        channels: Of its output, 0 of a layer that became part of a head.
        stride: Of its output in input pixels, 0 where its cells do not tile the image.
        section: What says so.
    """

    number: int
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    channels: int
    stride: int
    section: Section


def plan(sections: Sequence[Section]) -> list[DarknetLayer]:
    """What every layer reads and puts out, for an image of 3 channels.

    A layer reads the one before it; ``route``, ``shortcut``, ``scale_channels`` and ``sam`` name others, by number from
    0 or, below 0, counted back from themselves. The word ``head`` stands for a layer that has become part of a
    detection head: it keeps its number, so that all others keep theirs, and nothing may read it.

    Raises:
        DetkitError: An unknown layer or activation, a bad value, a layer that is not there, shapes that do not fit;
            names the line and the layer.
    """
    layers: list[DarknetLayer] = []
    shapes = {-1: (3, _SIDE)}  # channels and cells along a side, of the image and of every layer
    for section in sections:
        if section.kind not in KEYS:
            known = ", ".join(kind for kind in KEYS if kind != "head")
            raise section.error(f"the layer {section.kind} is not supported", f"supported: {known}, yolo, region")
        section.check_fixed()
        inputs = _inputs(section, layers)
        make, channels, side = _planned(section, [shapes[i] for i in inputs])
        if inputs and side < 1:
            raise section.error("nothing is left of the image here")
        stride = _SIDE // side if side > 1 and _SIDE % side == 0 else 0
        shapes[section.number] = channels, side
        layers.append(DarknetLayer(section.number, make, inputs, channels, stride, section))
    return layers


def _inputs(section: Section, layers: list[DarknetLayer]) -> tuple[int, ...]:
    if section.kind == "head":
        return ()
    key, here = _NAMES_LAYERS.get(section.kind, ""), section.number
    named = [int(number) for number in section.list_of(key)]
    if key and not named:
        raise section.error(f"{key} is missing", f"write {key}=-1, say", key)
    found = [number if number >= 0 else here + number for number in named]
    for number, said in zip(found, named, strict=True):
        if not 0 <= number < here:
            raise section.error(f"it reads layer {said}, which does not come before it", key=key)
    inputs = found if section.kind == "route" else [here - 1, *found]
    for number in inputs:
        if number >= 0 and layers[number].section.kind == "head":
            what = f"it reads layer {number}, which is part of the detection head"
            raise section.error(what, "only route past a yolo layer and its convolution can be imported")
    return tuple(inputs)


def _planned(section: Section, inputs: list[tuple[int, int]]) -> tuple[Callable[[], nn.Module], int, int]:
    """What makes the module, and channels and cells along a side of the output; ``inputs``: of what it reads."""
    kind, whole = section.kind, section.whole
    if kind == "head":
        return nn.Identity, 0, 0
    channels, side = inputs[0]
    if kind in ("scale_channels", "sam"):
        if len(inputs) != 2 or inputs[0] != (inputs[1][0], 1 if kind == "scale_channels" else inputs[1][1]):
            raise section.error("the layer before it does not fit the one that it scales", key="from")
        return partial(Scale, section.word("activation", "linear", _ACTIVATIONS)), *inputs[1]
    if any(other != side for _, other in inputs):
        raise section.error("the layers that it reads differ in width and height")
    if kind == "convolutional":
        filters, size, stride, groups = (whole(key, 1, 1) for key in ("filters", "size", "stride", "groups"))
        padding = size // 2 if whole("pad", 0) else whole("padding", 0)
        if channels % groups or filters % groups:
            what = f"{groups} groups do not divide {channels} channels and {filters} filters"
            raise section.error(what, key="groups")
        if size <= side + 2 * padding and channels // groups * filters * size**2 > _LARGEST:
            what = f"{filters} filters of {size} x {size} on {channels} channels are more than any network's"
            raise section.error(what, key="filters")
        shape, normed = (filters, size, stride, padding), bool(whole("batch_normalize", 0))
        activation = section.word("activation", "logistic", _ACTIVATIONS)
        make = partial(_convolution, channels, shape, groups, normed, activation)
        return make, filters, (side + 2 * padding - size) // stride + 1
    if kind == "maxpool":
        stride = whole("stride", 1, 1)
        size = whole("size", stride, 1)
        padding = whole("padding", size - 1)
        return partial(max_pool, size, stride, padding), channels, (side + padding - size) // stride + 1
    if kind == "route":
        groups, group = whole("groups", 1, 1), whole("group_id", 0)
        if any(c % groups for c, _ in inputs) or group >= groups:
            raise section.error(f"group {group} of {groups} cannot be taken from these layers")
        return partial(Route, groups, group), sum(c for c, _ in inputs) // groups, side
    if kind == "shortcut":
        activation = section.word("activation", "linear", _ACTIVATIONS)
        return partial(Shortcut, [c for c, _ in inputs], activation), channels, side
    if kind == "upsample":
        stride = whole("stride", 2, 1)
        return partial(nn.Upsample, scale_factor=stride, mode="nearest"), channels, side * stride
    if kind == "reorg":
        stride = whole("stride", 1, 1)
        if channels % stride**2 or side % stride:
            raise section.error(f"{channels} channels cannot be regrouped with stride {stride}")
        return partial(Reorg, stride), channels * stride**2, side // stride
    if kind == "dropout":
        return partial(nn.Dropout, section.number_of("probability", 0.2)), channels, side
    return partial(nn.AdaptiveAvgPool2d, 1), channels, 1
