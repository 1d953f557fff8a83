"""``detkit.export``: a detector as an ONNX file that is proven equal to it, or no file."""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import detkit
from detkit import zoo
from detkit.config.build import load_detector
from detkit.data.dataset import Dataset, read
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.exporting.engines import onnx_package, read_onnx
from detkit.exporting.graph import DETECTIONS, Graph
from detkit.exporting.header import Header
from detkit.exporting.precision import Precision, reduce_precision
from detkit.exporting.predictor import ExportedDetector, load_exported
from detkit.exporting.proof import Proof, Tolerance, photos, prove, prove_pixels, score_both
from detkit.exporting.writing import graph_of, write_graph
from detkit.io.download import sha256_of
from detkit.io.files import refuse_existing, write_bytes
from detkit.printed import counted

_OWN = 16  # of the user's images that are compared one by one


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        path: The file; None where the proof failed.
        bytes: Of the file.
        exporter: Of torch's, the one that wrote it.
        proof: The comparison with the model.
    """

    path: Path | None
    bytes: int
    exporter: str
    proof: Proof

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"out": self.path, "bytes": self.bytes, "exporter": self.exporter, "proof": self.proof.to_dict()}

    def lines(self) -> list[str]:
        """The table of differences, and what was written."""
        written = f"{self.path}: {self.bytes / 1e6:.1f} MB, by torch's {self.exporter} exporter"
        why = "the exported model answers otherwise" if self.proof.loss is None else "it loses more than --loss allows"
        return [*self.proof.lines(), written if self.path else f"nothing is written: {why}"]


def export(
    model: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    nms: bool = False,
    dynamic: bool = False,
    precision: Precision = "fp32",
    loss: float = 0.005,
    data: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Writes a model as ONNX (opset 18, any batch size, decoding inside).

    The input ``pixels`` is uint8 (B, 3, H, W), RGB; the outputs are ``boxes`` (B, A, 4), xyxy in input pixels (of heads
    for whole images A is 1, and they are shares of the image), and ``scores`` (B, A, C); of a segmentation ``logits``
    (B, C, H, W). Model and file then detect in the same photographs, by the same code.

    Args:
        model: Weights file, run folder or shipped name.
        out: The file.
        size: Input size in pixels; None: the model's own.
        nms: NMS inside, at the model's IoU: the outputs are ``boxes`` (B, N, 4), ``scores`` (B, N) and ``labels``
            (B, N), best first, score and label -1 where there is no detection; a further input ``sizes`` (B, 2),
            float32, is the height and width of each image's part of the input.
        dynamic: H and W may be any multiples of the model's stride.
        precision: "fp16": weights and arithmetic up to the last convolution; "int8": convolutions, quantized by the
            data's images.
        loss: What a file of another precision than fp32 may lose of AP50 (of a classifier: of top-1, of a
            segmentation: of mIoU).
        data: A labelled data set (docs/data.md): its first images are compared too, and the AP of both on all of it.
            Other precisions than fp32 need one.
        split: One part of it.
        overwrite: Replace a file that exists.
        tell: Called with what a person should know.

    Returns:
        The comparison; its ``path`` is None, and no file is left, where the two differ by more than rounding, or the
        scores by more than ``loss``. Of other precisions boxes are compared before they are rounded.

    Raises:
        DetkitError: No such model, a head that is not exported, a missing package (with the pip command), a file that
            exists, no data where it is needed.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        do = f"write -o {out.with_suffix('.onnx')}"
        raise DetkitError("an exported model's name ends in .onnx", str(out), do)
    if split is not None and data is None:
        raise DetkitError("--split goes with --data", do="add --data DATA, or leave out --split")
    if precision != "fp32" and data is None:
        option = {"fp16": "--half", "int8": "--int8"}[precision]
        raise DetkitError(f"{precision} is judged by the AP that it costs", option, "give labelled images: --data DATA")
    if str(model).startswith("torchvision/"):
        do = "detkit import torchvision fasterrcnn_resnet50_fpn -o net.safetensors, and export that"
        raise DetkitError("torchvision's own detectors hold their resizing and lists of boxes", str(model), do)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        onnx_package(name)
    refuse_existing(out, overwrite)
    dataset = None if data is None else Dataset(read(data, split=split))
    file = zoo.model_file(model)
    detector = load_detector(file)
    if size is not None:
        detector.resize = replace(detector.resize, size=(size, size))
        if size not in detector.resize.input_size:
            tell(f"the input's sides are multiples of {detector.resize.stride}: {detector.resize.input_size[0]}")
    graph = graph_of(detector, nms=nms, dynamic=dynamic)
    header = _header(detector, graph, file)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.onnx"
        exporter = write_graph(graph, temporary)
        if exporter != "dynamo":
            tell("torch's newer exporter does not know all of this network: its older one wrote the file")
        _label(temporary, header)
        proof = _proof(detector, temporary, _images(dataset))
        if dataset is not None and proof.passed:
            if precision != "fp32":
                tell(f"{precision}: rounding, then measuring on {counted(len(dataset), 'image')}")
                reduce_precision(temporary, precision, dataset)
                header = replace(header, precision=precision)
                proof = replace(proof, loss=loss)
            exported = load_exported(temporary, "onnxruntime")
            proof = replace(proof, scores=score_both(detector, exported, dataset))
        if not proof.passed:
            return Exported(None, 0, exporter, proof)
        _label(temporary, replace(header, proof=proof.to_dict()))
        content = temporary.read_bytes()
    write_bytes(out, content, overwrite=overwrite)
    return Exported(out, len(content), exporter, proof)


def _proof(detector: Detector, path: Path, images: Sequence[np.ndarray]) -> Proof:
    """That of a file: at the model's own input and, where it takes any, at a flatter one."""
    exported = load_exported(path, "onnxruntime")
    resize, header, most = detector.resize, exported.header, exported.header.detections or 1000
    if header.masks:
        return prove_pixels(detector, exported, images, Tolerance())
    proof = prove(detector, exported, images, Tolerance(), resize=resize, most=most)
    if not header.dynamic:
        return proof
    stride, (height, width) = resize.stride, resize.input_size
    sides = max(height * 3 // 4 // stride, 1) * stride, (width * 5 // 4 // stride) * stride
    other, flat = replace(resize, size=sides), copy.copy(detector)
    flat.resize = other
    flatter = ExportedDetector(exported.engine, replace(header, resize=other))
    more = prove(flat, flatter, images, Tolerance(), resize=other, most=most)
    return replace(proof, differences=[*proof.differences, *more.differences])


def _images(dataset: Dataset | None) -> list[np.ndarray]:
    """Photographs, and the first of the user's own."""
    if dataset is None:
        return photos()
    own = islice(dataset.readable(range(len(dataset)), []), _OWN)
    return photos() + [sample.image for _, sample in own]


def _header(detector: Detector, graph: Graph, file: Path) -> Header:
    return Header(
        classes=detector.classes,
        class_ids=detector.class_ids,
        resize=detector.resize,
        threshold=detector.threshold,
        iou=detector.iou,
        protocol=detector.protocol,
        flip_pairs=detector.flip_pairs,
        shares=graph.shares,
        masks="logits" in graph.outputs,
        ranks_all=getattr(detector.head, "ranks_all", False),
        candidates=graph.candidates,
        detections=DETECTIONS if "labels" in graph.outputs else 0,
        dynamic=graph.dynamic,
        proposals=dict(detector.config["model"]["proposals"]) if "proposals" in graph.inputs else {},
        mean=tuple(detector.mean.flatten().tolist()),
        std=tuple(detector.std.flatten().tolist()),
        objects=detector.record.get("objects", {}),
        weights=sha256_of(file),
        versions={
            "detkit": detkit.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        },
    )


def _label(path: Path, header: Header) -> None:
    """Puts the header into the file's metadata."""
    onnx, model = onnx_package(), read_onnx(path)
    onnx.helper.set_model_props(model, header.to_metadata())
    model.producer_name, model.doc_string = "detkit", ""
    onnx.save(model, str(path))
