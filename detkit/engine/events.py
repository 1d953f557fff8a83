"""What the engine tells while it works. The command line draws these, the run folder records them.

``str(event)`` is a line for a person. Epochs and steps count from 0 here and from 1 in those lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detkit.data.summary import DataSummary
from detkit.printed import counted

Row = dict[str, float]


def score_texts(row: Row, names: Sequence[str]) -> list[str]:
    """Name and value of those scores that a row has."""
    return [f"{name} {row[name]:.4f}" for name in names if not math.isnan(row.get(name, math.nan))]


@dataclass(frozen=True, slots=True)
class DataRead:
    """The labels are read.

    Attributes:
        summary: What was read.
        table: The line for a person has the classes, too.
    """

    summary: DataSummary
    table: bool = True

    def __str__(self) -> str:
        return "\n".join(self.summary.lines(table=self.table))


@dataclass(frozen=True, slots=True)
class TrainStarted:
    """Everything is built.

    Attributes:
        run: The run folder.
        epochs: Of the whole run.
        steps: Of one epoch.
        train_images: In the training set.
        val_images: In the validation set.
        parameters: How many train.
        device: Where it computes.
        precision: How.
        first_epoch: The one to begin or go on with.
    """

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
        start = f", going on at epoch {self.first_epoch + 1}" if 0 < self.first_epoch < self.epochs else ""
        images = f"{counted(self.train_images, 'image')} to train on, {self.val_images} to validate"
        length = f"{counted(self.epochs, 'epoch')} of {counted(self.steps, 'step')}"
        where = f"{self.parameters / 1e6:.2f} M parameters, {self.device} {self.precision}{start}"
        return f"{self.run}: {images}, {length}, {where}"


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """An epoch begins (or goes on, after a resume)."""

    epoch: int
    epochs: int
    steps: int
    mosaic: bool


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One step of the optimizer.

    Attributes:
        epoch: Which.
        step: Place in this epoch.
        steps: Of this epoch.
        losses: Terms by name, divided by their counts.
        lr: The highest rate.
        gradient: Its norm.
        images: In all batches of the step.
        seconds: It took, waiting included.
        data_seconds: The part of ``seconds`` spent waiting for images.
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
    """A batch is done that is only looked at: of the validation set, or for a cache of features."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpochDone:
    """The end of an epoch.

    Attributes:
        epoch: Which.
        epochs: Of the whole run.
        row: What metrics.csv gets: losses of training and of validation, AP...
        best: True if no validation was better.
        remaining: Seconds to the end of the run, an estimate.
        shown: Names of the scores that the line for a person has.
    """

    epoch: int
    epochs: int
    row: Row
    best: bool
    remaining: float
    shown: Sequence[str] = ()

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch + 1}/{self.epochs}", f"loss {self.row['loss']:.4f}"]
        parts += score_texts(self.row, ("val_loss", *self.shown))
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
    """The end of a run.

    Attributes:
        run: The run folder.
        best_epoch: None without validation.
        row: That of the best epoch, else of the last.
        threshold: The score of best F1, where it was validated.
        minutes: Of the whole run.
        shown: Names of the scores that the line for a person has.
    """

    run: Path
    best_epoch: int | None
    row: Row
    threshold: float | None
    minutes: float
    shown: Sequence[str] = ()

    def __str__(self) -> str:
        best = "" if self.best_epoch is None else f", best at epoch {self.best_epoch + 1}"
        return "  ".join([f"done in {self.minutes:.1f} min{best}", *score_texts(self.row, self.shown)])

    def to_dict(self) -> dict[str, object]:
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
    """What a run would take.

    Attributes:
        run: The folder with first_batch.jpg, or None where no folder was named.
        device: Where it computes.
        precision: How.
        steps: Of one epoch.
        epochs: Of the whole run.
        step_seconds: Of one step.
        epoch_seconds: Of one epoch, validation included.
        memory: The most in use, in MB.
        losses: Of the last step.
    """

    run: Path | None
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

    def to_dict(self) -> dict[str, object]:
        """The form of ``train --dry-run --json``."""
        return {**asdict(self), "run": self.run and str(self.run), "minutes": round(self.minutes, 2)}

    def lines(self) -> list[str]:
        """The same for a person."""
        return [
            f"everything is built and two steps are done on {self.device} in {self.precision}: "
            + "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items()),
            f"{counted(self.steps, 'step')} per epoch at {self.step_seconds:.2f} s, "
            f"about {self.epoch_seconds / 60:.1f} min with validation; "
            f"{counted(self.epochs, 'epoch')} in about {self.minutes:.0f} min",
            f"memory in use: {self.memory:.0f} MB"
            + (f"; first batch: {self.run / 'first_batch.jpg'}" if self.run else ""),
        ]


Event = DataRead | TrainStarted | EpochStarted | BatchDone | BatchValidated | EpochDone | Saved | Notice | TrainFinished
Listener = Callable[[Event], None]
