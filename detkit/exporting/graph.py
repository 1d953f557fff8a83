"""The part of a detector that is exported: pixels in, boxes and scores of every class out."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.exporting.engines import onnx_package
from detkit.heads.dense import GridHead
from detkit.heads.image import ImageHead
from detkit.ops.coder import Priors

OPSET = 18
INPUT, OUTPUTS = "pixels", ("boxes", "scores")


class Graph(nn.Module):
    """uint8 pixels (B, 3, H, W), RGB, to boxes (B, A, 4) xyxy and scores (B, A, C); H and W are the detector's own.

    Args:
        detector: Put into evaluation mode.

    Attributes:
        candidates: (box, class) pairs per image that enter NMS at most.
        shares: The boxes are in shares of the image's part of the input, else in input pixels.
    """

    candidates: int
    shares = False

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector.eval()

    def example(self, batch: int) -> Tensor:
        """An input."""
        return torch.zeros((batch, 3, *self.detector.resize.input_size), dtype=torch.uint8)


class DenseGraph(Graph):
    """Of a dense head: A priors, which are constants."""

    def __init__(self, detector: Detector, head: GridHead) -> None:
        super().__init__(detector)
        self.head, self.candidates = head, head.options.candidates
        with torch.no_grad():
            priors = head.priors(detector.raw(self.example(1)))
        for name, value in zip(Priors._fields, priors, strict=True):
            self.register_buffer(name, value)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Graph`` says."""
        raw = self.detector.raw(pixels)
        priors = Priors(*(getattr(self, name) for name in Priors._fields))
        return self.head.decode(raw["boxes"], priors), self.head.scores(raw)


class ImageGraph(Graph):
    """Of a head for whole images: one box, with a score for each class."""

    shares = True

    def __init__(self, detector: Detector, head: ImageHead) -> None:
        super().__init__(detector)
        self.head, self.candidates = head, head.num_classes

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Graph`` says."""
        raw = self.detector.raw(pixels)
        scores, boxes, _ = self.head.answers(raw, torch.ones((pixels.shape[0], 2)))
        return boxes[:, None], scores[:, None]


def graph_of(detector: Detector) -> Graph:
    """What is exported of a detector.

    Raises:
        DetkitError: A head that cannot be.
    """
    head = detector.head
    if isinstance(head, GridHead) and detector.proposals is None:
        return DenseGraph(detector, head)
    if isinstance(head, ImageHead) and head.protocol != "points":
        return ImageGraph(detector, head)
    why = "points" if head.protocol == "points" else "proposals"
    what = f"a detector with {why} is not exported (its head is {type(head).__name__})"
    raise DetkitError(what, do="export one with a dense head (yolo, aligned, sliding_window), classify or localize")


def write_graph(graph: Graph, path: Path) -> str:
    """Writes ONNX of any batch size; returns which of torch's exporters did.

    Raises:
        DetkitError: onnx is not installed, or neither exporter knows a layer.
    """
    for name in ("onnx", "onnxscript"):
        onnx_package(name)
    graph.eval()
    reasons = []
    for dynamo in (True, False):
        axes: Any = {"dynamic_shapes": {INPUT: {0: torch.export.Dim("batch")}}}
        if not dynamo:
            axes = {"dynamic_axes": {name: {0: "batch"} for name in (INPUT, *OUTPUTS)}}
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")  # of tracing constants, which priors are
                torch.onnx.export(
                    graph,
                    (graph.example(2),),
                    path,
                    dynamo=dynamo,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=list(OUTPUTS),
                    verbose=False,
                    external_data=False,
                    **axes,
                )
        except Exception as error:  # the exporters let through whatever a layer raises
            reasons.append(str(error).strip().splitlines()[0] if str(error) else type(error).__name__)
        else:
            return "dynamo" if dynamo else "torchscript"
    raise DetkitError("torch cannot export this network", "; ".join(reasons), "replace that layer in the model")
