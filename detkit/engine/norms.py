"""BatchNorm's running averages while they are young."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def begin_averages(model: nn.Module) -> None:
    """Lets running averages of layers from nothing begin with their first batches, not with mean 0 and variance 1.

    Batch k of a layer counts at least 1/k, until that is no more than the layer's own momentum: the bias correction of
    Adam (Kingma & Ba, 2015, section 3), for these averages. Else, at EfficientNet's momentum of 0.01, the initial
    variance still makes up 3 % after 350 batches, which is ten times what the layers of a random network have: such a
    network learns, but finds nothing in evaluation. Layers that come with trained averages keep them.
    """
    for layer in model.modules():
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        count, own = getattr(layer, "num_batches_tracked", None), getattr(layer, "momentum", None)
        if count is None or mean is None or var is None or not own:
            continue
        if not count and not (torch.all(mean == 0) and torch.all(var == 1)):
            count.fill_(round(1 / own))  # trained, but published without the count
        elif count * own < 1:
            _Young(layer, own)


class _Young:
    """Sets a layer's momentum before each batch, by the layer's own count, for as long as that is more than its own."""

    def __init__(self, layer: nn.Module, own: float) -> None:
        self.own = own
        self.hook = layer.register_forward_pre_hook(self)

    def __call__(self, layer: Any, inputs: Any) -> None:
        if layer.training:
            layer.momentum = max(self.own, 1 / (int(layer.num_batches_tracked) + 1))
            # A pass without gradients may be put back, and the count with it.
            if layer.momentum == self.own and torch.is_grad_enabled():
                self.hook.remove()
