"""An exported detector as a predictor. No torch is imported: pixels in and boxes out are numpy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.exporting.engines import Engine, open_engine
from detkit.exporting.header import Header
from detkit.geometry import Geometry
from detkit.ops.order import descending
from detkit.ops.suppression import batched_nms
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample


class Input(NamedTuple):
    """Images as an exported detector takes them.

    Attributes:
        pixels: uint8 (B, 3, H, W).
        restore: One Geometry per image.
        sizes: Height and width of each image's part of the input.
    """

    pixels: np.ndarray
    restore: list[Geometry]
    sizes: list[tuple[int, int]]


class ExportedDetector(Predictor):
    """A file of ``detkit export`` that detects as the model does that it was made of.

    Args:
        engine: Has the file loaded.
        header: The file's.
    """

    def __init__(self, engine: Engine, header: Header) -> None:
        self.engine, self.header, self.resize = engine, header, header.resize
        self.classes, self.class_ids, self.flip_pairs = header.classes, header.class_ids, header.flip_pairs
        self.threshold, self.iou, self.protocol = header.threshold, header.iou, header.protocol

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels."""
        if not samples:
            return []
        given = input_of(samples, self.resize)
        boxes, scores = self.engine.run([given.pixels])
        rows = zip(boxes, scores, given.sizes, given.restore, strict=True)
        return [self._detections(*row, limits) for row in rows]

    def facts(self) -> dict[str, int | str]:
        """Its classes (their number), input and engine."""
        height, width = self.resize.input_size
        return {"classes": len(self.classes), "input": f"{width} x {height}", "engine": self.engine.name}

    def _detections(
        self, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int], restore: Geometry, limits: Limits
    ) -> Detections:
        boxes, scores, labels = select_boxes(boxes, scores, size, limits, self.header.candidates)
        return Detections(restore.to_original(boxes), scores, labels, self.classes)


def input_of(samples: Sequence[Sample], resize: Resize) -> Input:
    """Each image in its place of one array, as ``detkit.data.loader.collate`` lays them."""
    pixels = np.empty((len(samples), *resize.input_size, 3), np.uint8)
    restore = [resize(sample.image, out=place)[1] for sample, place in zip(samples, pixels, strict=True)]
    sizes = [resize.content(*sample.image.shape[:2]) for sample in samples]
    return Input(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), restore, sizes)


def select_boxes(
    boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int], limits: Limits, candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What remains of every prior's answer, by the rules of ``detkit.heads.dense.GridHead.predict``.

    Args:
        boxes: (A, 4) xyxy in input pixels.
        scores: (A, C).
        size: Height and width of the image's part of the input.
        limits: Of the detections.
        candidates: (prior, class) pairs that enter NMS at most.

    Returns:
        Boxes (N, 4), scores (N,) and labels (N,), best first.
    """
    if limits.classes is not None:
        unwanted = np.setdiff1d(np.arange(scores.shape[1]), limits.classes)
        scores = scores.copy()
        scores[:, unwanted] = -1
    prior, label = np.nonzero(scores >= max(limits.conf, 0.0))
    score = scores[prior, label]
    if len(score) > candidates:
        kept = np.sort(descending(score)[:candidates])
        prior, label, score = prior[kept], label[kept], score[kept]
    height, width = size
    clipped = boxes[prior].clip(0, None).clip(None, np.array([width, height] * 2, boxes.dtype))
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
) -> ExportedDetector:
    """The detector in a file of ``detkit export``.

    Args:
        path: The file.
        engine: "onnxruntime", "openvino", or "auto": what is installed.
        size: Another input size in pixels, of a file that takes any.
        threads: CPU threads; None: the engine's choice.
        precision: "fp32", or "bf16" with OpenVINO.

    Raises:
        DetkitError: The engine is not installed, the file is damaged or another program's, or its size is fixed.
    """
    opened = open_engine(path, engine, threads=threads, precision=precision)
    header = Header.from_metadata(opened.metadata, str(path))
    detector = ExportedDetector(opened, header)
    if size is not None and (size, size) != header.resize.input_size:
        height, width = header.resize.input_size
        do = f"leave out --size, or export again: detkit export MODEL --size {size} -o FILE.onnx"
        raise DetkitError(f"the input of this file is fixed, {width} x {height} pixels", str(path), do)
    return detector
