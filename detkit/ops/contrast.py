"""Losses between vectors of a batch that compare views of the same images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(vectors: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: each view is to find its partner among all others.

    -log(exp(s_ij / t) / sum_(k != i) exp(s_ik / t)), s being cosines (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Args:
        vectors: (2 * B, D) of length 1; row i and row i + B are views of one image.
        temperature: t.

    Returns:
        (2 * B,).
    """
    return F.cross_entropy(_others(vectors) / temperature, _partners(vectors), reduction="none")


def nearest_is_partner(vectors: Tensor) -> Tensor:
    """(2 * B,) bool: whether the most similar of all other views is the partner; vectors as in ``nt_xent``."""
    return _others(vectors).argmax(1) == _partners(vectors)


def _others(vectors: Tensor) -> Tensor:
    """(N, N) cosines, a view's with itself left out."""
    return (vectors @ vectors.T).masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -1e4)


def _partners(vectors: Tensor) -> Tensor:
    return torch.arange(len(vectors), device=vectors.device).roll(len(vectors) // 2)
