"""What is said of a run before it begins: what does not go together, and what it would take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset
from detkit.data.masks import check_masks
from detkit.detector import Detector
from detkit.engine.evaluator import infer
from detkit.engine.events import DryRun
from detkit.engine.optim import from_detector, learning_rates
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError, nearest
from detkit.interfaces import Head
from detkit.metrics import evaluate_results, find_metric
from detkit.printed import counted

if TYPE_CHECKING:
    from detkit.engine.trainer import Trainer


def check_run(
    model: Detector,
    train_set: Dataset,
    val_set: Dataset | None,
    options: TrainOptions,
    augment: Augment | None,
    world: int,
) -> None:
    """Checks that the parts of a run fit; ``world`` is the number of processes.

    Raises:
        DetkitError: They do not; it names the key.
    """
    metric = find_metric(model.protocol)
    if options.best_by is not None and options.best_by not in metric.scores:
        what = f"this model's answers are not measured by {options.best_by}"
        raise DetkitError(what, "train.best_by", nearest(options.best_by, metric.scores))
    if metric.answers == "points" and train_set.annotations.points is None:
        do = "give COCO key points, as many of each object, or set model.head.points to 0"
        raise DetkitError("the data has no points to learn", "data.train", do)
    for name, dataset in (("train", train_set), ("val", val_set)):
        if metric.answers == "pixels" and dataset is not None:
            check_masks(dataset.annotations, f"data.{name}")
        if metric.answers == "labels" and dataset is not None:
            dataset.annotations.check_labelled(f"data.{name}")
    aligned = getattr(getattr(model.head, "alignment", None), "align", "none") != "none"
    if aligned and len({names == frozenset() for names in train_set.annotations.known or [None]}) < 2:
        do = "add {path: FOLDER, format: images, classes: [], known: []} to data.train: images of the other domain"
        raise DetkitError("all training images are of one domain", "model.head.align", do)
    if model.head.takes_identities:
        most = int(train_set.annotations.class_counts().max(initial=0))
        if options.per_identity < 2 or most < 2:
            what = "no identity has two images" if most < 2 else "a batch needs several images of an identity"
            do = "give folders of two images or more" if most < 2 else "set it to 4, say"
            raise DetkitError(f"{what}: pairs are what is learned", "train.per_identity", do)
    if options.batch % (world * max(options.per_identity, 1)):
        what = f"a batch of {options.batch} cannot be shared by {world} processes"
        raise DetkitError(what, "train.batch", "choose a multiple")
    if options.unfreeze and world > 1:
        do = "train in one process, or without unfreeze"
        raise DetkitError("several processes agree on what trains before the first step", "train.unfreeze", do)
    if model.head.needs_fit and world > 1:
        do = "train in one process, or with classifier: softmax"
        raise DetkitError("several processes cannot fit a head's last stages", "model.head.classifier", do)
    if options.cache_features:
        _check_caching(model, options, augment, world)


def _check_caching(model: Detector, options: TrainOptions, augment: Augment | None, world: int) -> None:
    key, views = "train.cache_features", options.cache_views
    stages = list(model.backbone.stages)[: model.backbone.frozen]
    if not any(list(stage.parameters()) for stage in stages):
        do = "set model.backbone.frozen to all or to a number of stages, or leave cache_features out"
        raise DetkitError("no stage of the backbone is frozen, so none can be cached", key, do)
    if type(model.head).views is not Head.views:
        do = "leave cache_features out"
        raise DetkitError("this head makes views of the images, and cached ones cannot be turned", key, do)
    if options.unfreeze:
        do = "leave out unfreeze, or cache_features"
        raise DetkitError("stages that begin to train later cannot be cached", "train.unfreeze", do)
    if world > 1:
        raise DetkitError("several processes share no cached features", key, "train in one process, or without it")
    changes = augment is not None and augment.changes
    joins = [f"augment.{name}" for name in ("mosaic", "mixup") if augment is not None and getattr(augment, name)]
    none = "".join(f" {name}=0" for name in joins)
    if views is None and changes:
        what = "cached images are the same in every epoch, and augmentation changes them"
        do = f"train.cache_views=1 trains on the images as they are, train.cache_views=8{none} on eight views of each"
        raise DetkitError(what, key, do)
    if (views or 1) > 1 and joins:
        raise DetkitError("views that are kept show one image each", joins[0], f"set{none}, or train.cache_views=1")
    if (views or 1) > 1 and not changes:
        what = "without augmentation all views of an image are the same"
        raise DetkitError(what, "train.cache_views", "set it to 1, or switch an augmentation on")


def remarks(trainer: Trainer) -> Iterator[str]:
    """What a run does that was not asked for in so many words."""
    model, options = trainer.model, trainer.options
    if late := [epoch for epoch in options.unfreeze if epoch > options.epochs]:
        yield f"train.unfreeze: the run ends before epoch {late[0]}, so {len(late)} more stages stay frozen"
    if options.lr == "auto" and from_detector(model):
        yield f"train.lr: {learning_rates(model, options)[0]:g}, since training starts from a detector's weights"
    if model.head.takes_identities:
        counts = trainer.train_set.annotations.class_counts()
        if lone := int((counts == 1).sum()):
            yield f"{lone} of {len(counts)} identities have one image: it makes pairs with itself, changed at random"
        if trainer.val_set is not None and trainer.val_set.annotations.class_counts().max() < 2:
            yield "data.val: no identity has two images, so nothing is measured: set it, or a larger data.val_share"
    if trainer.frozen_norms:
        norms = counted(len(trainer.frozen_norms), "BatchNorm")
        yield f"train.freeze_norms: {norms} with the statistics of these weights"
    if trainer.metric.answers != "labels" and trainer.train_set.annotations.labelled:
        yield "every image has one object, which fills it: to name images, train classify"


def try_out(trainer: Trainer) -> DryRun:
    """Makes two steps, of which the second is measured: what a run would take; and looks at a batch as validation does.

    Raises:
        DetkitError: As a run's first steps and its validation.
    """
    options = trainer.options
    if options.cache_features:
        trainer.say("this looks at two steps and an epoch that compute the frozen stages, not at cached ones")
    for window, waited in itertools.islice(trainer.windows(0), 2):
        done = trainer.step(window, 0, waited)
        if trainer.stop.signal:
            raise KeyboardInterrupt
    _try_validation(trainer)
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


def _try_validation(trainer: Trainer) -> None:
    """Predicts and scores one batch, so that what cannot is found before an epoch is spent."""
    model, dataset, loader = trainer.average.model, trainer.val_set, trainer.val_loader
    if dataset is None or loader is None:  # nothing will be scored
        infer(model, trainer.train_set, trainer.loader.epoch(0), 1, trainer.limits, trainer.runtime)
        return
    done = infer(model, dataset, loader.epoch(0), 1, trainer.limits, trainer.runtime, losses=True)
    evaluate_results(done.truth, done.results, model.protocol)
