"""A result as people and programs see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
