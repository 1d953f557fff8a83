"""state.pt: everything that a run needs to go on as if it had never stopped. Written whole or not at all."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from detkit.engine.events import Row
from detkit.engine.optim import rate_factor
from detkit.errors import DetkitError
from detkit.io.files import write_bytes
from detkit.printed import counted

if TYPE_CHECKING:
    from detkit.engine.trainer import Trainer

STATE_VERSION = 1
# What may change between two parts of a run: how long it lasts, where it computes and who listens, not what.
_FREE = {"epochs", "patience", "device", "workers", "cache_images", "save_minutes", "tensorboard", "loggers"}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: The one to go on with.
        batch: The next one of that epoch.
        step: Steps taken in all.
        sums: This epoch's losses so far.
        rows: Of metrics.csv, one per finished epoch.
        best_epoch: Whose weights are in best.safetensors.
        best_score: What they reached.
        threshold: Their score of best F1.
        waited: Validations since then.
        seconds: Of the whole run.
        caching: Those of them in which frozen stages looked at images for the cache.
        fitted: True if the head's stages after the loop are done.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float = -1.0
    threshold: float | None = None
    waited: int = 0
    seconds: float = 0.0
    caching: float = 0.0
    fitted: bool = False


def _parts(trainer: Trainer) -> dict[str, nn.Module | torch.optim.Optimizer | torch.amp.GradScaler]:
    model, average, scaler = trainer.model, trainer.average.model, trainer.runtime.scaler
    return {"model": model, "average": average, "optimizer": trainer.optimizer, "scaler": scaler}


def save_state(trainer: Trainer, path: Path) -> None:
    """Writes all of a run that changes to ``path``, between two steps; all processes call it, the main one writes.

    Raises:
        DetkitError: The disk is full; the old file then stays.
    """
    runtime = trainer.runtime
    main, *others = runtime.gather(random_states(trainer.model))
    state = {
        "version": STATE_VERSION,
        "options": asdict(trainer.options),
        "data_hash": trainer.data_hash,
        "progress": asdict(trainer.progress),
        "updates": trainer.average.updates,
        "random": main,
        "others": others,  # the random states of the other processes
        **{name: part.state_dict() for name, part in _parts(trainer).items()},
    }
    if runtime.main:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue(), overwrite=True)
    runtime.wait()


def restore_state(trainer: Trainer, path: Path) -> int:
    """Takes everything from ``path``.

    Returns:
        Epochs that the run was to have so far.

    Raises:
        DetkitError: The file is missing, damaged, of another run, or of one that is past the epochs asked for.
    """
    state = _read(path)
    if state["data_hash"] != trainer.data_hash:
        raise DetkitError("the training data changed since this run began", str(path), "start a new run")
    for name, value in asdict(trainer.options).items():
        old = state["options"].get(name, value)  # an option that came later was not set
        if name not in _FREE and old != value:
            what = f"train.{name} is {value}, this run began with {old}"
            do = f"leave it as it was; or train on in a new run: detkit train {trainer.run} train.{name}={value}"
            raise DetkitError(what, str(path), do)
    try:
        for name, part in _parts(trainer).items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError) as error:
        what = f"the state is of another model ({str(error).splitlines()[0]})"
        raise DetkitError(what, str(path), "use the run's own config") from None
    trainer.average.updates = state["updates"]
    trainer.progress = progress = Progress(**state["progress"])
    states, runtime = [state["random"], *state.get("others", ())], trainer.runtime
    if runtime.rank < len(states):
        restore_random(trainer.model, states[runtime.rank])
    if len(states) != runtime.world:
        differs = "the order of the images is the same; dropout, sampled regions and BatchNorm's batches are not"
        began = counted(len(states), "process")
        trainer.say(f"this run began with {began} and goes on with {runtime.world}: {differs}")
    asked, before = trainer.options.epochs, int(state["options"]["epochs"])
    if asked < progress.epoch:
        what = f"this run has {counted(progress.epoch, 'epoch')} behind it, not {asked} as asked for"
        raise DetkitError(what, "train.epochs", "ask for more, or start a new run")
    if asked != before:
        progress.fitted = False  # what was fitted is fitted anew
        both = (replace(trainer.options, epochs=epochs) for epochs in (asked, before))
        now, was = (rate_factor(progress.step, trainer.steps, options) for options in both)
        rate = f"from here the learning rate is that of such a run: {now:.3g} of train.lr, not {was:.3g}"
        trainer.say(f"{counted(asked, 'epoch')} instead of {before}; {rate}")
    elif progress.epoch == asked:
        longer = f"detkit train --resume {trainer.run} train.epochs={2 * asked}"
        trainer.say(f"this run is done, {asked} of {counted(asked, 'epoch')}; to go on: {longer}")
    return before


def _read(path: Path) -> dict[str, Any]:
    again = "start the run again, or from best.safetensors (model.weights)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        do = "name a run folder that holds state.pt"
        raise DetkitError("there is no state to go on from", str(path), do) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise DetkitError("the state file is damaged, or not one of detkit's", str(path), again) from None
    found = state.get("version") if isinstance(state, dict) else None
    if found != STATE_VERSION:
        raise DetkitError(f"the state file has format {found}, this detkit reads {STATE_VERSION}", str(path), again)
    return state


def _generators(model: nn.Module) -> dict[str, torch.Generator]:
    """The random generators that the model's parts own (sampling of proposals, say), by dotted name."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Generator)
    }


def random_states(model: nn.Module) -> dict[str, object]:
    """States of torch's generators (CPU, CUDA) and of the model's own."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "model": {name: generator.get_state() for name, generator in _generators(model).items()},
    }


def restore_random(model: nn.Module, states: dict[str, Any]) -> None:
    """The inverse of ``random_states``; a different number of GPUs leaves theirs alone."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    for name, generator in _generators(model).items():
        if name in states["model"]:
            generator.set_state(states["model"][name])
