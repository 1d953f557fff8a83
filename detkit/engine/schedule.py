"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from detkit.engine.options import TrainOptions


def rate_factor(step: int, steps_per_epoch: int, options: TrainOptions) -> float:
    """What the base rates are multiplied by at ``step`` (0 is the first): linear warm-up, then the schedule.

    cosine: Loshchilov & Hutter, SGDR (2017), equation 5, without restarts, down to ``final_lr``.
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
