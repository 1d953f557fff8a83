"""Darknet's files: the sections of a cfg, the same as a line per layer, and the numbers of a weights file."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkit.errors import DetkitError

# A convolution and its batch norm, if it has one, as they follow each other in a weights file.
Convolution = tuple[nn.Conv2d, nn.BatchNorm2d | None]
_ALIASES = {"net": "network", "conv": "convolutional", "max": "maxpool", "avg": "avgpool"}
# The keys that shape a layer; others are for training.
KEYS = {
    "convolutional": ("filters", "size", "stride", "pad", "padding", "groups", "batch_normalize", "activation"),
    "maxpool": ("size", "stride", "padding"),
    "upsample": ("stride",),
    "route": ("layers", "groups", "group_id"),
    "shortcut": ("from", "activation"),
    "scale_channels": ("from", "activation"),
    "sam": ("from", "activation"),
    "reorg": ("stride",),
    "dropout": ("probability",),
    "avgpool": (),
    "head": (),
}
_OFF = ("binary", "xnor", "cbn", "flipped", "antialiasing", "sway", "rotate", "stretch", "stretch_sway")
# Keys that would change the result; anything but these values is refused rather than overlooked.
_FIXED: dict[str, dict[str, int | str | None]] = {
    "convolutional": {**dict.fromkeys(_OFF, 0), "dilation": 1, "share_index": None, "stride_x": None, "stride_y": None},
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0, "stride_x": None, "stride_y": None},
    "upsample": {"scale": 1, "reverse": 0},
    "shortcut": {"weights_type": "none"},
    "scale_channels": {"scale_wh": 0},
    "reorg": {"reverse": 0, "flatten": 0, "extra": 0},
    "region": {"coords": 4, "tree": None, "map": None},
    "yolo": {"map": None},
}


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
        return DetkitError(what, self.place(key), do)

    def place(self, key: str = "") -> str:
        """File, line and layer, for errors."""
        layer = f": layer {self.number} [{self.kind}]" if self.number >= 0 else f": [{self.kind}]"
        return f"{self.source}, line {self.lines.get(key, self.line)}{layer}"

    def whole(self, key: str, default: int, least: int = 0) -> int:
        """The whole number under ``key``."""
        value = self.number_of(key, default)
        if value % 1 or value < least:  # of infinity the rest is no number
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
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise self.error(f"{key} must be numbers separated by commas", key=key)
        return numbers

    def word(self, key: str, default: str, words: Collection[str]) -> str:
        """The word under ``key``, one of ``words``."""
        word = self.options.get(key, default)
        if word not in words:
            raise self.error(f"the {key} {word} is not supported", f"supported: {', '.join(words)}", key)
        return word

    def check_fixed(self) -> None:
        """Raises DetkitError for an option that detkit does not compute."""
        for key, value in _FIXED.get(self.kind, {}).items():
            given = self.options.get(key)
            if given is not None and given != str(value):
                raise self.error(f"{key}={given} is not supported", "only nets without it can be imported", key)


def read_file(path: str | Path) -> bytes:
    """What a file holds.

    Raises:
        DetkitError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DetkitError(f"the file cannot be read: {error.strerror}", str(path), "check the path") from None


def read_text(path: str | Path, do: str = "the order is cfg, weights, --names FILE") -> str:
    """What a text file holds.

    Args:
        path: The file.
        do: What to do if it is no text.

    Raises:
        DetkitError: It cannot be read, or is no text.
    """
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise DetkitError("this is not a text file", str(path), do) from None


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
        given = [key for key in KEYS.get(section.kind, ()) if key in section.options]
        lines.append(" ".join([section.kind, *(f"{key}={''.join(section.options[key].split())}" for key in given)]))
    return lines


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
    data = read_file(path)
    major, minor, _ = struct.unpack("<3i", data[:12].ljust(12, b"\xff"))
    header = 20 if major * 10 + minor >= 2 else 16
    if not (0 <= major < 1000 and 0 <= minor < 1000) or len(data) < header:
        raise DetkitError("this is not a Darknet weights file", where, do)
    seen = int.from_bytes(data[12:header], "little")
    values = np.frombuffer(data, "<f4", (len(data) - header) // 4, header)
    expected = sum(part.numel() for pair in convolutions.values() for part in _tensors(*pair))
    if len(values) < expected or (whole and (len(values) > expected or (len(data) - header) % 4)):
        what = f"the weights do not fit the graph: {expected:,} numbers expected, {len(values):,} found"
        raise DetkitError(what, where, do)
    at = 0
    for number, (conv, norm) in sorted(convolutions.items()):
        for part in _tensors(conv, norm):
            chunk = values[at : at + part.numel()]
            at += part.numel()
            if not np.isfinite(chunk).all() or (norm is not None and part is norm.running_var and (chunk < 0).any()):
                what = f"layer {number} would get values that are not finite, or variances below 0"
                raise DetkitError(what, where, f"the file is damaged or of another net: {do}")
            part.data.copy_(torch.from_numpy(chunk.copy()).view(part.shape))
    return seen


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> list[Tensor]:
    """A layer's numbers in the order of a weights file."""
    first = [norm.bias, norm.weight, norm.running_mean, norm.running_var] if norm else [conv.bias]
    return [tensor for tensor in (*first, conv.weight) if tensor is not None]
