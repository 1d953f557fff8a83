"""One inference loop over a labelled set, for every predictor; its times for data, model and post-processing apart."""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, TypeGuard, cast

import numpy as np

from detkit.data.dataset import Dataset
from detkit.data.masks import label_maps, pixel_counts
from detkit.data.names import match_some
from detkit.errors import DetkitError
from detkit.metrics import find_metric
from detkit.predictor import PredictsSamples, as_predictor
from detkit.structures import Batch, Detections, Limits, Sample, Target
from detkit.tables import GroundTruth, Results, results_of

if TYPE_CHECKING:
    from torch import Tensor

    from detkit.detector import Detector
    from detkit.engine.runtime import Runtime
    from detkit.interfaces import Losses, Raw

Item = tuple[Batch, list[Target]] | list[Sample]  # a batch, for a Detector or for other predictors
LossSums = dict[str, list[float]]  # a term's name: its sum and its count
Count = Callable[[int, int], None]  # gets how many batches are done, of how many


@dataclass(slots=True)
class Timings:
    """Where the time went.

    Attributes:
        images: That were looked at.
        data: Seconds spent waiting for images.
        compute: Seconds spent computing detections.
        batches: Per batch its images and its seconds for data, for the model and, apart from it, for the head's
            ``predict`` (decoding and NMS); that last is 0 for a predictor whose inside is not known.
    """

    images: int = 0
    data: float = 0.0
    compute: float = 0.0
    batches: list[tuple[int, float, float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Inference:
    """Detections on a data set.

    Attributes:
        truth: The labels.
        results: The detections, in the labels' classes.
        timings: Where the time went.
        losses: Terms by name, if they were asked for.
    """

    truth: GroundTruth
    results: Results
    timings: Timings
    losses: dict[str, float] = field(default_factory=dict)


def detect_dataset(
    predictor: PredictsSamples,
    dataset: Dataset,
    *,
    batch: int = 16,
    limits: Limits | None = None,
    workers: int = 0,
    on_batch: Count = lambda done, total: None,
) -> tuple[GroundTruth, Results, Timings]:
    """What a predictor finds on a whole data set, for ``detkit.metrics``. Classes are matched by name.

    Args:
        predictor: A ``Detector`` is fed by loading processes; others get ``predict_samples``.
        dataset: The images and labels.
        batch: Images at a time.
        limits: Those of evaluation with the model's NMS by default.
        workers: Loading processes, for a ``Detector``.
        on_batch: Gets how many batches are done, and of how many.

    Raises:
        DetkitError: No class name of the model is one of the data's, or no image could be read. A warning tells of
            those that could not, where others could.
    """
    limits = limits or Limits.evaluation(as_predictor(predictor).iou)
    failures: list[DetkitError] = []
    if not _is_detector(predictor):
        samples = (sample for _, sample in dataset.readable(range(len(dataset)), failures))
        total = -(-len(dataset) // batch)
        batches = (list(itertools.islice(samples, batch)) for _ in range(total))
        done = infer(predictor, dataset, filter(None, batches), total, limits, on_batch=on_batch)
    else:
        from detkit.data.loader import Loader

        dataset = predictor.reads(dataset)
        with Loader(
            dataset, resize=predictor.resize, batch=batch, workers=workers, on_bad_image=failures.append
        ) as loader:
            done = infer(predictor, dataset, loader.epoch(0), len(loader), limits, on_batch=on_batch)
    if not done.timings.images:
        raise failures[0] if failures else DetkitError("the data set holds no images")
    if failures:
        first, said = failures[0], f"{len(failures)} of {len(dataset)} images cannot be read"
        counted = "are left out" if done.results.pixels is not None else "count as if nothing was found"
        warnings.warn(f"{said}, and {counted}: {first.where}: {first.what}", stacklevel=1)
    return done.truth, done.results, done.timings


def infer(
    predictor: PredictsSamples,
    dataset: Dataset,
    batches: Iterable[Item],
    total: int,
    limits: Limits,
    runtime: Runtime | None = None,
    *,
    losses: bool = False,
    on_batch: Count = lambda done, total: None,
) -> Inference:
    """Detections on ``batches`` of a data set, in one pass; of a detector losses too, if asked for.

    A detector's mode is put back afterwards. With several processes each brings its share; every one gets the whole.
    """
    names = zip(dataset.annotations.image_ids, dataset.annotations.files, strict=True)
    index = {key: i for i, key in enumerate(names)}
    timings, found, sums = Timings(), list[tuple[int, Detections]](), LossSums()
    judged, pixels = find_metric(as_predictor(predictor).protocol).answers == "pixels", dict[int, np.ndarray]()
    iterator = iter(batches)
    with _clocked(predictor) as clock:
        for number in range(1, total + 1):
            started, before = time.perf_counter(), clock[0]
            item = next(iterator, None)
            loaded = time.perf_counter()
            timings.data += loaded - started
            if item is None:  # the last batches held no image that could be read
                break
            keys, detections, terms = _answers(predictor, item, limits, losses)
            for key, answer in zip(keys, detections, strict=True):
                one = answer.numpy()
                if judged:
                    maps = label_maps(dataset.annotations, index[key], one)
                    pixels[index[key]] = pixel_counts(*maps, len(dataset.classes))
                    one = replace(one, extra={})
                found.append((index[key], one))
            compute, post = time.perf_counter() - loaded, clock[0] - before
            timings.compute += compute
            timings.batches.append((len(detections), loaded - started, compute - post, post))
            add_losses(sums, {name: (float(loss.sum), float(loss.count)) for name, loss in terms.items()})
            on_batch(number, total)
    timings.images = len(found)
    if runtime is not None and runtime.world > 1:
        parts, sums = runtime.gather((found, sums, pixels)), LossSums()
        found = sorted((pair for pairs, _, _ in parts for pair in pairs), key=itemgetter(0))
        for _, part, counts in parts:
            add_losses(sums, part)
            pixels |= counts
    results = results_of([d for _, d in found], [i for i, _ in found])
    if judged:
        nothing = np.zeros((len(dataset.classes) + 1,) * 2, np.int64)

        def again(i: int) -> tuple[np.ndarray, np.ndarray]:
            return label_maps(dataset.annotations, i, predictor.predict_samples([dataset.load(i)], limits)[0].numpy())

        results = replace(results, pixels=np.stack([pixels.get(i, nothing) for i in range(len(dataset))]), maps=again)
    truth = dataset.annotations.ground_truth()
    return Inference(truth, _with_labels_of(truth.classes, predictor.classes, results), timings, mean_losses(sums))


def _is_detector(predictor: object) -> TypeGuard[Detector]:
    """True for a ``Detector``; torch is not imported for others."""
    module = sys.modules.get("detkit.detector")
    return module is not None and isinstance(predictor, module.Detector)


def _answers(
    predictor: PredictsSamples, item: Item, limits: Limits, losses: bool
) -> tuple[list[tuple[int | str, str]], list[Detections], Losses]:
    """Id and path, and detections, of each image of a batch, and the batch's losses if asked for."""
    if isinstance(item, list):
        return [(s.image_id, s.path) for s in item], predictor.predict_samples(item, limits), {}
    model = cast("Detector", predictor)
    batch, targets = item[0].to(model.device, non_blocking=True), item[1]
    keys = list(zip(batch.image_ids, batch.paths, strict=True))
    with model.autocast():  # never the run's: a model measures the same wherever, and however, it trained
        if not losses:
            return keys, model(batch, limits=limits), {}
        terms, found = model(batch, [target.to(model.device) for target in targets], limits=limits, detections=True)
        return keys, found, terms


@contextmanager
def _clocked(predictor: PredictsSamples) -> Iterator[list[float]]:
    """A detector in evaluation mode; one number, the seconds that its head's ``predict`` has taken so far."""
    spent = [0.0]
    if not _is_detector(predictor):
        yield spent
        return
    import torch

    from detkit.devices import keep_freed_memory

    training, head, predict = predictor.training, predictor.head, predictor.head.predict

    def timed(raw: Raw, sizes: Tensor, limits: Limits) -> list[Detections]:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else the wait for the network would be counted here
        began = time.perf_counter()
        found = predict(raw, sizes, limits)
        spent[0] += time.perf_counter() - began
        return found

    if predictor.device.type == "cpu":
        keep_freed_memory()
    predictor.eval()
    head.predict = timed  # type: ignore[method-assign]
    try:
        with torch.inference_mode():
            yield spent
    finally:
        del head.predict
        predictor.train(training)


def add_losses(sums: LossSums, totals: Mapping[str, Sequence[float]]) -> None:
    """Adds (sum, count) of each term to ``sums``, in place."""
    for name, (total, count) in totals.items():
        pair = sums.setdefault(name, [0.0, 0.0])
        pair[0] += total
        pair[1] += count


def mean_losses(sums: LossSums) -> dict[str, float]:
    """Each term's sum over its count."""
    return {name: total / (count or 1.0) for name, (total, count) in sums.items()}


def _with_labels_of(wanted: tuple[str, ...], classes: tuple[str, ...], results: Results) -> Results:
    """Labels by the data's class names; detections of classes that the data does not know are left out."""
    if tuple(wanted) == tuple(classes) or results.embedding is not None:  # vectors have no class
        return results
    do = "rename the data's classes, or choose another model"
    table = np.array(match_some("the model knows", classes, "the data", wanted, "classes", do), dtype=np.int64)
    return replace(results, label=table[results.label])[table[results.label] >= 0]
