"""An exported detector as a predictor. No torch is imported: pixels in and boxes out are numpy's."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.data.names import COCO_CLASSES, ids_of
from detkit.errors import DetkitError
from detkit.exporting.engines import Engine, open_engine
from detkit.exporting.header import Header
from detkit.exporting.layouts import LAYOUTS, OutputLayout, find_layout
from detkit.geometry import Geometry, UsualSizes
from detkit.heads.masks import class_regions
from detkit.io.files import names_in
from detkit.ops.order import descending
from detkit.ops.suppression import batched_nms
from detkit.predictor import Predictor
from detkit.printed import counted
from detkit.registry import find_part
from detkit.structures import Detections, Limits, Sample


class Input(NamedTuple):
    """Images as a network sees them.

    Attributes:
        pixels: uint8 (B, H, W, 3) RGB.
        restore: One Geometry per image.
        sizes: Height and width of each image's part of the input.
        proposals: (B, R, 4) float32 xyxy in input pixels, -1 where an image has fewer; None: the network's own.
    """

    pixels: np.ndarray
    restore: list[Geometry]
    sizes: list[tuple[int, int]]
    proposals: np.ndarray | None = None


class ExportedDetector(Predictor):
    """An ONNX file that detects: as the model does that it was made of, or as other programs' conventions say.

    Args:
        engine: Has the file loaded.
        header: The file's, or what stands for it.
        layout: Of another program's file; None: of ``detkit export``.
    """

    def __init__(self, engine: Engine, header: Header, layout: OutputLayout | None = None) -> None:
        self.engine, self.header, self.resize, self.layout = engine, header, header.resize, layout
        self.classes, self.class_ids, self.flip_pairs = header.classes, header.class_ids, header.flip_pairs
        self.threshold, self.iou, self.protocol = header.threshold, header.iou, header.protocol
        self.source: Any = _source(dict(header.proposals))
        self.streams = engine.streams

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels that it sees an image in."""
        return self.resize.height, self.resize.width

    @property
    def usual_sizes(self) -> UsualSizes | None:
        """Those of its training's objects, where the file has them."""
        return UsualSizes.read(self.header.objects)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels."""
        if self.header.detections:
            self._check(limits)
        found: list[Detections] = []
        step = self.engine.inputs[0].shape[0] or len(samples)
        for start in range(0, len(samples), max(step, 1)):
            given = self.input_of(samples[start : start + step])
            answers = self._answers(given, step)
            rows = zip(given.sizes, given.restore, *answers, strict=False)  # a fixed batch answers for padding too
            read = self._regions if self.header.masks else self._detections
            found += [read(limits, *row) for row in rows]
        return found

    def input_of(self, samples: Sequence[Sample]) -> Input:
        """Each image in its place of one array, as ``detkit.data.loader.collate`` lays them; and its proposals."""
        resize, shape = self.resize, (len(samples), *self.resize.input_size, 3)
        pixels = np.empty(shape, np.uint8)
        restore = [resize(sample.image, out=place)[1] for sample, place in zip(samples, pixels, strict=True)]
        sizes = [resize.content(*sample.image.shape[:2]) for sample in samples]
        if self.source is None:
            return Input(pixels, restore, sizes)
        boxes = [self._proposed(*one) for one in zip(samples, restore, sizes, strict=True)]
        table = np.full((len(samples), max(map(len, boxes)), 4), -1, np.float32)
        for place, mine in zip(table, boxes, strict=True):
            place[: len(mine)] = mine
        return Input(pixels, restore, sizes, table)

    def _proposed(self, sample: Sample, geometry: Geometry, size: tuple[int, int]) -> np.ndarray:
        """(R, 4) in input pixels, inside the image."""
        if self.source.proposals_for_image is None:
            return self.source.of_size(*size)
        found = sample.proposals
        if found is None:
            found = self.source.proposals_for_image(sample.image, "")
        return geometry.to_input(found).clip(0, np.array([*size[::-1]] * 2, np.float32))

    def _check(self, limits: Limits) -> None:
        """DetkitError if NMS would have to be another than that in the file."""
        for asked, option, has in (
            (limits.iou != self.iou, "--iou", f"of IoU {self.iou:g}"),
            (limits.conf < Limits.evaluation().conf, "--conf", f"of scores from {Limits.evaluation().conf:g}"),
            (limits.max_detections > self.header.detections, "--max-detections", f"for {self.header.detections} boxes"),
        ):
            if asked:
                raise DetkitError(f"NMS is in this file, {has}", option, "leave it out, or export without --nms")

    def feed(self, given: Input) -> list[np.ndarray]:
        """The graph's inputs."""
        known: dict[str, Any] = {"pixels": lambda: np.ascontiguousarray(given.pixels.transpose(0, 3, 1, 2))}
        known["sizes"] = lambda: np.array(given.sizes, np.float32)
        known["proposals"] = lambda: given.proposals
        return [known[port.name]() for port in self.engine.inputs]

    def _answers(self, given: Input, batch: int) -> Sequence[np.ndarray]:
        """Boxes (B, A, 4) xyxy in input pixels and scores (B, A, C); with NMS scores (B, N) and labels (B, N);
        of pixels logits (B, C, H, W)."""
        more = batch - len(given.pixels)
        if more > 0:
            padding = np.zeros((more, *given.pixels.shape[1:]), np.uint8)
            given = given._replace(pixels=np.concatenate([given.pixels, padding]))
        if self.layout is None:
            return self.engine.run(self.feed(given))
        return self.layout.read(self.engine.run([self.layout.feed(given.pixels)]), self.resize.input_size)

    def facts(self) -> dict[str, int | str]:
        """Its classes (their number), input and engine."""
        height, width = self.resize.input_size
        return {"classes": len(self.classes), "input": f"{width} x {height}", "engine": self.engine.name}

    def _regions(self, limits: Limits, size: tuple[int, int], restore: Geometry, logits: np.ndarray) -> Detections:
        logits = logits[:, : size[0], : size[1]]
        score = 1 / np.exp(logits - logits.max(0)).sum(0)  # softmax of the largest
        return class_regions(score, logits.argmax(0), len(self.classes), limits).restored(restore, self.classes)

    def _detections(
        self,
        limits: Limits,
        size: tuple[int, int],
        restore: Geometry,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Detections:
        if labels is not None:
            wanted = range(len(self.classes)) if limits.classes is None else limits.classes
            rows = np.flatnonzero((scores >= limits.conf) & np.isin(labels, wanted))[: limits.max_detections]
            return Detections(restore.to_original(boxes[rows]), scores[rows], labels[rows], self.classes)
        if self.header.shares:
            boxes = boxes * np.array([size[1], size[0]] * 2, boxes.dtype)
        if self.header.ranks_all and limits.conf <= Limits.evaluation().conf:
            limits = replace(limits, conf=0.0)
        boxes, scores, labels = select_boxes(boxes, scores, size, limits, self.header.candidates)
        return Detections(restore.to_original(boxes), scores, labels, self.classes)


def _source(options: dict[str, object]) -> object:
    """Of proposals; None where there are no options. DetkitError if they make no sense."""
    if not options:
        return None
    try:
        return find_part("proposals", options.pop("name", None), trusted=False)(**options)
    except (TypeError, ValueError) as error:
        raise DetkitError(f"the file's source of proposals cannot be made: {error}", do="export it again") from None


def select_boxes(
    boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int], limits: Limits, candidates: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What remains of every prior's answer, by the rules of ``detkit.heads.dense.GridHead.predict``.

    Args:
        boxes: (A, 4) xyxy in input pixels, or (A, C, 4).
        scores: (A, C).
        size: Height and width of the image's part of the input.
        limits: Of the detections.
        candidates: (prior, class) pairs that enter NMS at most; None: all.

    Returns:
        Boxes (N, 4), scores (N,) and labels (N,), best first.
    """
    if limits.classes is not None:
        unwanted = np.setdiff1d(np.arange(scores.shape[1]), limits.classes)
        scores = scores.copy()
        scores[:, unwanted] = -1
    prior, label = np.divmod(np.flatnonzero(scores >= max(limits.conf, 0.0)), scores.shape[1])
    score = scores[prior, label]
    if candidates is not None and len(score) > candidates:
        kept = np.sort(descending(score)[:candidates])
        prior, label, score = prior[kept], label[kept], score[kept]
    height, width = size
    chosen = boxes[prior] if boxes.ndim == 2 else boxes[prior, label]
    clipped = chosen.clip(0, None).clip(None, np.array([width, height] * 2, boxes.dtype))
    real = (clipped[:, 2:] > clipped[:, :2]).all(1)
    clipped, score, label = clipped[real], score[real], label[real]
    kept = batched_nms(clipped, score, label, limits.iou)[: limits.max_detections]
    return clipped[kept], score[kept], label[kept]


def load_exported(
    path: str | Path,
    engine: str = "auto",
    *,
    size: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    streams: int = 1,
    layout: str | None = None,
    names: str | Path | None = None,
) -> ExportedDetector:
    """The detector in an ONNX file, of ``detkit export`` or of another program.

    Args:
        path: The file.
        engine: "onnxruntime", "openvino", or "auto": what is installed.
        size: Another input size in pixels, of a file that takes any.
        threads: CPU threads; None: the engine's choice.
        precision: "fp32", or "bf16" with OpenVINO.
        streams: Batches of a stream at a time that share the threads.
        layout: Of another program's file, see ``detkit.exporting.layouts.LAYOUTS``; None: told by its outputs' shapes,
            with a warning that says which.
        names: File of another program's class names, one a line; None: those in its metadata, or COCO's of 80.

    Raises:
        DetkitError: The engine is not installed, the file is damaged, its size is fixed, or it cannot be told how it
            is read.
        UntrustedPart: It names a metric of a module that nobody has allowed, see ``detkit.registry``.
    """
    opened = open_engine(path, engine, threads=threads, precision=precision, streams=streams)
    if opened.metadata.get("format") != "detkit":
        return _foreign(opened, path, layout, names, size)
    if layout is not None or names is not None:
        option = "--names" if layout is None else "--layout"
        raise DetkitError("a file of detkit export says itself how it is read", option, "leave it out")
    header = Header.from_metadata(opened.metadata, str(path))
    if ":" in header.protocol:
        find_part("metric", header.protocol, where=f"{path}, protocol", trusted=False)
    if engine == "auto" and header.precision == "int8" and opened.name != "openvino" and find_spec("openvino"):
        opened = open_engine(path, "openvino", threads=threads, streams=streams)  # onnxruntime gains nothing by int8
    if size is not None and header.dynamic:
        header = replace(header, resize=replace(header.resize, size=size))
    if size is not None and not header.dynamic and (size, size) != header.resize.input_size:
        raise _fixed(header.resize.input_size, path, f"detkit export MODEL --size {size} -o FILE.onnx")
    return ExportedDetector(opened, header)


def _fixed(size: tuple[int, int], path: str | Path, again: str) -> DetkitError:
    what = f"the input of this file is fixed, {size[1]} x {size[0]} pixels"
    return DetkitError(what, str(path), f"leave out --size, or export again: {again}")


def _foreign(
    engine: Engine, path: str | Path, layout: str | None, names: str | Path | None, size: int | None
) -> ExportedDetector:
    """Another program's file; DetkitError where it cannot be told how it is read."""
    where, shapes = str(path), [port.shape for port in engine.inputs]
    shape = shapes[0] if len(shapes) == 1 else ()
    if len(shape) != 4 or shape[1] not in (3, None):
        raise DetkitError("this ONNX file does not take an image (B, 3, H, W)", where, "give a detector's file")
    if None in shape[2:] and size is None:
        raise DetkitError("this ONNX file takes images of any size", where, "say which: --size 640, say")
    height, width = (side or size or 0 for side in shape[2:])
    if size is not None and (height, width) != (size, size):
        raise _fixed((height, width), path, "with the program that wrote it")
    try:
        outputs = engine.run([np.zeros((shape[0] or 1, 3, height, width), np.float32)])
    except Exception as error:  # the engines let through whatever a layer raises
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        what = "this ONNX file cannot be run on a float32 image (B, 3, H, W)"
        raise DetkitError(what, f"{where}: {reason}", "give a detector's file") from None
    found = find_layout(layout, [one.shape for one in outputs], (height, width), where)
    if layout is None:
        warnings.warn(f"{where}: read as {found}, by its outputs' shapes (--layout to say otherwise)", stacklevel=1)
    chosen = LAYOUTS[found]
    classes = _class_names(engine, names, chosen.read(outputs, (height, width))[1].shape[-1], where)
    ids, resize = tuple(ids_of(classes)), chosen.resize((height, width))
    header = Header(classes=classes, class_ids=ids, resize=resize, iou=chosen.iou)
    return ExportedDetector(engine, header, chosen)


def _class_names(engine: Engine, names: str | Path | None, count: int, where: str) -> tuple[str, ...]:
    """Those of the file ``names``, of the metadata ("names", as Ultralytics writes it), or COCO's."""
    if names is not None:
        found = tuple(names_in(Path(names)))
    elif "names" in engine.metadata:
        found = ()
        with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # it is anything but names
            told = ast.literal_eval(engine.metadata["names"])
            keys = sorted(told, key=int) if isinstance(told, dict) else range(len(told))
            found = tuple(str(told[key]) for key in keys)
    else:
        found = COCO_CLASSES if count == len(COCO_CLASSES) else ()
    if len(found) != count:
        what = counted(len(found), "class name") if found else "no class names"
        do = "give a file of them, one a line: --names FILE"
        raise DetkitError(f"this ONNX file knows {counted(count, 'class')}, and has {what}", str(names or where), do)
    return found
