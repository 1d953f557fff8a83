"""``load`` and ``evaluate``: what needs everything. Heavy parts are imported when called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

import numpy as np

from detkit.errors import DetkitError
from detkit.printed import counted
from detkit.registry import allow

if TYPE_CHECKING:
    from torch import nn

    from detkit.data.annotations import Annotations
    from detkit.detector import Detector
    from detkit.engine.events import Event
    from detkit.predictor import Predictor, PredictsSamples
    from detkit.structures import Detections, Target
    from detkit.tables import Evaluation, GroundTruth, Results

    Network = TypeVar("Network", bound=nn.Module)

_divided: dict[int, int] = {}  # CPU threads of each stream: of all; kept, lest the next load divide what this one did


class LoadOptions(TypedDict, total=False):
    """The keyword arguments of ``load`` that any model takes."""

    device: str | int | None
    threads: int | None
    size: int | None
    precision: str
    engine: str
    streams: int
    layout: str | None
    names: str | Path | None
    plugins: Sequence[str]


class DataOptions(TypedDict, total=False):
    """The keyword arguments that say how labelled data is read."""

    split: str | None
    images: str | Path | None
    format: str | None
    keep_degenerate: bool


@overload
def load(path_or_name: str | Path | None = ..., **options: Unpack[LoadOptions]) -> Detector: ...
@overload
def load(
    path_or_name: str | Path | Sequence[str | Path] | None = ...,
    *,
    tta: Sequence[str] = ...,
    **options: Unpack[LoadOptions],
) -> Predictor: ...
def load(
    path_or_name: str | Path | Sequence[str | Path] | None = None,
    *,
    device: str | int | None = None,
    threads: int | None = None,
    size: int | None = None,
    precision: str = "fp32",
    engine: str = "auto",
    streams: int = 1,
    layout: str | None = None,
    names: str | Path | None = None,
    tta: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Predictor:
    """A trained detector, ready to predict.

    Args:
        path_or_name: A .safetensors file, a run folder (its best weights) or a shipped name; None: the shipped default;
            an .onnx file, for which torch is not imported;
            "torchvision/NAME": one of torchvision's COCO detectors, which predicts but is no ``Detector``; several of
            these: their ensemble.
        device: "cpu", "cuda", "cuda:1" or 1, "mps"; None: the best there is.
        threads: CPU threads; None: torch's choice.
        size: Input size in pixels instead of the model's own.
        precision: Of the arithmetic: "fp32"; "bf16", faster on CPUs and GPUs made for it; or "auto", which takes bf16
            there and fp32 elsewhere. Nothing but your word chooses bf16: it moves scores in the second or third digit,
            and a model should find and measure the same on every machine.
        engine: What computes: "torch", "onnxruntime" or "openvino"; "auto": torch, or for an .onnx file one that is
            installed. For the latter two a model of detkit is exported, once, into the cache.
        streams: Batches of a video or folder (``stream``) to look at side by side on a CPU, each by its share of the
            threads: with two cores 2 is a fifth faster in onnxruntime, twice in torch. OpenVINO gains nothing.
        layout: How another program's .onnx file is read (docs/export.md); None: told by the shapes of its outputs.
        names: File of its class names, one a line; None: those that it holds, or COCO's of 80.
        tta: Views to add at test time: "flip", "scales" and, for a classifier, "crops".
        plugins: Modules whose parts a model file may name as ``module:Name``; trusted for the life of the process.

    Returns:
        The detector; with several models or ``tta`` a predictor that fuses their answers.

    Raises:
        DetkitError: No such file or name, a damaged or too new file, a device that this machine lacks, models of an
            ensemble that know different classes.
        UntrustedPart: A file names a part whose module is not among ``plugins``.
    """
    allow(plugins)
    files = [path_or_name] if path_or_name is None or isinstance(path_or_name, (str, Path)) else list(path_or_name)
    models = [_load_one(file, device, threads, size, precision, engine, streams, layout, names) for file in files]
    if len(models) == 1 and not tta:
        return models[0]
    from detkit.prediction.ensemble import Ensemble

    return Ensemble(models, tta)


def _load_one(
    path_or_name: str | Path | None,
    device: str | int | None,
    threads: int | None,
    size: int | None,
    precision: str,
    engine: str,
    streams: int,
    layout: str | None,
    names: str | Path | None,
) -> Predictor:
    if size is not None and size < 32:
        raise DetkitError(f"an input of {size} pixels is too small", "--size", "give 320, say")
    if precision not in ("fp32", "bf16", "auto"):
        raise DetkitError(f"no precision {precision!r} to detect with", "--precision", "choose fp32, bf16 or auto")
    name = "default" if path_or_name is None else str(path_or_name)
    from detkit.exporting.cached import exported_model

    engines_own = {"threads": threads, "streams": streams, "layout": layout, "names": names}
    if (found := exported_model(name, engine, device, size=size, precision=precision, **engines_own)) is not None:
        return found
    if threads is not None:
        set_threads(threads)
    from detkit.config.build import load_detector
    from detkit.data.resize import Resize
    from detkit.devices import pick_precision
    from detkit.ops.compiled import thread_count
    from detkit.speedups.fuse import fuse_batchnorms

    if name.startswith("torchvision/") and not Path(name).exists():
        from detkit.prediction.torchvision import load_torchvision

        if precision == "bf16":
            raise DetkitError("torchvision's detectors compute in fp32 here", "--precision", "leave it out")
        outside = load_torchvision(name)
        outside.model = _placed(outside.model, device)
        return outside if size is None else outside.rescaled(size / outside.size)
    detector = load_detector(name)
    if size is not None:
        detector.resize = Resize.from_dict({**detector.resize.to_dict(), "size": [size, size]})
    detector = _placed(detector, device)
    fuse_batchnorms(detector)
    detector.precision = pick_precision(precision, detector.device)
    if streams > 1 and detector.device.type == "cpu":
        whole = _divided.get(thread_count(), thread_count())
        set_threads(each := max(1, whole // streams))
        _divided[each], detector.streams = whole, streams
    return detector


def _placed(model: Network, device: str | int | None) -> Network:
    """The module on this device, the best where it is None, in the order of pixels that is fastest there."""
    import torch

    from detkit.devices import pick_device

    return model.to(pick_device("auto" if device is None else device)).to(memory_format=torch.channels_last).eval()


def set_threads(threads: int) -> None:
    """Limits the CPU threads that torch and OpenCV use, for the life of the process.

    Raises:
        DetkitError: Fewer than one.
    """
    if threads < 1:
        raise DetkitError(f"threads must be at least 1, got {threads}", "--threads", "give the number of cores to use")
    import cv2
    import torch

    _divided.clear()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def evaluate(
    predictions_or_model: str | Path | PredictsSamples | Sequence[Detections | Mapping[str, Any]],
    data: str | Path | Sequence[Target | Mapping[str, Any]],
    *,
    split: str | None = None,
    images: str | Path | None = None,
    format: str | None = None,
    keep_degenerate: bool = False,
    strict: bool = False,
    protocol: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    plugins: Sequence[str] = (),
) -> Evaluation:
    """AP of a model, or of a file of detections, on labelled data; of a classifier top-1 and top-5.

    Args:
        predictions_or_model: A model (file, run folder, name, or anything that predicts); or detections: .json of COCO
            results, .jsonl or .csv of ``detect``, a folder of YOLO's or PASCAL's text files; or a list of what was
            found in each image, see ``detkit.tables.results_of``.
        data: COCO json, VOC folder, YOLO data.yaml or class folders; with a list of what was found, a list of what is
            in each image, see ``detkit.tables.truth_of``. Labels count from 0, like the ``classes`` of ``Detections``.
        split: One part of the data; None: all of it.
        images: Folder of the images, if not where the format puts them.
        format: Of the data, by name or ``module:Name``; None: recognised.
        keep_degenerate: Of COCO's json keep boxes without area or outside of their image, which pycocotools counts.
        strict: Labels or images that are dropped while reading are an error.
        protocol: Of ``detkit.metrics.METRICS``; None: what the model's config names, else what its head answers; for a
            file "coco", on class folders "classify".
        on_event: Called with what was read (``detkit.engine.events.DataRead``) and what to know of it (``Notice``);
            None: what was dropped or repaired, and the notices, are warnings.
        plugins: Modules whose parts a model file may name as ``module:Name``.

    Returns:
        Numbers by name, of all classes (``metrics``) and of each (``per_class``).

    Raises:
        DetkitError: Data or detections that cannot be read, or that do not fit each other.
        ValueError: Arrays that do not have a row for each box.
    """
    from detkit import metrics
    from detkit.data.summary import summarise, unlike_pycocotools
    from detkit.engine.events import DataRead, Notice
    from detkit.predictor import as_predictor

    if isinstance(data, Sequence) and not isinstance(data, str):
        truth, results = _tables(predictions_or_model, data)
        return metrics.evaluate_results(truth, results, protocol=protocol or "coco")
    if isinstance(predictions_or_model, Sequence) and not isinstance(predictions_or_model, str):
        do = "give data as a list too, or the detections as a file"
        raise DetkitError("a list of what was found is compared with a list of what is there", "data", do)
    tell = on_event or _warn

    def read(annotations: Annotations) -> None:
        summary = summarise({split or "data": annotations})
        tell(DataRead(summary, table=False))
        if strict:
            summary.refuse_drops()

    how: DataOptions = {"split": split, "images": images, "format": format, "keep_degenerate": keep_degenerate}
    notes: list[str] = []
    if isinstance(predictions_or_model, (str, Path)) and _holds_detections(predictions_or_model):
        annotations, results, notes = read_predictions(predictions_or_model, data, on_read=read, **how)
        usual = "classify" if annotations.image_labels else "coco" if results.pixels is None else "pixels"
    else:
        given = predictions_or_model
        predictor = load(given, plugins=plugins) if isinstance(given, (str, Path)) else as_predictor(given)
        annotations, results, _ = evaluate_model(predictor, data, on_read=read, **how)
        usual = predictor.protocol
    if (protocol or usual) == "coco":
        notes += unlike_pycocotools(annotations, results)
    for note in notes:
        tell(Notice(note))
    return metrics.evaluate_results(annotations.ground_truth(), results, protocol=protocol or usual)


def _tables(found: object, targets: Sequence[Target | Mapping[str, Any]]) -> tuple[GroundTruth, Results]:
    """Lists of detections and of targets as tables; classes by the detections' names, else by number."""
    from detkit.tables import results_of, truth_of

    if not isinstance(found, Sequence) or isinstance(found, str):
        do = "give a list, such as model.predict(images) returns"
        raise DetkitError("what is there in each image is compared with a list of what was found", "data", do)
    if len(found) != len(targets):
        do = "give both for each image, empty ones too"
        what = f"detections of {counted(len(found), 'image')}, and {len(targets)} to compare them with"
        raise DetkitError(what, do=do)
    results, truth = results_of(found), truth_of(targets, ())
    names = next((one.classes for one in found if getattr(one, "classes", ())), ())
    labels = np.concatenate([truth.label, results.label])
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    if low < 0 or (names and high >= len(names)):
        known = f" and {len(names)} classes are known" if names else ""
        raise DetkitError(f"labels count from 0{known}, got {low if low < 0 else high}", "labels", "correct them")
    return replace(truth, classes=names or tuple(map(str, range(high + 1)))), results


def _warn(event: Event) -> None:
    """An event as a warning where there is something to know."""
    from detkit.engine.events import DataRead, Notice

    if isinstance(event, Notice) or (isinstance(event, DataRead) and event.summary.findings):
        warnings.warn(str(event), stacklevel=3)


def read_predictions(
    path: str | Path,
    data: str | Path,
    *,
    on_read: Callable[[Annotations], None] = lambda annotations: None,
    **how: Unpack[DataOptions],
) -> tuple[Annotations, Results, list[str]]:
    """Detections from a file, the labels they are of, and what a person should know of them.

    Args:
        path: See ``detkit.io.detections.read_detections``; of a folder of masks ``detkit.data.masks.read_answers``.
        data: A data set of any format (docs/data.md).
        on_read: Called with the labels, before anything else is done.
        how: See ``detkit.data.dataset.read``.

    Raises:
        DetkitError: Data or detections that cannot be read, or that do not fit each other.
    """
    from detkit.data.dataset import read
    from detkit.data.masks import read_answers
    from detkit.io.detections import read_detections
    from detkit.metrics.confusion import swapped_classes

    annotations = read(data, **how)
    on_read(annotations)
    masks = any(Path(path).glob("*.png"))
    results, notes = read_answers(Path(path), annotations) if masks else read_detections(path, annotations)
    return annotations, results, [*notes, *swapped_classes(annotations.ground_truth(), results)]


def _holds_detections(path: str | Path) -> bool:
    from detkit.io.detections.reader import is_text
    from detkit.io.shards import is_shards

    if is_shards(path):
        return True
    path = Path(path)
    known = path.suffix in (".json", ".jsonl", ".csv", ".gz")
    return known or (is_text(path) and not (path / "best.safetensors").exists())


def evaluate_model(
    predictor: Predictor,
    data: str | Path,
    *,
    on_read: Callable[[Annotations], None] = lambda annotations: None,
    iou: float | None = None,
    max_detections: int = 100,
    batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
    **how: Unpack[DataOptions],
) -> tuple[Annotations, Results, Mapping[str, float]]:
    """A model's detections on labelled data, under the limits that AP is defined with, and the times it took.

    Labels are matched by class name: classes that the model does not know have no detections.

    Args:
        predictor: What ``load`` or ``as_predictor`` gives.
        data: A data set of any format (docs/data.md).
        on_read: Called with the labels, before anything else is done.
        iou: The NMS threshold; None: the model's own.
        max_detections: Per image.
        batch: Images at a time.
        on_progress: Called with batches done and in all.
        how: See ``detkit.data.dataset.read``.

    Returns:
        The labels, the detections in the labels' classes, and seconds by name.

    Raises:
        DetkitError: As ``detkit.data.dataset.read`` and ``detkit.engine.evaluator.detect_dataset``; a classifier on
            images that do not have exactly one label.
    """
    from detkit.data.dataset import Dataset, read
    from detkit.engine.evaluator import detect_dataset
    from detkit.metrics import find_metric
    from detkit.structures import Limits

    annotations = read(data, **how)
    on_read(annotations)
    find_metric(predictor.protocol).check(annotations.ground_truth())  # before a long run
    _, results, timings = detect_dataset(
        predictor,
        Dataset(annotations),
        batch=batch,
        limits=replace(Limits.evaluation(predictor.iou if iou is None else iou), max_detections=max_detections),
        on_batch=on_progress or (lambda done, total: None),
    )
    return annotations, results, asdict(timings)
