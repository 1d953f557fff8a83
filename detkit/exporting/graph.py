"""The part of a detector that is exported: pixels in, every prior's box and scores out."""

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
from detkit.ops.coder import Priors

OPSET = 18
INPUT, OUTPUTS = "pixels", ("boxes", "scores")


class DenseGraph(nn.Module):
    """uint8 pixels (B, 3, H, W), RGB, to boxes (B, A, 4) xyxy in input pixels and scores (B, A, C).

    H and W are the detector's own, so the priors are constants.

    Args:
        detector: In evaluation mode, with a dense head.
    """

    def __init__(self, detector: Detector, head: GridHead) -> None:
        super().__init__()
        self.detector, self.head = detector, head
        with torch.no_grad():
            priors = head.priors(detector.raw(self.example(1)))
        for name, value in zip(Priors._fields, priors, strict=True):
            self.register_buffer(name, value)

    def example(self, batch: int) -> Tensor:
        """An input."""
        return torch.zeros((batch, 3, *self.detector.resize.input_size), dtype=torch.uint8)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        raw = self.detector.raw(pixels)
        priors = Priors(*(getattr(self, name) for name in Priors._fields))
        return self.head.decode(raw["boxes"], priors), self.head.scores(raw)


def graph_of(detector: Detector) -> DenseGraph:
    """What is exported of a detector.

    Raises:
        DetkitError: A head that cannot be.
    """
    if not isinstance(detector.head, GridHead) or detector.proposals is not None:
        what = f"a detector with the head {type(detector.head).__name__.lower()} is not exported"
        raise DetkitError(what, do="export one with a dense head: yolo, aligned or sliding_window")
    graph = DenseGraph(detector, detector.head)
    graph.eval()
    return graph


def write_graph(graph: DenseGraph, path: Path) -> str:
    """Writes ONNX of any batch size; returns which of torch's exporters did.

    Raises:
        DetkitError: onnx is not installed, or neither exporter knows a layer.
    """
    for name in ("onnx", "onnxscript"):
        onnx_package(name)
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
