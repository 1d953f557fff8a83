"""A backbone of four small stages."""

from __future__ import annotations

from torch import nn

from detkit.backbones.base import StagedBackbone


class ExampleCNN(StagedBackbone):
    """Stages of one 3 x 3 convolution each, at strides 2, 4, 8 and 16.

    Args:
        width: Channels of the first stage; each further one has twice as many.
        taps: The stages whose maps are returned.
        frozen: The first stages that do not train.
    """

    def __init__(self, *, width: int = 16, taps: tuple[int, ...] = (2, 3), frozen: int = 0) -> None:
        channels = [width * 2**i for i in range(4)]
        stages = [
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
            for before, after in zip([3, *channels], channels, strict=False)
        ]
        super().__init__(stages, channels, (2, 4, 8, 16), taps=taps, frozen=frozen)
