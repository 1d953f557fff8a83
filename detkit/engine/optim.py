"""How weights move: parameter groups, optimizer, learning rate, averaged weights, young BatchNorm statistics."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError

Network = TypeVar("Network", bound=nn.Module)


ENOUGH_IMAGES = 32  # of a step: from so many on, a BatchNorm's statistics of them are as good as those it came with
_FROM_DETECTOR, _FROM_LESS, _BACKBONE = 1e-4, 2e-3, 4e-4  # rates


def from_detector(model: Detector) -> bool:
    """Whether training starts from a whole detector's weights, not from a backbone's or from nothing."""
    return bool(model.config.get("model", {}).get("weights", "none") != "none")


def learning_rates(model: Detector, options: TrainOptions) -> tuple[float, float]:
    """The rate, and the backbone's, that ``options`` mean for this model."""
    on = from_detector(model)
    lr, backbone_lr = options.lr, options.backbone_lr
    if lr == "auto":
        lr = _FROM_DETECTOR if on and options.optimizer in ("adamw", "adam") else _FROM_LESS
    if backbone_lr == "auto":
        backbone_lr = None if on else _BACKBONE
    return lr, lr if backbone_lr is None else backbone_lr


def norms_to_freeze(model: Detector, options: TrainOptions, images: int) -> list[nn.Module]:
    """The BatchNorms that keep their statistics, see ``TrainOptions.freeze_norms``; ``images``: of a step."""
    freeze = options.freeze_norms
    if freeze == "auto":
        freeze = from_detector(model) and images < ENOUGH_IMAGES
    return [layer for layer in model.modules() if freeze and isinstance(layer, _NormBase) and _trained(layer)]


def _trained(layer: _NormBase) -> bool:
    """Whether it comes with statistics, counted or not (as some are published)."""
    if layer.running_mean is None:
        return False
    mean, var, count = cast(tuple[Tensor, ...], (layer.running_mean, layer.running_var, layer.num_batches_tracked))
    return bool(count) or not (torch.all(mean == 0) and torch.all(var == 1))


def parameter_groups(model: Detector, options: TrainOptions) -> list[dict[str, object]]:
    """Groups of head, backbone and, with ``stage_lr``, its stages, decayed or not; each with its ``base_lr``.

    Vectors and scalars (biases, the scales and shifts of normalisation) are not decayed. The backbone, and what the
    head has of it (``backbone_trunk``), have the rate ``backbone_lr``. Stages that ``unfreeze`` names are in their
    groups from the start.

    Args:
        model: What trains.
        options: Rates, decay, ``stage_lr`` and ``unfreeze``.

    Returns:
        What a ``torch.optim.Optimizer`` takes.

    Raises:
        DetkitError: Nothing is left to train, or there are fewer stages, or frozen ones, than the options name.
    """
    backbone, frozen = model.backbone, model.backbone.frozen
    stages, factors, thawed = list(backbone.stages), options.stage_lr, len(options.unfreeze)
    for name, count, most, kind, more in (
        ("stage_lr", len(factors), len(stages), "", ""),
        ("unfreeze", thawed, frozen, " frozen", ", or freeze more (model.backbone.frozen)"),
    ):
        if count > most:
            what = f"{name} names {count} stages, and the backbone has {most}{kind}"
            raise DetkitError(what, f"train.{name}", f"name {most} at most{more}")
    parts = [part for part in (backbone, model.head.backbone_trunk) if part is not None]
    stage_of = {id(p): max(len(factors) - 1, 0) for part in parts for p in part.parameters()}
    stage_of |= {id(p): i for i, stage in enumerate(stages[: len(factors)]) for p in stage.parameters()}
    later = {id(p) for stage in stages[frozen - thawed : frozen] for p in stage.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad or id(parameter) in later:
            key = stage_of.get(id(parameter), -1), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise DetkitError("no parameter is left to train", "model", "freeze fewer stages of the backbone")
    lr, backbone_lr = learning_rates(model, options)
    rates = [backbone_lr * factor for factor in factors or (1,)] + [lr]  # the last one: outside the backbone
    return [
        {"params": params, "base_lr": rates[stage], "weight_decay": options.weight_decay if decays else 0.0}
        for (stage, decays), params in sorted(groups.items())
    ]


def make_optimizer(model: Detector, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimizer that ``options`` name, over ``parameter_groups``."""
    groups, momentum = parameter_groups(model, options), options.momentum
    lr, _ = learning_rates(model, options)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, momentum=momentum, alpha=0.9, eps=1e-3)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": partial(torch.optim.SGD, momentum=momentum, nesterov=momentum > 0),
    }
    return kinds[options.optimizer](groups, lr=lr, fused=next(model.parameters()).device.type in ("cpu", "cuda"))


def rate_factor(step: int, steps_per_epoch: int, options: TrainOptions) -> float:
    """What the base rates are multiplied by at ``step`` (0 is the first): linear warm-up, then the schedule.

    The cosine is that of Loshchilov & Hutter, SGDR (2017), equation 5, without restarts, down to ``final_lr``.
    """
    total = options.epochs * steps_per_epoch
    warmup = min(max(round(options.warmup * steps_per_epoch), options.warmup_steps), total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if options.schedule == "cosine":
        return options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if options.schedule == "step":
        # Shares of the whole run, so that a change of the warm-up does not move them.
        return options.step_factor ** sum(step >= share * total for share in options.step_at)
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps_per_epoch: int, options: TrainOptions) -> None:
    """Gives each group its learning rate of a step; see ``rate_factor``."""
    factor = rate_factor(step, steps_per_epoch, options)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def highest_rate(optimizer: torch.optim.Optimizer) -> float:
    """The highest learning rate of all groups."""
    return float(max(group["lr"] for group in optimizer.param_groups))


def move_weights(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float) -> float:
    """Clips the gradient to the norm ``clip`` (0: not), takes the step, and forgets the gradient.

    Returns:
        The gradient's norm; one that is no number has moved nothing.
    """
    scaler.unscale_(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trained, clip or math.inf))
    if math.isfinite(norm):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Average(Generic[Network]):
    """The exponential moving average of a model's weights and buffers (Polyak & Juditsky, 1992).

    The decay warms up as min(decay, (1 + n) / (10 + n)), so that the first steps are soon forgotten.

    Args:
        model: What trains.
        decay: Of the average; 0 follows the model exactly.

    Attributes:
        model: A copy with the averaged weights, which never trains.
        updates: How many steps it has seen.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step towards ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = self.model.state_dict(), model.state_dict()
        moving = [name for name, average in averages.items() if average.is_floating_point()]
        torch._foreach_lerp_([averages[name] for name in moving], [values[name] for name in moving], 1 - decay)
        for name in averages.keys() - moving:
            averages[name].copy_(values[name])


def begin_averages(model: nn.Module) -> None:
    """Lets running averages of layers from nothing begin with their first batches, not with mean 0 and variance 1.

    Batch k of a layer counts at least 1/k, until that is no more than the layer's own momentum: the bias correction of
    Adam (Kingma & Ba, 2015, section 3), for these averages. Else, at EfficientNet's momentum of 0.01, the initial
    variance still makes up 3 % after 350 batches, which is ten times what the layers of a random network have: such a
    network learns, but finds nothing in evaluation. Layers that come with trained averages keep them.
    """
    for layer in model.modules():
        if not isinstance(layer, _NormBase) or layer.running_mean is None or not layer.momentum:
            continue
        count, own = cast(Tensor, layer.num_batches_tracked), layer.momentum
        if not count and _trained(layer):
            count.fill_(round(1 / own))  # trained, but published without the count
        elif count * own < 1:
            _Young(layer, own)


class _Young:
    """Sets a layer's momentum before each batch, by the layer's own count, for as long as that is more than its own."""

    def __init__(self, layer: _NormBase, own: float) -> None:
        self.own = own
        self.hook = layer.register_forward_pre_hook(self)

    def __call__(self, layer: _NormBase, inputs: object) -> None:
        if layer.training:
            layer.momentum = max(self.own, 1 / (int(layer.num_batches_tracked) + 1))  # type: ignore[arg-type]
            # A pass without gradients may be put back, and the count with it.
            if layer.momentum == self.own and torch.is_grad_enabled():
                self.hook.remove()
