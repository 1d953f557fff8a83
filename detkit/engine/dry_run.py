"""Two steps of a run, to see that everything is built, and what the rest would take."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from detkit.engine.events import DryRun

if TYPE_CHECKING:
    from detkit.engine.trainer import Trainer


def try_out(trainer: Trainer) -> DryRun:
    """Makes two steps, of which the second is measured: what a run would take."""
    options = trainer.options
    if options.cache_features:
        trainer.say("this looks at two steps and an epoch that compute the frozen stages, not at cached ones")
    for window, waited in itertools.islice(trainer.windows(0), 2):
        done = trainer.step(window, 0, waited)
        if trainer.stop.signal:
            raise KeyboardInterrupt
    seconds = done.seconds - done.data_seconds
    # A forward pass takes about a third of a step; images are read by other processes meanwhile.
    validation = 0 if trainer.val_loader is None else len(trainer.val_loader) * seconds / 3 / options.accumulate
    return DryRun(
        run=trainer.run,
        device=str(trainer.runtime.device),
        precision=trainer.runtime.precision,
        steps=trainer.steps,
        epochs=options.epochs,
        step_seconds=seconds,
        epoch_seconds=seconds * trainer.steps + validation / options.validate_every,
        memory=trainer.runtime.memory(),
        losses=done.losses,
    )
