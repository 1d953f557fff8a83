"""The settings of a training run: this dataclass is the schema of a configuration's ``train:`` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detkit.errors import DetkitError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train.

    Args:
        epochs: Passes over the training set.
        batch: Images per step, of all processes together, before accumulation.
        accumulate: Batches whose gradients are added up before the weights move.
        limit: Only the first images; 0: all.
        balance: Images with classes that are in less than this share of the images are drawn more often; 0: all alike
            (Gupta et al., LVIS, 2019, section 4.2).
        seed: Of every random choice.
        optimizer: Its name.
        lr: Learning rate.
        backbone_lr: The rate of the backbone; None: ``lr``.
        stage_lr: Factors on it for the backbone's first, second ... stage, the last one for all others (lower for the
            first, which fit any data).
        unfreeze: Epochs, counted from 1, each of which begins with one frozen stage of the backbone fewer, the last
            first (Howard and Ruder 2018, section 3.3).
        momentum: Of sgd and rmsprop.
        weight_decay: Never of biases and normalisation layers.
        schedule: ``cosine`` falls to final_lr * lr, ``step`` multiplies by step_factor after each share in step_at.
        final_lr: See ``schedule``.
        step_at: Shares of the run; see ``schedule``.
        step_factor: See ``schedule``.
        warmup: Epochs of linear warm-up.
        warmup_steps: The least steps of it.
        clip: Largest norm of the gradient; 0: no clipping.
        ema: Decay of the averaged weights, which are those validated and saved; 0: none.
        cache_features: The output of the backbone's frozen stages is computed once and kept on disk (float16), and the
            rest trains from it.
        cache_views: Of each image so many augmented views are kept, and each epoch takes the next one; 1: the image as
            it is, augmentation is left out; None: 1 where there is no augmentation.
        precision: ``auto`` takes bf16 where the hardware computes in it, else fp32.
        channels_last: The order of pixels in memory that is fastest as a rule.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        workers: Loading processes beside training.
        close_mosaic: Last epochs without mosaic and mixup (at most a third of the run).
        validate_every: Epochs between validations.
        best_by: The score that chooses best.safetensors; None: the first of the metric's (AP; top1 of a classifier).
        patience: Validations without a better score before an early stop; 0: never.
        save_minutes: How often state.pt is written inside long epochs.
        tensorboard: The same as ``tensorboard`` among the loggers.
        loggers: Names of ``Logger`` parts, or ``module:Name``, that hear of all that happens.

    Raises:
        DetkitError: A value that makes no sense; it names the key.
    """

    epochs: int = 50
    batch: int = 16
    accumulate: int = 1
    limit: int = 0
    balance: float = 0.0
    seed: int = 0
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    lr: float = 2e-3
    backbone_lr: float | None = 4e-4
    stage_lr: tuple[float, ...] = ()
    unfreeze: tuple[int, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 0.05
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    final_lr: float = 0.01
    step_at: tuple[float, ...] = (0.7, 0.9)
    step_factor: float = 0.1
    warmup: float = 1.0
    warmup_steps: int = 20
    clip: float = 10.0
    ema: float = 0.999
    cache_features: bool = False
    cache_views: int | None = None
    precision: Precision = "auto"
    channels_last: bool = True
    device: str = "auto"
    workers: int = 2
    close_mosaic: int = 10
    validate_every: int = 1
    best_by: str | None = None
    patience: int = 0
    save_minutes: float = 10.0
    tensorboard: bool = False
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "validate_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "save_minutes"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("limit", "weight_decay", "warmup", "warmup_steps", "clip", "workers", "close_mosaic", "patience"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("momentum", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._require("backbone_lr", self.backbone_lr is None or self.backbone_lr >= 0, "0 or more")
        self._require("stage_lr", all(factor >= 0 for factor in self.stage_lr), "factors of 0 or more")
        rising = list(self.unfreeze) == sorted(self.unfreeze) and all(epoch >= 1 for epoch in self.unfreeze)
        self._require("unfreeze", rising, "epochs from 1 on in rising order")
        if self.cache_views is not None:
            self._require("cache_views", self.cache_views >= 1, "at least 1")
            self._require("cache_views", self.cache_features, "left out unless cache_features is true")
        self._require("balance", 0 <= self.balance <= 1, "between 0 and 1")
        self._require("final_lr", 0 <= self.final_lr <= 1, "between 0 and 1")
        self._require("step_at", all(0 < share < 1 for share in self.step_at), "shares of the run between 0 and 1")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:  # NaN ends here too
            raise DetkitError(f"{name} must be {rule}, got {getattr(self, name)}", f"train.{name}", "correct the value")

    @property
    def mosaic_epochs(self) -> int:
        """Epochs with mosaic and mixup; the rest of the run is without."""
        return self.epochs - min(self.close_mosaic, self.epochs // 3)
