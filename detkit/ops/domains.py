"""How different two sets of vectors are, as losses: what adapts a network to images of another kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def coral(source: Tensor, target: Tensor) -> Tensor:
    """CORAL: |C_s - C_t|^2 / (4 D^2), C being covariances (Sun and Saenko 2016, arXiv 1607.01719, eq. 1).

    Args:
        source: (N, D), N of 2 at least.
        target: (M, D), M of 2 at least.
    """
    return (torch.cov(source.T) - torch.cov(target.T)).square().sum() / (4 * source.shape[1] ** 2)


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Squared maximum mean discrepancy: mean k(s, s') + mean k(t, t') - 2 mean k(s, t) (Gretton et al. 2012, eq. 5).

    k is the mean of five Gaussian kernels exp(-|x - y|^2 / b), b being a quarter to four times the mean squared
    distance (Long et al. 2015, arXiv 1502.02791, section 3).

    Args:
        source: (N, D).
        target: (M, D).
    """
    both = torch.cat((source, target))
    squares = (both[:, None] - both[None]).square().sum(2)
    width = squares.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([(-squares / (width * factor)).exp() for factor in (0.25, 0.5, 1, 2, 4)]).mean(0)
    n = len(source)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


class ReversedGradient(torch.autograd.Function):
    """``ReversedGradient.apply(x, gain)`` is x, and its gradient comes back times -gain (Ganin et al. 2016, arXiv
    1505.07818, section 4.2): what follows learns, and what comes before unlearns it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        """x itself."""
        ctx.gain = gain
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient turned round."""
        return -ctx.gain * gradient, None
