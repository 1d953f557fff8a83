"""``detkit.export``: a detector as an ONNX file that is proven equal to it, or no file."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable
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
from detkit.exporting.graph import Graph, graph_of, write_graph
from detkit.exporting.header import Header
from detkit.exporting.predictor import load_exported
from detkit.exporting.proof import Proof, Tolerance, photos, prove, score_both
from detkit.io.download import sha256_of
from detkit.io.files import refuse_existing, write_bytes

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
        if self.path is None:
            return [*self.proof.lines(), "nothing is written: the exported model answers otherwise"]
        return [*self.proof.lines(), f"{self.path}: {self.bytes / 1e6:.1f} MB, by torch's {self.exporter} exporter"]


def export(
    model: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    data: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Writes a model as ONNX (opset 18, float32, any batch size, decoding inside, NMS left to detkit).

    The input ``pixels`` is uint8 (B, 3, H, W), RGB; the outputs are ``boxes`` (B, A, 4), xyxy in input pixels (of heads
    for whole images A is 1, and they are shares of the image), and ``scores`` (B, A, C). Model and file then detect in
    the same photographs, by the same code.

    Args:
        model: Weights file, run folder or shipped name.
        out: The file.
        size: Input size in pixels; None: the model's own.
        data: A labelled data set (docs/data.md): its first images are compared too, and the AP of both on all of it.
        split: One part of it.
        overwrite: Replace a file that exists.
        tell: Called with what a person should know.

    Returns:
        The comparison; its ``path`` is None, and no file is left, where the two differ by more than rounding.

    Raises:
        DetkitError: No such model, a head that is not exported, a missing package (with the pip command), a file that
            exists.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        do = f"write -o {out.with_suffix('.onnx')}"
        raise DetkitError("an exported model's name ends in .onnx", str(out), do)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        onnx_package(name)
    refuse_existing(out, overwrite)
    dataset = None if data is None else Dataset(read(data, split=split))
    file = zoo.model_file(model)
    detector = load_detector(file)
    if size is not None:
        detector.resize = replace(detector.resize, size=(size, size))
    graph = graph_of(detector)
    header = _header(detector, graph, file)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.onnx"
        exporter = write_graph(graph, temporary)
        if exporter != "dynamo":
            tell("torch's newer exporter does not know all of this network: its older one wrote the file")
        _label(temporary, header)
        exported = load_exported(temporary, "onnxruntime")
        proof = prove(detector, exported, _images(dataset), Tolerance(), resize=detector.resize)
        if not proof.passed:
            return Exported(None, 0, exporter, proof)
        if dataset is not None:
            proof = replace(proof, scores=score_both(detector, exported, dataset))
        _label(temporary, replace(header, proof=proof.to_dict()))
        content = temporary.read_bytes()
    write_bytes(out, content, overwrite=overwrite)
    return Exported(out, len(content), exporter, proof)


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
        ranks_all=getattr(detector.head, "ranks_all", False),
        candidates=graph.candidates,
        mean=tuple(detector.mean.flatten().tolist()),
        std=tuple(detector.std.flatten().tolist()),
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
