"""What every backbone is: a chain of stages, some of which are tapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Frozen = int | Literal["all"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Backbone(nn.Module):
    """A chain of stages and the outputs of some of them.

    stages: one module a stage, each continuing from the one before; stages after the last tap are dropped.
    channels, strides: of the tapped outputs, finest first; strides in input pixels. offsets: the centre of cell 0 in
    input pixels, half a stride for padded nets, whose cells tile the picture. mean, std: a triple each, in units of
    0..255 pixels, by which ``Detector`` normalises. frozen: how many stages, from the input on, neither train nor
    update their BatchNorm, whatever ``.train()`` says; ``"all"`` freezes the whole backbone.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        taps: Sequence[int],
        frozen: Frozen = 0,
        offsets: Sequence[float] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        taps = tuple(taps)
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= len(stages):
            raise ValueError(f"taps must rise within 0..{len(stages) - 1}, got {list(taps)}")
        self.stages = nn.ModuleList(stages[: taps[-1] + 1])
        self.taps = taps
        self.channels = [channels[tap] for tap in taps]
        self.strides = [strides[tap] for tap in taps]
        self.offsets = [strides[tap] / 2 if offsets is None else offsets[tap] for tap in taps]
        self.mean, self.std = tuple(mean), tuple(std)
        self.frozen = len(self.stages) if frozen == "all" else int(frozen)
        if not 0 <= self.frozen <= len(self.stages):
            raise ValueError(f"frozen must lie within 0..{len(self.stages)} or be 'all', got {frozen}")
        for stage in self.stages[: self.frozen]:
            stage.requires_grad_(False)
        self.train(self.training)

    def forward(self, x: Tensor, start: int = 0) -> list[Tensor]:
        """Tapped outputs (B, channels[i], H / strides[i], W / strides[i]) of normalised pixels (B, 3, H, W).

        With ``start`` > 0, ``x`` is the output of stage ``start - 1`` and the chain continues from there.

        Raises:
            ValueError: a tap lies before ``x``, so its output cannot be known.
        """
        if start and self.taps[0] < start - 1:
            raise ValueError(f"stage {self.taps[0]} is tapped but the chain starts after stage {start - 1}")
        outputs = [x] if start and self.taps[0] == start - 1 else []
        for index in range(start, len(self.stages)):
            x = self.stages[index](x)
            if index in self.taps:
                outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self


class Classifier(nn.Module):
    """A backbone with a classifier on its last stage: (B, 3, H, W) normalised pixels to (B, num_classes) logits."""

    def __init__(self, backbone: Backbone, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.mean, self.std = backbone.mean, backbone.std

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)[-1])


def set_logits(layers: nn.Sequential, num_classes: int) -> nn.Sequential:
    """``layers`` with a last linear layer for ``num_classes``; a pretrained one of that size is kept."""
    last = layers[-1]
    if not isinstance(last, nn.Linear):
        raise TypeError(f"a classifier ends in a linear layer, got {type(last).__name__}")
    if last.out_features != num_classes:
        layers[-1] = nn.Linear(last.in_features, num_classes)
    return layers
