"""Sums of loss terms over batches and processes, each with the count that divides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LossSums = dict[str, list[float]]  # a term's name: its sum and its count


def add_losses(sums: LossSums, totals: Mapping[str, Sequence[float]]) -> None:
    """Adds (sum, count) of each term to ``sums``, in place."""
    for name, (total, count) in totals.items():
        pair = sums.setdefault(name, [0.0, 0.0])
        pair[0] += total
        pair[1] += count


def mean_losses(sums: LossSums) -> dict[str, float]:
    """Each term's sum over its count."""
    return {name: total / (count or 1.0) for name, (total, count) in sums.items()}
