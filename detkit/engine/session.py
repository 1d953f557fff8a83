"""What a training run works with, and its dealings with the outside: telling, saving, stopping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from detkit.data.loader import Loader
from detkit.data.sampler import Sampler
from detkit.engine.checkpoint import Progress, State
from detkit.engine.ema import Average
from detkit.engine.errors import StopRequest
from detkit.engine.events import BatchValidated, Event, Listener, Notice, Row, Saved, TrainStarted
from detkit.engine.feature_cache import CachedLoader, FrozenStages, refuse_uncacheable
from detkit.engine.norms import begin_averages
from detkit.engine.optimizer import make_optimizer
from detkit.engine.options import TrainOptions
from detkit.engine.run_folder import RunFolder, data_hash, machine_record, save_first_batch
from detkit.engine.runtime import Runtime
from detkit.engine.step import Stepper
from detkit.errors import DetkitError
from detkit.io.files import write_text
from detkit.metrics import find_metric
from detkit.speedups.depthwise import speed_up_depthwise
from detkit.structures import Limits

_KEPT = ("AP", "AR", "top", "NME", "PCK")  # scores of a row that go into a model's file


class Session:
    """Model, averaged weights, optimizer, loaders and state of a run; arguments as for ``detkit.engine.loop.train``."""

    def __init__(
        self,
        detector: Any,
        train_set: Any,
        val_set: Any | None,
        options: TrainOptions,
        run: Path,
        augment: Any | None,
        limits: Limits | None,
        on_event: Listener,
        stop: StopRequest,
    ) -> None:
        self.options, self.run, self.stop, self.listener = options, Path(run), stop, on_event
        self.limits = limits or Limits.evaluation()
        if (source := getattr(detector, "proposals_for_image", None)) is not None:
            train_set, val_set = train_set.with_proposals(source), val_set and val_set.with_proposals(source)
        self.train_set = train_set.subset(range(min(options.limit, len(train_set)))) if options.limit else train_set
        self.val_set = val_set
        self.protocol = getattr(detector, "protocol", "coco")
        self.best_by = self._best_by()
        if augment is not None:
            augment.flip_pairs = getattr(detector, "flip_pairs", ())
        self.runtime = Runtime(options.device, options.precision)
        self.frozen = getattr(getattr(detector, "backbone", None), "frozen", 0)
        if options.unfreeze and self.runtime.world > 1:
            do = "train in one process, or without unfreeze"
            raise DetkitError("several processes agree on what trains before the first step", "train.unfreeze", do)
        torch.manual_seed(options.seed + self.runtime.rank)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model: Any = detector.to(self.runtime.device).to(memory_format=layout)
        speed_up_depthwise(self.model)
        self.average = Average(self.model, options.ema)
        self.optimizer = make_optimizer(self.model, options)
        self.stepper = Stepper(self.runtime, self.model, self.optimizer, self.average, options.clip)
        self.state = State(
            self.model, self.average, self.optimizer, self.runtime, options, data_hash(self.train_set), Progress()
        )
        self.started = time.perf_counter()
        self.record: dict[str, Any] = {}
        self.folder: RunFolder | None = None
        if options.cache_features:
            refuse_uncacheable(self.model, options, augment, self.runtime.world)
        self.augment = None if options.cache_views == 1 else augment
        self.loader: Loader | CachedLoader = self._loader(self.train_set, self.augment, shuffle=True)
        self.val_loader: Loader | CachedLoader | None = None
        if val_set is not None and len(val_set):
            self.val_loader = self._loader(val_set, None, shuffle=False)
        self.steps = -(-len(self.loader) // options.accumulate)  # of an epoch
        if late := [epoch for epoch in options.unfreeze if epoch > options.epochs]:
            self.say(f"train.unfreeze: the run ends before epoch {late[0]}, so {len(late)} more stages stay frozen")
        if self.protocol != "classify" and getattr(self.train_set.annotations, "labelled", False):
            self.say("every image has one object, which fills it: to name images, train classify")

    def _best_by(self) -> str:
        """The score that chooses the best weights. Raises DetkitError where model, data and options do not fit."""
        possible = find_metric(self.protocol).scores
        chosen = self.options.best_by or possible[0]
        if chosen not in possible:
            do = f"choose {', '.join(possible)}"
            raise DetkitError(f"this model's answers are not measured by {chosen}", "train.best_by", do)
        if self.protocol == "points" and self.train_set.annotations.points is None:
            do = "give COCO key points, as many of each object, or set model.head.points to 0"
            raise DetkitError("the data has no points to learn", "data.train", do)
        for name, dataset in (("train", self.train_set), ("val", self.val_set)):
            if self.protocol == "classify" and dataset is not None and not dataset.annotations.labelled:
                do = "give class folders; detkit data crops DATA --out FOLDER makes them of a detection set"
                raise DetkitError("a classifier needs images of one label each", f"data.{name}", do)
        return chosen

    def _loader(self, dataset: Any, augment: Any | None, shuffle: bool) -> Loader:
        batch, rest = divmod(self.options.batch, self.runtime.world)
        if rest:
            what = f"a batch of {self.options.batch} cannot be shared by {self.runtime.world} processes"
            raise DetkitError(what, "train.batch", "choose a multiple")
        return Loader(
            dataset,
            resize=self.model.resize,
            augment=augment,
            batch=batch,
            seed=self.options.seed,
            workers=self.options.workers,
            shuffle=shuffle,
            rank=self.runtime.rank,
            world=self.runtime.world,
            balance=self.options.balance,
            pin=self.runtime.device.type == "cuda",
            on_bad_image=lambda error: self.say(f"left out: {error.where}: {error.what}"),
        )

    def begin(self, config: str, resume: bool) -> None:
        """Restores the state if asked, opens the run folder and says what is about to happen."""
        path, progress = self.run / "state.pt", self.state.progress
        if resume:
            self.state.restore(path)
            progress = self.state.progress
        elif path.exists():
            what = "this folder holds another run"
            raise DetkitError(what, str(self.run), "choose another folder, or go on with that run (--resume)")
        begin_averages(self.model)
        self.record = {"seed": self.options.seed, "data_hash": self.state.data_hash, **machine_record()}
        if self.runtime.main:
            if config and not resume:
                write_text(self.run / "config.yaml", config, overwrite=True)
            self.folder = RunFolder(self.run, self.record, progress.rows, self.options.tensorboard)
        self.tell(
            TrainStarted(
                run=self.run,
                epochs=self.options.epochs,
                steps=self.steps,
                train_images=len(self.train_set),
                val_images=0 if self.val_loader is None else len(self.val_set),  # type: ignore[arg-type]
                parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
                device=str(self.runtime.device),
                precision=self.runtime.precision,
                first_epoch=progress.epoch,
            )
        )

    def cache_frozen(self) -> None:
        """Lets the frozen stages look at every image, and the loaders hand out what these have made of them."""
        self.count_time()
        begun, views = self.state.progress.caching, self.options.cache_views or 1
        stages = FrozenStages(self.model, self.runtime, self.say)
        images = views * len(self.train_set) + (0 if self.val_loader is None else len(self.val_set))  # type: ignore[arg-type]
        stages.announce(images)
        self.loader = self._cached(stages, self.train_set, self.augment, views, self.loader.sampler)
        if self.val_loader is not None:
            self.val_loader = self._cached(stages, self.val_set, None, 1, self.val_loader.sampler)
        self.count_time(caching=True)
        seconds = self.state.progress.caching - begun
        rest = f", {images - stages.computed} were in the cache" if stages.computed < images else ""
        self.say(f"the frozen stages looked at {stages.computed} images in {seconds:.0f} s{rest}")

    def _cached(
        self, stages: FrozenStages, dataset: Any, augment: Any | None, views: int, sampler: Sampler
    ) -> CachedLoader:
        cached, loader = CachedLoader(stages, dataset, sampler, views), self._loader(dataset, augment, shuffle=False)
        try:
            for view in range(views):
                batches = loader.epoch(view, mosaic=False)
                for step in range(len(loader)):
                    with torch.random.fork_rng(devices=[]):  # torch's loader draws from the model's random numbers
                        item = next(batches, None)
                    if item is None:  # the last images cannot be read
                        break
                    if sampler.shuffle and not (view or step or self.state.progress.step):
                        save_first_batch(self.run / "first_batch.jpg", *item, self.model.classes)
                    cached.add(view, *item)
                    self.tell(BatchValidated(step, len(loader)))
                    self.count_time(caching=True)
                    self.stop_if_asked()
        finally:
            loader.close()
        cached.failures = loader.failures
        return cached

    def thaw(self, epoch: int) -> None:
        """Lets the frozen stages of the backbone train whose epoch (from 0) has come, as ``unfreeze`` says."""
        if self.options.unfreeze:
            self.model.backbone.freeze(self.frozen - sum(first <= epoch + 1 for first in self.options.unfreeze))

    def save_weights(self, name: str, row: Row) -> None:
        """The averaged weights as a model file of the run folder, with their scores and threshold."""
        if self.runtime.main:
            average: Any = self.average.model
            average.scores = {key: value for key, value in row.items() if key.startswith(_KEPT)}
            average.record = {**self.record, "epoch": int(row["epoch"]), "minutes": row["minutes"]}
            if self.state.progress.threshold is not None:
                average.threshold = self.state.progress.threshold
            average.save(self.run / name)
            self.tell(Saved(self.run / name))

    def save_state(self) -> None:
        """state.pt, from which the run can go on."""
        if self.runtime.main:
            self.state.save(self.run / "state.pt")
            self.tell(Saved(self.run / "state.pt"))
        self.runtime.wait()

    def stop_if_asked(self) -> None:
        """Between two steps: saves the state and raises Interrupted if a signal came (to any of the processes)."""
        if self.runtime.any(self.stop.signal):
            self.count_time()
            self.save_state()
            raise self.stop.interrupted(self.run)

    def count_time(self, caching: bool = False) -> None:
        """Adds the time since the last call to the run's; caching: and to that of ``cache_frozen``."""
        now, progress = time.perf_counter(), self.state.progress
        progress.seconds += now - self.started
        progress.caching += caching * (now - self.started)
        self.started = now

    def tell(self, event: Event) -> None:
        """Hands an event to the run folder and to the listener."""
        if self.runtime.main:
            if self.folder is not None:
                self.folder(event)
            self.listener(event)

    def say(self, text: str) -> None:
        """Tells a sentence for the user."""
        self.tell(Notice(text))

    def close(self) -> None:
        """Ends the loading processes."""
        for loader in (self.loader, self.val_loader):
            if loader is not None:
                loader.close()
