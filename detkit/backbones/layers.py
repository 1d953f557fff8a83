"""The block that convolutional networks of today are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

Act = Literal["silu", "leaky", "relu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": partial(nn.SiLU, inplace=True),
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
}


def conv_block(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    separable: bool = False,
    act: Act | None = "silu",
    norm_eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Sequential:
    """Convolution, batch norm and activation; ``separable``: a depthwise one with both, then a pointwise one with both.

    Args:
        inputs: Channels.
        outputs: Channels.
        kernel: Side of the convolution, or of the depthwise one.
        stride: Of the same.
        groups: Of a convolution that is not separable.
        separable: See above.
        act: The activation; None: none.
        norm_eps: Of the batch norms.
        momentum: Of the batch norms.
    """
    steps = [(inputs, inputs, kernel, stride, inputs), (inputs, outputs, 1, 1, 1)]
    layers: list[nn.Module] = []
    for before, after, side, step, parts in steps if separable else [(inputs, outputs, kernel, stride, groups)]:
        conv = nn.Conv2d(before, after, side, step, (side - 1) // 2, groups=parts, bias=False)
        layers += [conv, nn.BatchNorm2d(after, eps=norm_eps, momentum=momentum)]
        layers += [ACTIVATIONS[act]()] if act else []
    return nn.Sequential(*layers)
