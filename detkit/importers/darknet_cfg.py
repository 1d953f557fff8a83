"""Darknet's graphs: the sections of a cfg file, and what every layer reads and puts out.

A layer reads the one before it; ``route`` and ``shortcut`` name others, by number from 0 or, below 0, counted back from
themselves. The word ``head`` stands for a layer that has become part of a detection head: it keeps its number, so that
all others keep theirs, and nothing may read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from detkit.errors import DetkitError

ACTIVATIONS = ("leaky", "relu", "mish", "swish", "linear", "logistic")
_ALIASES = {"net": "network", "conv": "convolutional", "max": "maxpool", "avg": "avgpool"}
_AT_LEAST_ONE = {"filters": 1, "size": 1, "stride": 1, "groups": 1}
# The keys that shape a layer and their defaults in Darknet; "" stands for a list of layers, without default.
KEYS: dict[str, dict[str, int | float | str]] = {
    "convolutional": {**_AT_LEAST_ONE, "pad": 0, "padding": 0, "batch_normalize": 0, "activation": "logistic"},
    "maxpool": {"size": 0, "stride": 1, "padding": -1},
    "upsample": {"stride": 2},
    "route": {"layers": "", "groups": 1, "group_id": 0},
    "shortcut": {"from": "", "activation": "linear"},
    "reorg": {"stride": 1},
    "dropout": {"probability": 0.2},
    "avgpool": {},
    "head": {},
}
_OFF = ("binary", "xnor", "cbn", "flipped", "antialiasing", "sway", "rotate", "stretch", "stretch_sway")
# Keys that would change the result; anything but these values is refused rather than overlooked.
_FIXED: dict[str, dict[str, int | str | None]] = {
    "convolutional": {**dict.fromkeys(_OFF, 0), "dilation": 1, "share_index": None, "stride_x": None, "stride_y": None},
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0, "stride_x": None, "stride_y": None},
    "upsample": {"scale": 1, "reverse": 0},
    "shortcut": {"weights_type": "none"},
    "reorg": {"reverse": 0, "flatten": 0, "extra": 0},
    "region": {"coords": 4, "tree": None, "map": None, "absolute": 0},
    "yolo": {"map": None},
}
_SIDE = 4096  # any image's: large enough that every stride divides it


@dataclass(frozen=True, slots=True)
class Section:
    """One ``[kind]`` of a cfg: its options as text, and its place (the line of the header and of each key)."""

    kind: str
    options: dict[str, str]
    source: str
    line: int
    lines: dict[str, int] = field(default_factory=dict)
    number: int = -1

    def error(self, what: str, do: str = "", key: str = "") -> DetkitError:
        """An error that names file, line and layer."""
        layer = f": layer {self.number} [{self.kind}]" if self.number >= 0 else f": [{self.kind}]"
        return DetkitError(what, f"{self.source}, line {self.lines.get(key, self.line)}{layer}", do)

    def whole(self, key: str, default: int, least: int = 0) -> int:
        """The whole number under ``key``."""
        value = self.number_of(key, default)
        if value != int(value) or value < least:
            given = self.options.get(key, "none")
            raise self.error(f"{key} must be a whole number of at least {least}, got {given}", key=key)
        return int(value)

    def number_of(self, key: str, default: float) -> float:
        """The number under ``key``."""
        try:
            return float(self.options.get(key, default))
        except ValueError:
            raise self.error(f"{key} must be a number, got {self.options[key]!r}", key=key) from None

    def list_of(self, key: str) -> list[float]:
        """The numbers under ``key``, separated by commas; none where the key is missing."""
        words = [word for word in re.split(r"[,\s]+", self.options.get(key, "")) if word]
        try:
            return [float(word) for word in words]
        except ValueError:
            raise self.error(f"{key} must be numbers separated by commas", key=key) from None

    def check_fixed(self) -> None:
        """Raises DetkitError for an option that detkit does not compute."""
        for key, value in _FIXED.get(self.kind, {}).items():
            given = self.options.get(key)
            if given is not None and given != str(value):
                raise self.error(f"{key}={given} is not supported", "only nets without it can be imported", key)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a graph.

    Attributes:
        number: Its place, from 0.
        values: Of all keys that are whole numbers.
        activation: The word, if it has one.
        inputs: Numbers of the layers that it reads, -1 for the image.
        channels: Of its output.
        stride: Of its output in input pixels, 0 where its cells do not tile the image.
    """

    number: int
    kind: str
    values: Mapping[str, int]
    activation: str
    inputs: tuple[int, ...]
    channels: int
    stride: int
    section: Section


def read_cfg(text: str, source: str) -> list[Section]:
    """The sections of a cfg file, the ``network`` first, the layers numbered from 0.

    Args:
        text: What the file holds.
        source: Its name, for errors.

    Raises:
        DetkitError: A line that is neither section, option nor comment, or no network at the start; names the line.
    """
    sections: list[Section] = []
    for line, words in enumerate(text.splitlines(), 1):
        words = words.strip()
        if not words or words[0] in "#;":
            continue
        header = re.fullmatch(r"\[\s*(\w+)\s*\]", words)
        name, equals, value = (part.strip() for part in words.partition("="))
        if header:
            kind = header[1].lower()
            sections.append(Section(_ALIASES.get(kind, kind), {}, source, line, {}, len(sections) - 1))
        elif not equals or not name or not sections:
            do = "a cfg has [section] lines, key=value lines and # comments"
            raise DetkitError(f"this is no line of a Darknet cfg: {words[:60]!r}", f"{source}, line {line}", do)
        else:
            sections[-1].options[name], sections[-1].lines[name] = value, line
    if not sections or sections[0].kind != "network":
        raise DetkitError("a Darknet cfg begins with [net]", source, "give the cfg file that the weights belong to")
    return sections


def read_lines(lines: Sequence[str]) -> list[Section]:
    """The layers of a graph written as a line each: ``convolutional filters=32 size=3 pad=1``.

    Raises:
        DetkitError: A word that is not key=value.
    """
    sections = []
    for number, line in enumerate(lines):
        kind, *words = line.split() or [""]
        pairs = [word.partition("=") for word in words]
        section = Section(kind, {key: value for key, _, value in pairs}, "graph", number + 1, {}, number)
        if not kind or any(not key or not equals for key, equals, _ in pairs):
            raise section.error(f"not a layer: {line!r}", "write kind key=value key=value")
        sections.append(section)
    return sections


def to_lines(sections: Iterable[Section]) -> list[str]:
    """The inverse of ``read_lines``; options of training are left out."""
    lines = []
    for section in sections:
        given = {key: section.options[key] for key in KEYS.get(section.kind, {}) if key in section.options}
        lines.append(" ".join([section.kind, *(f"{key}={''.join(value.split())}" for key, value in given.items())]))
    return lines


def plan(sections: Sequence[Section]) -> list[Layer]:
    """What every layer reads and puts out, for an image of 3 channels.

    Raises:
        DetkitError: An unknown layer or activation, a bad value, a layer that is not there, shapes that do not fit;
            names the line and the layer.
    """
    layers: list[Layer] = []
    shapes = {-1: (3, _SIDE)}  # channels and cells along a side, of the image and of every layer
    for section in sections:
        if section.kind not in KEYS:
            known = ", ".join(kind for kind in KEYS if kind != "head")
            raise section.error(f"the layer {section.kind} is not supported", f"supported: {known}, yolo, region")
        section.check_fixed()
        defaults = KEYS[section.kind]
        activation = section.options.get("activation", str(defaults.get("activation", "")))
        if "activation" in defaults and activation not in ACTIVATIONS:
            supported = f"supported: {', '.join(ACTIVATIONS)}"
            raise section.error(f"the activation {activation} is not supported", supported, "activation")
        values = {
            key: section.whole(key, default, int(key in _AT_LEAST_ONE)) if key in section.options else default
            for key, default in defaults.items()
            if isinstance(default, int)
        }
        inputs = _inputs(section, layers)
        channels, side = _shape(section, values, [shapes[i] for i in inputs])
        stride = _SIDE // side if side and _SIDE % side == 0 else 0
        shapes[section.number] = channels, side
        layers.append(Layer(section.number, section.kind, values, activation, inputs, channels, stride, section))
    return layers


def _inputs(section: Section, layers: list[Layer]) -> tuple[int, ...]:
    if section.kind == "head":
        return ()
    key = {"route": "layers", "shortcut": "from"}.get(section.kind, "")
    named, here = [int(number) for number in section.list_of(key)], section.number
    if key and not named:
        raise section.error(f"{key} is missing", f"write {key}=-1, say", key)
    found = [number if number >= 0 else here + number for number in named]
    for number, said in zip(found, named, strict=True):
        if not 0 <= number < here:
            raise section.error(f"it reads layer {said}, which does not come before it", key=key)
    inputs = found if section.kind == "route" else [here - 1, *found]
    for number in inputs:
        if number >= 0 and layers[number].kind == "head":
            what = f"it reads layer {number}, which is part of the detection head"
            raise section.error(what, "only route past a yolo layer and its convolution can be imported")
    return tuple(inputs)


def _shape(section: Section, values: dict[str, int], inputs: list[tuple[int, int]]) -> tuple[int, int]:
    """Channels and cells along a side of the output; fills in what Darknet derives (padding, size of a pool)."""
    if not inputs:
        return 0, 0
    channels, side = inputs[0]
    if any(other != side for _, other in inputs):
        raise section.error("the layers that it reads differ in width and height")
    kind, groups, stride = section.kind, values.get("groups", 1), values.get("stride", 1)
    if kind == "convolutional":
        if values["pad"]:
            values["padding"] = values["size"] // 2
        if channels % groups or values["filters"] % groups:
            what = f"{groups} groups do not divide {channels} channels and {values['filters']} filters"
            raise section.error(what, key="groups")
        channels, side = values["filters"], (side + 2 * values["padding"] - values["size"]) // stride + 1
    elif kind == "maxpool":
        values["size"] = values["size"] or stride
        values["padding"] = values["size"] - 1 if values["padding"] < 0 else values["padding"]
        side = (side + values["padding"] - values["size"]) // stride + 1
    elif kind == "route":
        if any(c % groups for c, _ in inputs) or values["group_id"] >= groups:
            raise section.error(f"group {values['group_id']} of {groups} cannot be taken from these layers")
        channels = sum(c for c, _ in inputs) // groups
    elif kind == "shortcut" and any(c != channels for c, _ in inputs):
        raise section.error(f"it adds layers of {' and '.join(str(c) for c, _ in inputs)} channels")
    elif kind == "upsample":
        side *= stride
    elif kind == "reorg":
        if channels % stride**2 or side % stride:
            raise section.error(f"{channels} channels cannot be regrouped with stride {stride}")
        channels, side = channels * stride**2, side // stride
    elif kind == "avgpool":
        side = 1
    if side < 1:
        raise section.error("nothing is left of the image here")
    return channels, side
