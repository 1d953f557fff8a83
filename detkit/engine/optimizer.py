"""The optimizer and its groups of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError


def parameter_groups(model: nn.Module, options: TrainOptions) -> list[dict[str, Any]]:
    """Groups of head, backbone and, with ``stage_lr``, its stages, decayed or not; each with its ``base_lr``.

    Vectors and scalars (biases, the scales and shifts of normalisation) are not decayed. ``model.backbone``, where
    there is one, and what the head has of it (``backbone_trunk``) have the rate ``backbone_lr``. Stages that
    ``unfreeze`` names are in their groups from the start. Raises DetkitError if nothing is left to train, or if there
    are fewer stages, or frozen ones, than the options name.
    """
    backbone = getattr(model, "backbone", None)
    parts = backbone, getattr(getattr(model, "head", None), "backbone_trunk", None)
    own = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    backbone_lr = options.lr if options.backbone_lr is None else options.backbone_lr
    factors, later = list(options.stage_lr), set[int]()
    place = dict.fromkeys(own, max(len(factors) - 1, 0))
    if factors or options.unfreeze:
        stages = list(getattr(backbone, "stages", ()))
        frozen = getattr(backbone, "frozen", 0)
        for name, count, most in (
            ("stage_lr", len(factors), len(stages)),
            ("unfreeze", len(options.unfreeze), frozen),
        ):
            if count > most:
                what = f"{name} names {count} stages, and the backbone has {most}{' frozen' * (name == 'unfreeze')}"
                do = f"name {most} at most" + ", or freeze more (model.backbone.frozen)" * (name == "unfreeze")
                raise DetkitError(what, f"train.{name}", do)
        later = {id(p) for stage in stages[frozen - len(options.unfreeze) : frozen] for p in stage.parameters()}
        place |= {id(p): i for i, stage in enumerate(stages[: len(factors)]) for p in stage.parameters()}
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad or id(parameter) in later:
            key = id(parameter) in own, place.get(id(parameter), 0), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise DetkitError("no parameter is left to train", "model", "freeze fewer stages of the backbone")
    return [
        {
            "params": parameters,
            "base_lr": backbone_lr * (factors[stage] if factors else 1) if in_backbone else options.lr,
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (in_backbone, stage, decays), parameters in sorted(groups.items())
    ]


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimizer that ``options`` name, over :func:`parameter_groups`."""
    groups = parameter_groups(model, options)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, fused=fused)
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=options.lr, fused=fused)
    if options.optimizer == "sgd":
        nesterov = options.momentum > 0
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov, fused=fused)
    return torch.optim.RMSprop(groups, lr=options.lr, momentum=options.momentum, alpha=0.9, eps=1e-3)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Gives each group ``factor`` times its base rate; returns the highest rate of all."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
