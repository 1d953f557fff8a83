"""A detector's graph as a file: which graph, and torch's exporters."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.exporting.graph import DenseGraph, Graph, ImageGraph, PixelGraph, SuppressedGraph
from detkit.exporting.operators import in_onnx
from detkit.exporting.regions import RegionGraph
from detkit.heads.dense import GridHead
from detkit.heads.image import Classify, Localize
from detkit.heads.roi import RoIHead
from detkit.heads.segment import Segment
from detkit.heads.sliding_window import SlidingWindow
from detkit.proposals.rpn import RPN

OPSET = 18


def graph_of(detector: Detector, *, nms: bool = False, dynamic: bool = False) -> Graph:
    """What is exported of a detector.

    Args:
        detector: Its input size is that of the graph.
        nms: With NMS.
        dynamic: For inputs of any size.

    Raises:
        DetkitError: A head that cannot be.
    """
    head = detector.head
    if isinstance(head, GridHead) and detector.proposals is None:
        if dynamic and isinstance(head, SlidingWindow):
            what = "sliding windows are exported for one size: how many fit depends on it"
            raise DetkitError(what, "--dynamic", "leave it out; see --size")
        graph = DenseGraph(detector, head, dynamic)
        return SuppressedGraph(graph, detector.iou) if nms else graph
    if isinstance(head, RoIHead):
        if dynamic and isinstance(detector.proposals, RPN):
            what = "a region proposal network is exported for one size: at another its file answers otherwise"
            raise DetkitError(what, "--dynamic", "leave it out; see --size")
        regions = RegionGraph(detector, head, dynamic)
        return SuppressedGraph(regions, detector.iou) if nms else regions
    if isinstance(head, (Classify, Localize, Segment)) and head.protocol != "points":
        for asked, option in ((nms, "--nms"), (dynamic, "--dynamic")):
            if asked:
                raise DetkitError("this head has one answer per image or pixel, of one size", option, "leave it out")
        return PixelGraph(detector) if isinstance(head, Segment) else ImageGraph(detector, head)
    refused = "landmarks are" if head.protocol == "points" else "this head is"
    raise DetkitError(f"{refused} not exported", f"the head {type(head).__name__}", "see docs/export.md")


def write_graph(graph: Graph, path: Path) -> str:
    """Writes ONNX of any batch size; returns which of torch's exporters did.

    Raises:
        DetkitError: onnx is not installed, or neither exporter knows a layer.
    """
    graph.eval()
    given, reasons = tuple(graph.examples(2).values()), []
    how: dict[str, Any] = {"opset_version": OPSET, "verbose": False, "external_data": False}
    how |= {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
    for dynamo in (True,) if graph.dynamic or isinstance(graph, (RegionGraph, SuppressedGraph)) else (True, False):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")  # of tracing constants, which priors are
                if dynamo:
                    shapes = tuple(graph.axes().values())
                    program = torch.export.export(graph, given, dynamic_shapes=shapes, strict=False)
                    torch.onnx.export(
                        program, (), path, dynamo=True, dynamic_shapes=shapes, custom_translation_table=in_onnx(), **how
                    )
                else:
                    axes = {name: {0: "batch"} for name in (*graph.inputs, *graph.outputs)}
                    torch.onnx.export(graph, given, path, dynamo=False, dynamic_axes=axes, **how)
        except Exception as error:  # the exporters let through whatever a layer raises
            told = str(error.__cause__ or error).strip()
            reasons.append(told.splitlines()[0][:300] if told else type(error).__name__)
        else:
            return "dynamo" if dynamo else "torchscript"
    raise DetkitError("torch cannot export this network", "; ".join(reasons), "replace that layer in the model")
