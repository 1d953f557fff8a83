"""The settings of a training run: this dataclass is the schema of a configuration's ``train:`` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detkit.errors import DetkitError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train. Raises DetkitError (code 2), naming the key, for a value that makes no sense.

    epochs: passes over the training set; batch: images a step (of all processes together, before accumulation);
    accumulate: batches whose gradients are added up before the weights move; limit: only the first images (0: all);
    balance: images with classes that are in less than this share of the images are drawn more often (0: all alike;
    Gupta et al., LVIS, 2019, section 4.2).

    optimizer, lr, momentum (SGD, RMSprop), weight_decay (never of biases and normalisation layers); backbone_lr: the
    rate of ``detector.backbone`` (none: lr); stage_lr: factors on it for the backbone's first, second ... stage, the
    last one for all others (lower for the first, which fit any data); unfreeze: epochs, counted from 1, each of which
    begins with one frozen stage of the backbone fewer, the last first (Howard and Ruder 2018, section 3.3); schedule:
    ``cosine`` falls to final_lr * lr, ``step`` multiplies by step_factor after each share of the run in step_at;
    warmup: epochs of linear warm-up, at least warmup_steps steps; clip: largest norm of the gradient (0: no clipping);
    ema: decay of the averaged weights, which are those validated and saved (0: none).

    cache_features: the output of the backbone's frozen stages is computed once and kept on disk (float16), and the rest
    trains from it; cache_views: of each image so many augmented views are kept, and each epoch takes the next one
    (1: the image as it is, augmentation is left out; none: 1 where there is no augmentation).

    precision: ``auto`` takes bf16 where the hardware computes in it, else fp32; device: ``auto``, ``cpu``, ``cuda``,
    ``cuda:1``, ``mps``; workers: loading processes beside training.

    close_mosaic: last epochs without mosaic and mixup (at most a third of the run); validate_every: epochs between
    validations; best_by: the score that chooses best.safetensors (none: AP, or top1 of a classifier); patience:
    validations without a better score before an early stop (0: never); save_minutes: how often state.pt is written
    inside long epochs.
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
    best_by: Literal["AP", "AP50", "top1", "top5", "PCK"] | None = None
    patience: int = 0
    save_minutes: float = 10.0
    tensorboard: bool = False

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
