"""Two domains made alike for a head: images that are labelled, and such of another kind that are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.ops.domains import ReversedGradient, coral, mmd
from detkit.structures import Loss, Target


class Alignment(nn.Module):
    """A loss that is small where features do not tell from which domain an image is.

    The target domain is what training data knows nothing of: ``{path: ..., format: images, classes: [], known: []}``.

    Args:
        width: Numbers of a feature.
        align: ``dann``: a small network learns to tell the domains, and the features learn that it cannot (Ganin et
            al. 2016); ``coral``: their covariances, ``mmd``: their distributions are pulled together.
        align_gain: Weight of what the features learn of it.

    Raises:
        ValueError: A negative weight.
    """

    def __init__(
        self, width: int, *, align: Literal["none", "dann", "coral", "mmd"] = "none", align_gain: float = 0.3
    ) -> None:
        super().__init__()
        if align_gain < 0:
            raise ValueError(f"align_gain must be 0 or more, got {align_gain}")
        self.align, self.align_gain = align, align_gain
        if align == "dann":
            self.critic = nn.Sequential(nn.Linear(width, 100), nn.ReLU(inplace=True), nn.Linear(100, 1))

    def loss(self, features: Tensor, targets: Sequence[Target]) -> Loss:
        """Of a batch; where all of it is of one domain, of no weight.

        Args:
            features: (B, width) float32.
            targets: Per image; those of which nothing is known are the other domain.
        """
        source = torch.tensor([target.known != () for target in targets], device=features.device)
        if self.align == "dann":
            logits = self.critic(ReversedGradient.apply(features, self.align_gain)).squeeze(1)
            each = F.binary_cross_entropy_with_logits(logits, source.float(), reduction="none")
            return Loss(each.sum(), each.new_tensor(float(len(each))))
        ours, theirs = features[source], features[~source]
        if min(len(ours), len(theirs)) < 2:
            return Loss(features.sum() * 0, features.new_tensor(0.0))
        distance = (coral if self.align == "coral" else mmd)(ours, theirs)
        return Loss(distance * self.align_gain, features.new_tensor(1.0))
