"""One step of training: losses, gradient, optimizer, averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from detkit.engine.checkpoint import random_states, restore_random
from detkit.engine.ema import Average
from detkit.engine.errors import not_finite
from detkit.engine.runtime import Runtime
from detkit.structures import Batch, Loss, Target

Item = tuple[Batch, list[Target]]
Sums = dict[str, list[float]]  # a term's name: its sum and its count


class Stepper:
    """Makes steps on windows of batches (one batch, or several whose gradients are accumulated).

    Each loss term is a sum over examples divided by their number *in the whole window and in all processes*, so neither
    accumulation nor the number of processes changes what is learned. clip: largest norm of the gradient, 0 for none.
    """

    def __init__(
        self, runtime: Runtime, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, clip: float
    ) -> None:
        self.runtime, self.model, self.optimizer, self.average = runtime, model, optimizer, average
        self.module = runtime.wrap(model)  # what is called in training: it averages gradients over processes
        self.clip = clip or math.inf

    def __call__(self, window: list[Item], epoch: int, running: Sums) -> tuple[dict[str, float], float]:
        """One step: returns the loss terms and the gradient's norm, and adds the terms to ``running``.

        Raises DetkitError (code 4), naming the images, for a loss or gradient that is no number: before any weight
        has moved.
        """
        self.model.train()
        counts = None if len(window) == 1 else self._counts(window)
        sums: Sums = {}
        for number, (batch, targets) in enumerate(window):
            with self.runtime.without_sync(self.module, number + 1 < len(window)):
                with self.runtime.autocast():
                    terms = self.module(batch, targets)
                totals = self._totals([terms])
                if not all(math.isfinite(value) for pair in totals.values() for value in pair):
                    raise not_finite("loss", [batch] if _broken(terms) else [], epoch)
                divisors = counts or {name: count for name, (_, count) in totals.items()}
                # DDP averages gradients over processes; times world makes that a sum.
                loss = sum(term.sum * (self.runtime.world / (divisors[name] or 1.0)) for name, term in terms.items())
                self.runtime.scaler.scale(loss).backward()
            for table in (sums, running):
                _add(table, totals)
        gradient = self._move_weights()
        # fp16's scaler expects this now and then, skips the step and scales less.
        if not math.isfinite(gradient) and not self.runtime.scaler.is_enabled():
            raise not_finite("gradient", [batch for batch, _ in window], epoch)
        return divided(sums), gradient

    def _move_weights(self) -> float:
        """Clips the gradient, moves the weights and their average; a gradient that is no number moves nothing."""
        scaler = self.runtime.scaler
        scaler.unscale_(self.optimizer)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trained, self.clip))
        if math.isfinite(norm):
            scaler.step(self.optimizer)
            self.average.update(self.model)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _counts(self, window: list[Item]) -> dict[str, float]:
        """The terms' counts over a whole window, which the gradient of its first batch needs already.

        Found by passes without gradients. Random states and running statistics are put back, so that the passes that
        train see the same proposals and count each batch once.
        """
        states, buffers = random_states(self.model), [buffer.clone() for buffer in self.model.buffers()]
        with torch.no_grad(), self.runtime.autocast():
            totals = self._totals([self.model(batch, targets) for batch, targets in window])
        restore_random(self.model, states)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return {name: count for name, (_, count) in totals.items()}

    def _totals(self, passes: list[dict[str, Loss]]) -> dict[str, tuple[float, float]]:
        """(sum, count) of each term over these passes and all processes: one exchange, one wait for the device."""
        pairs = [torch.stack([torch.stack([t.sum, t.count]).detach().float() for t in p.values()]) for p in passes]
        table = self.runtime.sum(torch.stack(pairs).sum(0)).tolist()
        return {name: (total, count) for name, (total, count) in zip(passes[0], table, strict=True)}


def _broken(terms: dict[str, Any]) -> bool:
    """True if this process's own terms are the ones that are no numbers."""
    return not all(math.isfinite(float(value.detach())) for term in terms.values() for value in (term.sum, term.count))


def _add(table: Sums, totals: dict[str, tuple[float, float]]) -> None:
    for name, (total, count) in totals.items():
        pair = table.setdefault(name, [0.0, 0.0])
        pair[0] += total
        pair[1] += count


def divided(sums: Sums) -> dict[str, float]:
    """Each term's sum over its count."""
    return {name: total / (count or 1.0) for name, (total, count) in sums.items()}
