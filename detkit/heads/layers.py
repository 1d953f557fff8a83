"""Layers that heads share: the blocks before a predicting layer, and that layer in full precision."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn


def light_stem(channels: int, blocks: int) -> nn.Sequential:
    """Blocks of a depthwise 5x5 and a pointwise convolution, batch norm and SiLU."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Autocast off."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def exact_output(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """What a last layer makes of x, float32 at least: it is cheap, and scores and boxes rounded to 8 bits would tie."""
    with full_precision(x.device):
        output: Tensor = layer(x.to(layer.weight.dtype))
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
