"""Averaged weights: smoother than the last step's, and those that are validated and saved."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Average:
    """The exponential moving average of a model's weights and buffers (Polyak & Juditsky, 1992).

    The decay warms up as min(decay, (1 + n) / (10 + n)), so that the first steps are soon forgotten; decay 0 follows
    the model exactly. ``model`` is a copy that never trains.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.decay = decay
        self.model: Module = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step towards ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        theirs = model.state_dict()
        for name, mine in self.model.state_dict().items():
            if mine.is_floating_point():
                floats[0].append(mine)
                floats[1].append(theirs[name])
            else:
                mine.copy_(theirs[name])
        torch._foreach_lerp_(floats[0], floats[1], 1 - decay)
