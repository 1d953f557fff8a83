"""A result as people and programs see it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Printed:
    """A result as it is shown.

    Attributes:
        facts: For JSON: what ``detkit.arrays.plain`` takes.
        text: Lines for a person.
    """

    facts: Mapping[str, Any]
    text: Sequence[str]

    def to_dict(self) -> Mapping[str, Any]:
        """For JSON."""
        return self.facts

    def lines(self) -> Sequence[str]:
        """For a person."""
        return self.text


@dataclass(slots=True, frozen=True)
class Shown:
    """An image and a table, which a notebook shows.

    Attributes:
        jpeg: The image's file.
        table: As HTML.
    """

    jpeg: bytes = field(repr=False)
    table: str = field(repr=False)

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.jpeg).decode()
        return f'<img alt="detections" src="data:image/jpeg;base64,{image}">{self.table}'


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines of equal length: the first column begins, the others end at one place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return lines


def counted(count: int, word: str) -> str:
    """A count and its word: ``1 image``, ``3 images``, ``2 boxes``, ``2 identities``."""
    if count == 1:
        return f"1 {word}"
    ending = "ies" if word.endswith("y") else "es" if word.endswith(("s", "x")) else "s"
    return f"{count} {word.removesuffix('y')}{ending}"


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: a dash where there is nothing to measure (None, NaN, COCO's -1)."""
    if value is None or (isinstance(value, float) and (value != value or value == -1)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
