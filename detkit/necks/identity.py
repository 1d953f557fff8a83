"""No neck."""

from __future__ import annotations

from torch import Tensor, nn

from detkit.interfaces import Neck


class Identity(Neck, nn.Module):
    """Hands the backbone's feature maps on as they are."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.channels, self.strides = list(channels), list(strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return features
