"""What the engine tells while it works. The command line draws these, the run folder records them.

``str(event)`` is a line for a person. Epochs and steps count from 0 here and from 1 in those lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

Row = dict[str, float]
_SHOWN = ("AP", "AP50", "top1", "top5", "NME", "PCK")


@dataclass(frozen=True, slots=True)
class TrainStarted:
    """Everything is built: steps of an epoch, sizes of the sets, trainable parameters, where and how it computes."""

    run: Path
    epochs: int
    steps: int
    train_images: int
    val_images: int
    parameters: int
    device: str
    precision: str
    first_epoch: int = 0

    def __str__(self) -> str:
        start = f", going on at epoch {self.first_epoch + 1}" if self.first_epoch else ""
        epochs, steps = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((self.epochs, "epoch"), (self.steps, "step")))
        pictures = f"{self.train_images} images to train on, {self.val_images} to validate"
        where = f"{self.parameters / 1e6:.2f} M parameters, {self.device} {self.precision}{start}"
        return f"{self.run}: {pictures}, {epochs} of {steps}, {where}"


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """An epoch begins (or goes on, after a resume)."""

    epoch: int
    epochs: int
    steps: int
    mosaic: bool


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One step of the optimizer: loss terms (divided by their counts), highest rate, norm of the gradient, seconds.

    step, steps: place in this epoch; data_seconds: the part of ``seconds`` spent waiting for images.
    """

    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    lr: float
    gradient: float
    images: int
    seconds: float
    data_seconds: float

    @property
    def loss(self) -> float:
        """The sum of the terms."""
        return sum(self.losses.values())


@dataclass(frozen=True, slots=True)
class BatchValidated:
    """A batch of the validation set is done."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpochDone:
    """The row that metrics.csv gets: losses of training and of validation, AP...; remaining: seconds, an estimate."""

    epoch: int
    epochs: int
    row: Row
    best: bool
    remaining: float

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch + 1}/{self.epochs}", f"loss {self.row['loss']:.4f}"]
        scores = {name: self.row.get(name, math.nan) for name in ("val_loss", *_SHOWN)}
        parts += [f"{name} {score:.4f}" for name, score in scores.items() if not math.isnan(score)]
        parts += ["best so far"] if self.best else []
        return "  ".join([*parts, f"{self.remaining / 60:.1f} min left"])


@dataclass(frozen=True, slots=True)
class Saved:
    """A file of the run folder was written."""

    path: Path

    def __str__(self) -> str:
        return f"saved {self.path}"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know: a choice that was made, an early stop."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TrainFinished:
    """The end: best epoch (None without validation), its row, the threshold of best F1, minutes of the whole run."""

    run: Path
    best_epoch: int | None
    row: Row
    threshold: float | None
    minutes: float

    def __str__(self) -> str:
        best = "" if self.best_epoch is None else f", best at epoch {self.best_epoch + 1}"
        scores = "".join(f"  {name} {self.row[name]:.4f}" for name in _SHOWN if name in self.row)
        return f"done in {self.minutes:.1f} min{best}{scores}"

    def to_dict(self) -> dict[str, Any]:
        """The form of ``train --json``."""
        best = None if self.best_epoch is None else self.best_epoch + 1
        end = {"run": str(self.run), "weights": str(self.weights), "best_epoch": best, "metrics": dict(self.row)}
        return {**end, "threshold": self.threshold, "minutes": round(self.minutes, 2)}

    def lines(self) -> list[str]:
        """The same for a person."""
        return [str(self), str(self.weights)]

    @property
    def weights(self) -> Path:
        """The file to detect with."""
        return self.run / ("last.safetensors" if self.best_epoch is None else "best.safetensors")


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would take: seconds of a step and an epoch (validation included), minutes in all, memory in MB."""

    run: Path
    device: str
    precision: str
    steps: int
    epochs: int
    step_seconds: float
    epoch_seconds: float
    memory: float
    losses: Mapping[str, float]

    @property
    def minutes(self) -> float:
        """Minutes of the whole run."""
        return self.epochs * self.epoch_seconds / 60

    def to_dict(self) -> dict[str, Any]:
        """The form of ``train --dry-run --json``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "run": str(self.run), "losses": dict(self.losses), "minutes": round(self.minutes, 2)}

    def lines(self) -> list[str]:
        """The same for a person."""
        return [
            f"everything is built and two steps are done on {self.device} in {self.precision}: "
            + "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items()),
            f"{self.steps} steps an epoch at {self.step_seconds:.2f} s, about {self.epoch_seconds / 60:.1f} min with "
            f"validation; {self.epochs} epochs take about {self.minutes:.0f} min",
            f"memory in use: {self.memory:.0f} MB; first batch: {self.run / 'first_batch.jpg'}",
        ]


Event = TrainStarted | EpochStarted | BatchDone | BatchValidated | EpochDone | Saved | Notice | TrainFinished
Listener = Callable[[Event], None]
