"""The settings of a training run: this dataclass is the schema of a configuration's ``train:`` section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Literal

from detkit.errors import DetkitError

# How a number, or each of several, compares with a bound.
_RULES: tuple[tuple[str, Callable[[float, float], bool], float, tuple[str, ...]], ...] = (
    ("at least 1", ge, 1, ("epochs", "batch", "accumulate", "validate_every", "cache_views", "unfreeze")),
    ("above 0", gt, 0, ("lr", "save_minutes", "step_at")),
    ("0 or more", ge, 0, ("limit", "weight_decay", "warmup", "warmup_steps", "clip", "workers", "close_mosaic")),
    ("0 or more", ge, 0, ("patience", "per_identity", "backbone_lr", "stage_lr", "cache_images")),
    ("0 or more", ge, 0, ("momentum", "ema", "balance", "final_lr")),
    ("at most 1", le, 1, ("balance", "final_lr")),
    ("below 1", lt, 1, ("momentum", "ema", "step_at")),
)
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
        per_identity: A batch shows so many images of each of its classes, which take turns: what a head that learns
            from pairs needs; 0: images in any order.
        seed: Of every random choice.
        optimizer: Its name.
        lr: Learning rate; ``auto``: 2e-3, but 1e-4 from a detector's weights (``model.weights``) with adamw or adam.
        backbone_lr: The rate of the backbone; ``auto``: 4e-4, or ``lr`` from a detector's weights; None: ``lr``.
        freeze_norms: BatchNorms whose statistics come with the weights keep them; ``auto``: from a detector's weights
            with fewer than 32 images per step and process, whose own statistics are too rough to replace those.
        sync_norms: BatchNorms count over all processes (torch's SyncBatchNorm, on CUDA).
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
        cache_images: Gigabytes of disk for training images as they were decoded; 0: each is decoded in every epoch.
        cache_features: The output of the backbone's frozen stages is computed once and kept on disk (float16), and the
            rest trains from it.
        cache_views: Of each image so many augmented views are kept, and each epoch takes the next one; 1: the image as
            it is, augmentation is left out; None: 1 where there is no augmentation.
        precision: ``auto`` takes bf16 where the hardware computes in it, else fp32.
        channels_last: The order of pixels in memory that is fastest as a rule.
        compile: torch.compile of backbone and neck, which takes a minute or so; on a CPU it wants a C++ compiler.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or 1, ``mps``.
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
    per_identity: int = 0
    seed: int = 0
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    lr: float | Literal["auto"] = "auto"
    backbone_lr: float | Literal["auto"] | None = "auto"
    freeze_norms: bool | Literal["auto"] = "auto"
    sync_norms: bool = False
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
    cache_images: float = 0.0
    cache_features: bool = False
    cache_views: int | None = None
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    device: str | int = "auto"
    workers: int = 2
    close_mosaic: int = 10
    validate_every: int = 1
    best_by: str | None = None
    patience: int = 0
    save_minutes: float = 10.0
    tensorboard: bool = False
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for rule, holds, bound, names in _RULES:
            for name in names:
                value = getattr(self, name)
                values = value if isinstance(value, tuple) else (value,)
                # NaN does not hold either.
                self._require(name, all(one in (None, "auto") or holds(one, bound) for one in values), rule)
        self._require("unfreeze", list(self.unfreeze) == sorted(self.unfreeze), "epochs in rising order")
        self._require("per_identity", self.batch % max(self.per_identity, 1) == 0, f"a divisor of batch {self.batch}")
        self._require("cache_views", self.cache_features or not self.cache_views, "left out without cache_features")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise DetkitError(f"{name} must be {rule}, got {getattr(self, name)}", f"train.{name}", "correct the value")

    @property
    def mosaic_epochs(self) -> int:
        """Epochs with mosaic and mixup; the rest of the run is without."""
        return self.epochs - min(self.close_mosaic, self.epochs // 3)
