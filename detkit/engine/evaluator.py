"""One inference loop over a labelled set, for every predictor; its times for data, computing and metrics apart."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from detkit.data.loader import Loader
from detkit.data.names import match
from detkit.engine.runtime import Runtime
from detkit.errors import DetkitError
from detkit.predictor import PredictsSamples
from detkit.structures import Batch, Detections, Limits, Sample, Target
from detkit.tables import GroundTruth, Results


@dataclass(slots=True)
class Timings:
    """Seconds spent waiting for images and computing detections, and the number of images.

    batches: of each batch its images and its seconds for data, for the model and, apart from it, for the head's
    ``predict`` (decoding and NMS); that last is 0 for a predictor whose inside is not known.
    """

    images: int = 0
    data: float = 0.0
    compute: float = 0.0
    batches: list[tuple[int, float, float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Inference:
    """Detections on a data set: tables for the metrics, loss terms (if asked for), times, images left out."""

    truth: GroundTruth
    results: Results
    timings: Timings
    losses: dict[str, float] = field(default_factory=dict)
    failures: list[DetkitError] = field(default_factory=list)


Step = Callable[[Any], tuple[list[Detections], dict[str, Any]]]


def evaluate(
    predictor: PredictsSamples,
    dataset: Any,
    *,
    batch: int = 16,
    limits: Limits | None = None,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[GroundTruth, Results, Timings]:
    """Detections of ``predictor`` on all of ``dataset`` as ``(GroundTruth, Results, Timings)``, for ``detkit.metrics``.

    A torch module (a Detector) is fed by loading processes; other predictors get ``predict_samples``. Classes are
    matched by name. ``on_batch(done, total)`` counts batches.

    Raises:
        DetkitError: no class name of the model is one of the data's, or no image could be read. A warning tells of
            those that could not, where others could.
    """
    limits = limits or Limits.evaluation()
    if isinstance(predictor, nn.Module):
        resize: Any = predictor.resize
        if (source := getattr(predictor, "proposals_for_image", None)) is not None:
            dataset = dataset.with_proposals(source)
        with Loader(dataset, resize=resize, batch=batch, workers=workers) as loader:
            done = infer(predictor, dataset, loader, limits=limits, on_batch=on_batch)
    else:
        failures: list[DetkitError] = []
        batches = _sample_batches(dataset, batch, failures)
        total = -(-len(dataset) // batch)

        def step(samples: list[Sample]) -> tuple[list[Detections], dict[str, Any]]:
            return predictor.predict_samples(samples, limits), {}

        done = _run(step, batches, total, predictor.classes, dataset, on_batch)
        done.failures = failures
    if not done.timings.images:
        raise done.failures[0] if done.failures else DetkitError("the data set holds no images")
    if done.failures:
        first, said = done.failures[0], f"{len(done.failures)} of {len(dataset)} images cannot be read"
        warnings.warn(f"{said}, and count as if nothing was found: {first.where}: {first.what}", stacklevel=1)
    return done.truth, done.results, done.timings


def infer(
    model: nn.Module,
    dataset: Any,
    loader: Loader,
    *,
    limits: Limits,
    runtime: Runtime | None = None,
    losses: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> Inference:
    """Detections, and losses if asked for, of a detector on what ``loader`` hands out of ``dataset``, in one pass.

    The model's mode is put back afterwards. With several processes each brings its share; every one gets the whole.
    """
    runtime = runtime or Runtime(str(next(model.parameters()).device), getattr(model, "precision", "fp32"))

    def step(item: tuple[Batch, list[Target]]) -> tuple[list[Detections], dict[str, Any]]:
        batch = item[0].to(runtime.device, non_blocking=True)
        with runtime.autocast():
            if not losses:
                return model(batch, limits=limits), {}
            targets = [target.to(runtime.device) for target in item[1]]
            terms, found = model(batch, targets, limits=limits, detections=True)
            return found, terms

    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _clocked(model) as clock:
            classes: tuple[str, ...] = model.classes  # type: ignore[assignment]
            done = _run(step, loader.epoch(0), len(loader), classes, dataset, on_batch, runtime, clock)
    finally:
        model.train(training)
    done.failures = list(loader.failures.values())
    return done


@contextmanager
def _clocked(model: nn.Module) -> Iterator[list[float]]:
    """One number, the seconds that the head's ``predict`` has taken so far."""
    spent, head = [0.0], getattr(model, "head", None)
    predict = getattr(head, "predict", None)
    if head is None or predict is None:
        yield spent
        return

    def timed(*arguments: Any, **named: Any) -> Any:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else the wait for the network would be counted here
        began = time.perf_counter()
        try:
            return predict(*arguments, **named)
        finally:
            spent[0] += time.perf_counter() - began

    head.predict = timed
    try:
        yield spent
    finally:
        del head.predict


def _run(
    step: Step,
    batches: Iterable[Any],
    total: int,
    classes: tuple[str, ...],
    dataset: Any,
    on_batch: Callable[[int, int], None] | None = None,
    runtime: Runtime | None = None,
    clock: Sequence[float] = (0.0,),
) -> Inference:
    """The loop itself: waits for a batch, computes, keeps flat arrays. ``clock``: see ``_clocked``."""
    places = {
        key: i for i, key in enumerate(zip(dataset.annotations.image_ids, dataset.annotations.files, strict=True))
    }
    timings, found, images = Timings(), list[Detections](), list[int]()
    sums: dict[str, list[float]] = {}
    iterator = iter(batches)
    for number in range(1, total + 1):
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):  # validation must leave no trace in the training's random numbers
            item = next(iterator, None)
        loaded = time.perf_counter()
        timings.data += loaded - started
        if item is None:  # the last batches held no image that could be read
            break
        before = clock[0]
        detections, losses = step(item)
        found += [d.numpy() for d in detections]
        compute, post = time.perf_counter() - loaded, clock[0] - before
        timings.compute += compute
        timings.batches.append((len(detections), loaded - started, compute - post, post))
        images += [places[key] for key in _keys(item)]
        for name, loss in losses.items():
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(loss.sum)
            pair[1] += float(loss.count)
        if on_batch is not None:
            on_batch(number, total)
    timings.images = len(images)
    results = detections_to_results(found, images)
    if runtime is not None and runtime.world > 1:
        results, sums = _joined(runtime.gather((results, sums)))
    truth = dataset.annotations.ground_truth()
    terms = {name: total_sum / (count or 1.0) for name, (total_sum, count) in sums.items()}
    return Inference(truth, _with_labels_of(truth.classes, classes, results), timings, terms)


def detections_to_results(detections: Sequence[Detections], images: Sequence[int]) -> Results:
    """Detections (numpy, original pixels) of the images with these indices as one float64 table in xywh."""
    counts = np.array([len(d) for d in detections], dtype=np.int64)
    boxes = np.concatenate([np.zeros((0, 4)), *(d.boxes for d in detections)]).astype(np.float64)
    points = [d.extra["points"] for d in detections if "points" in d.extra]
    return Results(
        image=np.repeat(np.asarray(images, dtype=np.int64), counts),
        label=np.concatenate([np.zeros(0, np.int64), *(d.labels for d in detections)]),
        xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        score=np.concatenate([np.zeros(0), *(d.scores for d in detections)]).astype(np.float64),
        points=np.concatenate(points).astype(np.float64) if points else None,
    )


def _keys(item: Any) -> Iterator[tuple[int | str, str]]:
    if isinstance(item, list):
        return ((sample.image_id, sample.path) for sample in item)
    return zip(item[0].image_ids, item[0].paths, strict=True)


def _with_labels_of(wanted: tuple[str, ...], classes: tuple[str, ...], results: Results) -> Results:
    """Labels by the data's class names; detections of classes that the data does not know are left out."""
    if tuple(wanted) == tuple(classes):
        return results
    table = np.array(match(classes, wanted), dtype=np.int64)
    if not (table >= 0).any():
        what = f"the model knows {', '.join(classes[:5])}..., the data {', '.join(wanted[:5])}...: no class in common"
        raise DetkitError(what, "classes", "rename the data's classes, or choose another model")
    return replace(results, label=table[results.label])[table[results.label] >= 0]


def _joined(parts: list[tuple[Results, dict[str, list[float]]]]) -> tuple[Results, dict[str, list[float]]]:
    """The tables of all processes as one, in order of the images, and the sums of their losses."""
    names = ("image", "label", "xywh", "score")
    columns = {name: np.concatenate([getattr(r, name) for r, _ in parts]) for name in names}
    points = [r.points for r, _ in parts if r.points is not None]
    whole = Results(**columns, points=np.concatenate(points) if points else None)
    terms = dict.fromkeys(name for _, sums in parts for name in sums)
    sums = {name: [sum(s.get(name, [0.0, 0.0])[i] for _, s in parts) for i in (0, 1)] for name in terms}
    return whole[np.argsort(whole.image, kind="stable")], sums


def _sample_batches(dataset: Any, batch: int, failures: list[DetkitError]) -> Iterator[list[Sample]]:
    for first in range(0, len(dataset), batch):
        samples = []
        for i in range(first, min(first + batch, len(dataset))):
            try:
                samples.append(dataset.load(i))
            except DetkitError as error:
                failures.append(error)
        if samples:
            yield samples
