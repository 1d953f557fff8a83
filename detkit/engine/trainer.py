"""The training loop: one for every family of detectors, meant to be read from top to bottom."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from detkit import registry
from detkit.data.anchors import usual_sizes
from detkit.data.augment import Augment
from detkit.data.dataset import Dataset
from detkit.data.loader import Loader
from detkit.data.summary import DataSummary
from detkit.detector import Detector
from detkit.engine import events
from detkit.engine.checkpoint import Progress, random_states, restore_random, restore_state, save_state
from detkit.engine.checks import check_run, remarks, try_out
from detkit.engine.errors import explained, not_finite, stop_requests
from detkit.engine.evaluator import LossSums, add_losses, infer, mean_losses
from detkit.engine.events import BatchDone, DryRun, Event, Listener, Row, TrainFinished
from detkit.engine.feature_cache import CachedLoader, cache_frozen, fit_head
from detkit.engine.optim import (
    Average,
    begin_averages,
    highest_rate,
    make_optimizer,
    move_weights,
    norms_to_freeze,
    set_rate,
)
from detkit.engine.options import TrainOptions
from detkit.engine.run_folder import RunFolder, data_hash, machine_record, save_first_batch
from detkit.engine.runtime import Runtime
from detkit.errors import DetkitError
from detkit.interfaces import Losses
from detkit.io.files import write_text
from detkit.metrics import evaluate_results, find_metric
from detkit.metrics.curves import best_threshold
from detkit.printed import counted
from detkit.speedups.depthwise import speed_up_depthwise
from detkit.structures import Batch, Limits, Target

Item = tuple[Batch, list[Target]]
_NO_SCORES = ("epoch", "step", "minutes", "lr", "loss", "val_loss")  # in a row of metrics.csv


@dataclass
class Trainer:
    """Trains a detector in place and keeps the run folder. ``train`` is, but for telling and saving::

        for epoch in range(epochs):
            for window in loader:  # one batch, or several whose gradients are accumulated
                losses = model(batch, targets)  # for each batch of the window
                (sum / count).backward()  # of each term, counted over the window and all processes
                optimizer.step()
                average.update(model)  # the weights that are validated and saved
            detections = average.model(batch)  # for each batch of the validation set
            save best.safetensors if their AP is the best so far, last.safetensors, state.pt

    Args:
        model: What trains.
        train_set: The images and labels to learn from.
        val_set: Those to validate on; without them last.safetensors is the result.
        options: The ``train`` section of a config.
        run: The run folder.
        augment: Changes to training images.
        config: Text of config.yaml.
        limits: Of validation.
        summary: Of the data, for run.json.
        on_event: Called with each event (see ``detkit.engine.events``), in the main process.
    """

    model: Detector
    train_set: Dataset
    val_set: Dataset | None
    options: TrainOptions
    run: Path
    augment: Augment | None = None
    config: str = ""
    limits: Limits = field(default_factory=Limits.evaluation)
    summary: DataSummary | None = None
    on_event: Listener = lambda event: None
    opened: ExitStack = field(default_factory=ExitStack, init=False)  # what is closed when the run ends

    def train(self, *, resume: bool = False, dry_run: bool = False) -> TrainFinished | DryRun:
        """The whole run.

        Args:
            resume: Go on with the state in the run folder.
            dry_run: Two steps and a batch of validation only, then an estimate of time and memory.

        Raises:
            DetkitError: Code 2 for what does not go together or a state that cannot be resumed; code 4 for a run that
                had to stop (a loss that is no number, memory, the disk), the last saved state kept.
            Interrupted: Ctrl-C or SIGTERM (code 130 or 143), the state saved at the step that was under way.
        """
        with stop_requests() as self.stop, explained(self.run), self.opened:
            self.build()
            if dry_run:
                return try_out(self)
            self._begin(resume)
            return self.fit()

    def fit(self) -> TrainFinished:
        """The loop over epochs, and what some heads learn after it."""
        progress, options = self.progress, self.options
        fits = self.model.head.needs_fit and not progress.fitted
        if fits:  # until then the head answers with what the loop trains, whatever weights it started from
            for model in (self.model, self.average.model):
                model.head.fitted.fill_(False)  # type: ignore[operator,union-attr]
        if options.cache_features and progress.epoch < options.epochs:
            cache_frozen(self)
        for epoch in range(progress.epoch, options.epochs):
            if options.patience and progress.waited >= options.patience:
                self.say(f"stopped early: {counted(progress.waited, 'validation')} without a better {self.best_by}")
                break
            self.train_epoch(epoch)
            row, better = self._row(epoch), False
            due = (epoch + 1) % options.validate_every == 0 or epoch + 1 == options.epochs
            if self.val_loader is not None and due:
                better = self.validate(epoch, row)
            progress.rows.append(row)
            progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
            self.save_weights("last.safetensors", row)
            self.save_state()
            left = (progress.seconds - progress.caching) / (epoch + 1) * (options.epochs - epoch - 1)
            self.tell(events.EpochDone(epoch, options.epochs, row, better, left, self.shown))
        if fits:
            fit_head(self)
        best = progress.best_epoch
        row = progress.rows[-1 if best is None else best] if progress.rows else {}
        finished = TrainFinished(self.run, best, row, progress.threshold, progress.seconds / 60, self.shown)
        self.tell(finished)
        return finished

    def train_epoch(self, epoch: int) -> None:
        """All steps of an epoch (from 0) that are left; frozen stages begin to train first if ``unfreeze`` says so."""
        self.tell(events.EpochStarted(epoch, self.options.epochs, self.steps, epoch < self.options.mosaic_epochs))
        if self.options.unfreeze:
            self.model.backbone.freeze(self.frozen - sum(first <= epoch + 1 for first in self.options.unfreeze))
        saved = time.perf_counter()
        for window, waited in self.windows(epoch):
            self.tell(self.step(window, epoch, waited))
            self.stop_if_asked()
            if time.perf_counter() - saved > 60 * self.options.save_minutes:
                self.save_state()
                saved = time.perf_counter()
        self.count_time()

    def windows(self, epoch: int) -> Iterator[tuple[list[Item], float]]:
        """Windows of ``accumulate`` batches on the device, and the seconds that they were waited for."""
        start, mosaic, device = self.progress.batch, epoch < self.options.mosaic_epochs, self.runtime.device
        batches = self.loader.epoch(epoch, start=start, mosaic=mosaic)
        while True:
            begun = time.perf_counter()
            try:
                window = list(itertools.islice(batches, self.options.accumulate))
            except DetkitError:
                self.stop_if_asked()  # Ctrl-C in a terminal reaches the loading processes too
                raise
            if not window:
                return
            if window[0][0].cached is None:
                self.show_first(*window[0])
            moved = [(b.to(device, non_blocking=True), [t.to(device) for t in targets]) for b, targets in window]
            yield moved, time.perf_counter() - begun

    def step(self, window: Sequence[Item], epoch: int, waited: float = 0.0) -> BatchDone:
        """One step of the optimizer on a window of batches (one, or several whose gradients are accumulated).

        Each loss term is a sum over examples divided by their number *in the whole window and in all processes*, so
        neither accumulation nor the number of processes changes what is learned.

        Args:
            window: The batches, on the device.
            epoch: For messages.
            waited: Seconds that the window was waited for.

        Raises:
            DetkitError: Code 4, naming the images: a loss or gradient that is no number, before any weight has moved.
        """
        begun, progress, runtime = time.perf_counter(), self.progress, self.runtime
        set_rate(self.optimizer, progress.step, self.steps, self.options)
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        counts = self._window_counts(window) if len(window) > 1 else {}
        sums: LossSums = {}
        for number, (batch, targets) in enumerate(window, 1):
            with runtime.without_sync(self.module, number < len(window)):
                with runtime.autocast():
                    terms: Losses = self.module(batch, targets)
                own = self._own_totals(terms)
                totals = dict(zip(terms, runtime.sum(own).tolist(), strict=True))
                if not all(math.isfinite(value) for pair in totals.values() for value in pair):
                    raise not_finite("loss", [] if own.isfinite().all() else [batch], epoch)
                divisors = counts or {name: count for name, (_, count) in totals.items()}
                # DDP averages gradients over processes; times world makes that a sum.
                loss = sum(term.sum * (runtime.world / (divisors[name] or 1.0)) for name, term in terms.items())
                runtime.scaler.scale(loss).backward()  # type: ignore[arg-type]
            add_losses(sums, totals)
            add_losses(progress.sums, totals)
        gradient = move_weights(self.optimizer, runtime.scaler, self.options.clip)
        if math.isfinite(gradient):
            self.average.update(self.model)
        elif not runtime.scaler.is_enabled():  # fp16's scaler expects this now and then, and scales less
            raise not_finite("gradient", [batch for batch, _ in window], epoch)
        step, images = progress.batch // self.options.accumulate, sum(len(batch) for batch, _ in window)
        progress.step += 1
        progress.batch += len(window)
        seconds, rate = waited + time.perf_counter() - begun, highest_rate(self.optimizer)
        return BatchDone(epoch, step, self.steps, mean_losses(sums), rate, gradient, images, seconds, waited)

    def _window_counts(self, window: Sequence[Item]) -> dict[str, float]:
        """The terms' counts over a whole window, which the gradient of its first batch needs already.

        Found by passes without gradients. Random states and running statistics are put back, so that the passes that
        train see the same proposals and count each batch once.
        """
        states, buffers = random_states(self.model), [buffer.clone() for buffer in self.model.buffers()]
        with torch.no_grad(), self.runtime.autocast():
            passes = [self.model(batch, targets) for batch, targets in window]
        restore_random(self.model, states)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        totals = self.runtime.sum(torch.stack([self._own_totals(terms) for terms in passes]).sum(0))
        return dict(zip(passes[0], totals[:, 1].tolist(), strict=True))

    @staticmethod
    def _own_totals(terms: Losses) -> torch.Tensor:
        """(T, 2) sum and count of each term in this process: one tensor, so that the device is waited for once."""
        return torch.stack([torch.stack([term.sum, term.count]).detach().float() for term in terms.values()])

    def validate(self, epoch: int, row: Row) -> bool:
        """Adds validation losses and scores to the row; keeps the weights if they are the best so far."""
        progress, model, runtime = self.progress, self.average.model, self.runtime
        runtime.share(model.buffers())
        loader: Loader | CachedLoader = self.val_loader  # type: ignore[assignment]
        data = (self.val_set, loader.epoch(0), len(loader))
        done = infer(model, *data, self.limits, runtime, losses=True, on_batch=self.looked)  # type: ignore[arg-type]
        row |= {"val_loss": sum(done.losses.values())} | {f"val_loss_{name}": v for name, v in done.losses.items()}
        row |= evaluate_results(done.truth, done.results, model.protocol).metrics
        self.count_time()
        row["minutes"] = progress.seconds / 60
        score = row[self.best_by]
        progress.waited += 1
        if progress.best_epoch is not None and not score > progress.best_score:
            return False
        progress.best_epoch, progress.best_score, progress.waited = epoch, score, 0
        if self.metric.answers != "pixels":  # where each pixel has its most probable class, whatever that is
            progress.threshold = best_threshold(done.truth, done.results)[0]
        self.save_weights("best.safetensors", row)
        return True

    def _row(self, epoch: int) -> Row:
        progress = self.progress
        terms = {f"loss_{name}": value for name, value in mean_losses(progress.sums).items()}
        row = {"epoch": epoch + 1.0, "step": float(progress.step), "minutes": progress.seconds / 60}
        return {**row, "lr": highest_rate(self.optimizer), "loss": sum(terms.values()), **terms}

    # ---------------------------------------------------------------- what the loop works with

    def build(self) -> None:
        """Model, averaged weights, optimizer, loaders and state, once their parts are known to fit."""
        options, model = self.options, self.model
        self.runtime = Runtime(options.device, options.precision)
        self.listeners: list[Listener] = [self.on_event] if self.runtime.main else []
        self.train_set, self.val_set = model.reads(self.train_set), self.val_set and model.reads(self.val_set)
        if options.limit:
            self.train_set = self.train_set.subset(range(min(options.limit, len(self.train_set))))
        check_run(model, self.train_set, self.val_set, options, self.augment, self.runtime.world)
        self.metric = find_metric(model.protocol)
        self.best_by = options.best_by or self.metric.scores[0]
        self.shown = self.metric.shown or self.metric.scores
        if self.augment is not None:
            self.augment.flip_pairs = model.flip_pairs
        self.frozen = model.backbone.frozen
        torch.manual_seed(options.seed + self.runtime.rank)
        self.runtime.place(model, options)
        speed_up_depthwise(model)
        self.average = Average(model, options.ema)
        self.optimizer = make_optimizer(model, options)
        self.frozen_norms = norms_to_freeze(model, options, options.batch // self.runtime.world)
        self.module = self.runtime.wrap(model)  # what is called in training: it averages gradients over processes
        self.data_hash = data_hash(self.train_set)
        self.progress, self.started = Progress(), time.perf_counter()
        self.augment = None if options.cache_views == 1 else self.augment
        self.loader: Loader | CachedLoader = self.make_loader(self.train_set, self.augment, shuffle=True)
        self.val_loader: Loader | CachedLoader | None = None
        if self.val_set:
            self.val_loader = self.make_loader(self.val_set, None, shuffle=False)
        self.steps = -(-len(self.loader) // options.accumulate)  # of an epoch
        for text in remarks(self):
            self.say(text)

    def make_loader(self, dataset: Dataset, augment: Augment | None, shuffle: bool) -> Loader:
        """Batches for this process; shuffle: to train on. Closed when the run ends, if not before."""
        loader = Loader(
            dataset,
            resize=self.model.resize,
            augment=augment,
            batch=self.options.batch // self.runtime.world,
            seed=self.options.seed,
            workers=self.options.workers,
            shuffle=shuffle,
            rank=self.runtime.rank,
            world=self.runtime.world,
            balance=self.options.balance,
            per_identity=self.options.per_identity,
            pin=self.runtime.device.type == "cuda",
            on_bad_image=lambda error: self.say(f"left out: {error.where}: {error.what}"),
        )
        return self.opened.enter_context(loader)

    def _begin(self, resume: bool) -> None:
        """Restores the state if asked, opens the run folder and says what is about to happen."""
        path, runtime, options = self.run / "state.pt", self.runtime, self.options
        before = options.epochs
        if resume:
            before = restore_state(self, path)
        elif path.exists():
            what = "this folder holds another run"
            raise DetkitError(what, str(self.run), "choose another folder, or go on with that run (--resume)")
        begin_averages(self.model)
        parameters, device = sum(p.numel() for p in self.model.parameters() if p.requires_grad), str(runtime.device)
        where = {"device": device, "precision": runtime.precision, "parameters": parameters}
        self.record = {"seed": options.seed, "data_hash": self.data_hash, **machine_record(), **where}
        self.record["objects"] = usual_sizes(self.train_set.annotations, self.model.resize)
        if runtime.main:
            names = {*options.loggers, "tensorboard"} if options.tensorboard else {*options.loggers}
            kinds = [registry.find_part("logger", name, where="train.loggers") for name in sorted(names)]
            if self.config and (not resume or before != options.epochs):
                write_text(self.run / "config.yaml", self.config, overwrite=True)
            record = {**self.record, "data": self.summary and self.summary.to_dict()}
            folder = RunFolder(self.run, record, self.progress.rows, (*self.metric.scores, "AP75"))
            made = [registry.make(kind, "train.loggers", self.run) for kind in kinds]
            loggers = [self.opened.enter_context(closing(logger)) for logger in made]
            self.listeners = [folder, *loggers, self.on_event]
        lengths = (options.epochs, self.steps, len(self.train_set), len(self.val_set or ()), parameters)
        self.tell(events.TrainStarted(self.run, *lengths, device, runtime.precision, self.progress.epoch))

    # ---------------------------------------------------------------- saving, telling, stopping

    def save_weights(self, name: str, row: Row) -> None:
        """The averaged weights as a model file of the run folder, with their scores and threshold."""
        if self.runtime.main:
            model = self.average.model
            model.scores = {key: value for key, value in row.items() if not key.startswith(_NO_SCORES)}
            model.record = {**self.record, "epoch": int(row["epoch"]), "minutes": row["minutes"]}
            if self.progress.threshold is not None:
                model.threshold = self.progress.threshold
            model.save(self.run / name)
            self.tell(events.Saved(self.run / name))

    def save_state(self) -> None:
        """state.pt, from which the run can go on."""
        save_state(self, self.run / "state.pt")
        self.tell(events.Saved(self.run / "state.pt"))

    def stop_if_asked(self) -> None:
        """Between two steps: saves the state and raises Interrupted if a signal came (to any of the processes)."""
        if self.runtime.any(self.stop.signal):
            self.count_time()
            self.save_state()
            raise self.stop.interrupted(self.run)

    def count_time(self) -> float:
        """Adds the seconds since the last call to the run's, and returns them."""
        now = time.perf_counter()
        passed, self.started = now - self.started, now
        self.progress.seconds += passed
        return passed

    def looked(self, done: int, total: int) -> None:
        """After each batch that is only looked at."""
        self.tell(events.BatchValidated(done - 1, total))
        if self.runtime.world == 1:  # of several, some have a batch more, which nobody would agree with
            self.stop_if_asked()

    def show_first(self, batch: Batch, targets: list[Target]) -> None:
        """Draws first_batch.jpg, if no step was taken yet."""
        if self.progress.step == 0 and self.runtime.main:
            save_first_batch(self.run / "first_batch.jpg", batch, targets, self.model.classes)

    def tell(self, event: Event) -> None:
        """Hands an event to all who listen."""
        for listener in self.listeners:
            listener(event)

    def say(self, text: str) -> None:
        """Tells a sentence for the user."""
        self.tell(events.Notice(text))
