"""The training loop: one for every family of detectors, meant to be read from top to bottom.

Each epoch: for every step, losses -> gradient -> optimizer -> averaged weights; then validation with the averaged
weights, a row in metrics.csv, and the files that let the run go on after any stop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from detkit.detector import read_weights
from detkit.engine.errors import explained, stop_requests
from detkit.engine.evaluator import Inference, infer
from detkit.engine.events import (
    BatchDone,
    BatchValidated,
    DryRun,
    EpochDone,
    EpochStarted,
    Listener,
    Row,
    TrainFinished,
)
from detkit.engine.feature_cache import embed_regions
from detkit.engine.optimizer import set_rate
from detkit.engine.options import TrainOptions
from detkit.engine.run_folder import save_first_batch
from detkit.engine.schedule import rate_factor
from detkit.engine.session import Session
from detkit.engine.step import Item, divided
from detkit.errors import DetkitError
from detkit.metrics import evaluate
from detkit.metrics.curves import best_threshold
from detkit.structures import Limits


def train(
    detector: Any,
    train_set: Any,
    val_set: Any | None,
    options: TrainOptions,
    *,
    run: Path,
    augment: Any | None = None,
    config: str = "",
    limits: Limits | None = None,
    on_event: Listener = lambda event: None,
    resume: bool = False,
    dry_run: bool = False,
) -> TrainFinished | DryRun:
    """Trains ``detector`` (a ``detkit.detector.Detector``) in place and keeps the run folder.

    train_set, val_set: Datasets (without val_set nothing is validated and last.safetensors is the result); augment: an
    Augment or None; config: text of config.yaml; limits: of validation; resume: go on with the state in ``run``;
    dry_run: two steps only, then an estimate of time and memory.

    Raises:
        DetkitError: code 2 for a state that cannot be resumed; code 4 for a run that had to stop (a loss that is no
            number, memory, the disk), the last saved state kept.
        Interrupted: Ctrl-C or SIGTERM (code 130 or 143), the state saved at the step that was under way.
    """
    with stop_requests() as stop, explained(run):
        trainer = Trainer(detector, train_set, val_set, options, run, augment, limits, on_event, stop)
        try:
            return trainer.try_out() if dry_run else trainer.fit(config, resume)
        finally:
            trainer.close()


class Trainer(Session):
    """``fit`` is the loop; what it works with is made in ``Session``."""

    # ---------------------------------------------------------------- the loop

    def fit(self, config: str, resume: bool) -> TrainFinished:
        """All epochs, from the start or from where the saved state stands."""
        self.begin(config, resume)
        progress, options = self.state.progress, self.options
        fits = self.model.head.needs_fit and not progress.fitted
        if fits:
            self._expect_fit()
        if options.cache_features and progress.epoch < options.epochs:
            self.cache_frozen()
        for epoch in range(progress.epoch, options.epochs):
            if options.patience and progress.waited >= options.patience:
                self.say(f"stopped early: {progress.waited} validations without a better {self.best_by}")
                break
            self.tell(EpochStarted(epoch, options.epochs, self.steps, epoch < options.mosaic_epochs))
            self.thaw(epoch)
            self._train_epoch(epoch)
            due = (epoch + 1) % options.validate_every == 0 or epoch + 1 == options.epochs
            row, better = self._row(epoch), False
            if self.val_loader is not None and due:
                better = self._validate(epoch, row)
            progress.rows.append(row)
            progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
            self.save_weights("last.safetensors", row)
            self.save_state()
            left = (progress.seconds - progress.caching) / (epoch + 1) * (options.epochs - epoch - 1)
            self.tell(EpochDone(epoch, options.epochs, row, better, left))
        if fits:
            self._fit_head()
        best = progress.best_epoch
        row = progress.rows[-1 if best is None else best] if progress.rows else {}
        finished = TrainFinished(self.run, best, row, progress.threshold, progress.seconds / 60)
        self.tell(finished)
        return finished

    def _train_epoch(self, epoch: int) -> None:
        progress, self.started = self.state.progress, time.perf_counter()
        saved = self.started
        for step, (window, waited) in enumerate(self._windows(epoch), progress.batch // self.options.accumulate):
            begun = time.perf_counter()
            rate = set_rate(self.optimizer, rate_factor(progress.step, self.steps, self.options))
            losses, gradient = self.stepper(window, epoch, progress.sums)
            progress.step += 1
            progress.batch += len(window)
            images = sum(len(batch) for batch, _ in window)
            seconds = waited + time.perf_counter() - begun
            self.tell(BatchDone(epoch, step, self.steps, losses, rate, gradient, images, seconds, waited))
            self.stop_if_asked()
            if time.perf_counter() - saved > 60 * self.options.save_minutes:
                self.save_state()
                saved = time.perf_counter()
        self.count_time()

    def _windows(self, epoch: int) -> Iterator[tuple[list[Item], float]]:
        """Windows of ``accumulate`` batches on the device, and the seconds that they were waited for."""
        progress = self.state.progress
        batches = self.loader.epoch(epoch, start=progress.batch, mosaic=epoch < self.options.mosaic_epochs)
        while True:
            begun = time.perf_counter()
            try:
                with torch.random.fork_rng(devices=[]):  # torch's loader draws from the model's random numbers
                    window = list(itertools.islice(batches, self.options.accumulate))
            except DetkitError:
                self.stop_if_asked()  # Ctrl-C in a terminal reaches the loading processes too
                raise
            if not window:
                return
            if progress.step == 0 and self.runtime.main and window[0][0].cached is None:
                save_first_batch(self.run / "first_batch.jpg", *window[0], self.model.classes)
            device = self.runtime.device
            moved = [(b.to(device, non_blocking=True), [t.to(device) for t in targets]) for b, targets in window]
            yield moved, time.perf_counter() - begun

    # ---------------------------------------------------------------- validation

    def _validate(self, epoch: int, row: Row) -> bool:
        """Adds validation losses and AP to the row; keeps the weights if they are the best so far."""
        self.runtime.share(list(self.average.model.buffers()))
        done = self._infer()
        row |= {"val_loss": sum(done.losses.values())} | {f"val_loss_{name}": v for name, v in done.losses.items()}
        row |= evaluate(done.truth, done.results, self.protocol).metrics
        progress = self.state.progress
        self.count_time()
        row["minutes"] = progress.seconds / 60
        score = row[self.best_by]
        progress.waited += 1
        if progress.best_epoch is not None and not score > progress.best_score:
            return False
        progress.best_epoch, progress.best_score, progress.waited = epoch, score, 0
        progress.threshold = best_threshold(done.truth, done.results)[0]
        self.save_weights("best.safetensors", row)
        return True

    # ---------------------------------------------------------------- what some heads learn afterwards

    def _expect_fit(self) -> None:
        """Until the head is fitted it answers with what the loop trains, whatever weights it started from."""
        if self.runtime.world > 1:
            do = "train in one process, or with classifier: softmax"
            raise DetkitError("several processes cannot fit a head's last stages", "model.head.classifier", do)
        models: list[Any] = [self.model, self.average.model]
        for model in models:
            model.head.fitted.fill_(False)

    def _fit_head(self) -> None:
        """Fits the head's last stages on the features that the best weights, now fixed, give for the training set.

        The file of these weights, and the row of their epoch, are replaced by those of the whole.
        """
        progress, model = self.state.progress, cast(Any, self.average.model)
        place = len(progress.rows) - 1 if progress.best_epoch is None else progress.best_epoch
        name = "last.safetensors" if progress.best_epoch is None else "best.safetensors"
        model.load_state_dict(read_weights(self.run / name))

        self.started = time.perf_counter()
        loader = self._loader(self.train_set, None, shuffle=False)
        try:
            pictures = len(self.train_set)
            data = embed_regions(model, loader, pictures, self.runtime, self.say, self._looked)
        finally:
            loader.close()
        model.head.fit(data)
        row, before = dict(progress.rows[place]), progress.rows[place]
        if self.val_loader is None:
            self.save_weights(name, row)
        else:
            progress.best_score = -1.0  # what is fitted is the result, better or not
            self._validate(place, row)
            scores = ", ".join(f"{score} {row[score]:.4f}" for score in ("AP", "AP50") if score in row)
            was = ", ".join(f"{before[score]:.4f}" for score in ("AP", "AP50") if score in before)
            self.say(f"the head's stages are fitted: {scores}; before {was}")
        progress.rows[place], progress.fitted = row, True
        self.count_time()
        self.save_state()
        data.cache.clear()  # no other run has this trunk

    def _looked(self, done: int, batches: int) -> None:
        """After each batch that is only looked at."""
        self.tell(BatchValidated(done - 1, batches))
        self.stop_if_asked()

    def _infer(self) -> Inference:
        return infer(
            self.average.model,
            self.val_set,
            self.val_loader,  # type: ignore[arg-type]
            limits=self.limits,
            runtime=self.runtime,
            losses=True,
            on_batch=self._looked,
        )

    def try_out(self) -> DryRun:
        """Two steps, of which the second is measured: what a run would take."""
        if self.options.cache_features:
            self.say("this looks at two steps and an epoch that compute the frozen stages, not at cached ones")
        times: list[float] = []
        losses: dict[str, float] = {}
        for window, _ in itertools.islice(self._windows(0), 2):
            begun = time.perf_counter()
            set_rate(self.optimizer, rate_factor(self.state.progress.step, self.steps, self.options))
            losses, _ = self.stepper(window, 0, {})
            self.state.progress.step += 1
            times.append(time.perf_counter() - begun)
            if self.stop.signal:
                raise KeyboardInterrupt
        seconds = times[-1]
        # A forward pass takes about a third of a step; images are read by other processes meanwhile.
        validation = 0 if self.val_loader is None else len(self.val_loader) * seconds / 3 / self.options.accumulate
        return DryRun(
            run=self.run,
            device=str(self.runtime.device),
            precision=self.runtime.precision,
            steps=self.steps,
            epochs=self.options.epochs,
            step_seconds=seconds,
            epoch_seconds=seconds * self.steps + validation / self.options.validate_every,
            memory=self.runtime.memory(),
            losses=losses,
        )

    def _row(self, epoch: int) -> Row:
        progress = self.state.progress
        terms = {f"loss_{name}": value for name, value in divided(progress.sums).items()}
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        base = {"epoch": epoch + 1.0, "step": float(progress.step), "minutes": progress.seconds / 60, "lr": lr}
        return {**base, "loss": sum(terms.values()), **terms}
