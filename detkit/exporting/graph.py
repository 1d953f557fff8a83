"""The part of a detector that is exported: pixels in, boxes and scores of every class out, or detections."""

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
from detkit.exporting.operators import in_onnx, suppressed
from detkit.heads.dense import GridHead
from detkit.heads.image import ImageHead
from detkit.heads.sliding_window import SlidingWindow
from detkit.ops.coder import Priors
from detkit.structures import Limits

OPSET = 18
DETECTIONS = 300  # per image at most, of a graph with NMS
_FLOOR = Limits.evaluation().conf * 0.9999  # ONNX's NMS takes what is above a threshold, ours what reaches it


class Graph(nn.Module):
    """uint8 ``pixels`` (B, 3, H, W), RGB, to ``boxes`` (B, A, 4) xyxy and ``scores`` (B, A, C).

    Args:
        detector: Put into evaluation mode.
        dynamic: H and W are any multiples of the detector's stride, else its own.

    Attributes:
        inputs: Names.
        outputs: Names.
        candidates: (box, class) pairs per image that enter NMS at most.
        shares: The boxes are in shares of the image's part of the input, else in input pixels.
    """

    inputs: tuple[str, ...] = ("pixels",)
    outputs: tuple[str, ...] = ("boxes", "scores")
    candidates: int
    shares = False

    def __init__(self, detector: Detector, dynamic: bool = False) -> None:
        super().__init__()
        self.detector, self.dynamic = detector.eval(), dynamic

    def examples(self, batch: int) -> dict[str, Tensor]:
        """Inputs by name."""
        return {"pixels": torch.zeros((batch, 3, *self.detector.resize.input_size), dtype=torch.uint8)}

    def axes(self) -> dict[str, dict[int, Any]]:
        """Of each input the axes that may have any length."""
        batch, stride = torch.export.Dim("batch"), self.detector.resize.stride
        axes: dict[str, dict[int, Any]] = {name: {0: batch} for name in self.inputs}
        if self.dynamic:
            axes["pixels"] |= {2: stride * torch.export.Dim("rows"), 3: stride * torch.export.Dim("columns")}
        return axes


class _Sizes(list[Any]):
    """What stands for the tensor of the levels' sizes while they are symbols, which a tensor would make numbers."""

    tolist = list.copy


class DenseGraph(Graph):
    """Of a dense head, which answers at A priors."""

    def __init__(self, detector: Detector, head: GridHead, dynamic: bool = False) -> None:
        super().__init__(detector, dynamic)
        self.head, self.candidates = head, head.options.candidates
        with torch.no_grad():
            priors = head.priors(detector.raw(self.examples(1)["pixels"]))
        for name, value in zip(Priors._fields, priors, strict=True):
            self.register_buffer(name, value)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Graph`` says."""
        features = self.detector.features(pixels)
        raw = self.head.raw(features)
        if self.dynamic:
            sizes: Any = _Sizes(feature.shape[-2:] for feature in features)
            return self.head.decoded({**raw, "grid": sizes})
        priors = Priors(*(getattr(self, name) for name in Priors._fields))  # constants
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


class SuppressedGraph(Graph):
    """A graph and NMS: ``boxes`` (B, N, 4), ``scores`` (B, N) and ``labels`` (B, N), best first; N is ``DETECTIONS``
    or all that can be found, and what is not is a box of score and label -1.

    A further input ``sizes`` (B, 2), float32, is the height and width of each image's part of the input, to which boxes
    are clipped before NMS, as the model does.

    Args:
        graph: Without it.
        iou: Of NMS.
    """

    outputs = ("boxes", "scores", "labels")

    def __init__(self, graph: Graph, iou: float) -> None:
        super().__init__(graph.detector, graph.dynamic)
        self.inner, self.iou, self.candidates = graph, iou, graph.candidates
        self.inputs = tuple(dict.fromkeys(("pixels", "sizes", *graph.inputs)))

    def examples(self, batch: int) -> dict[str, Tensor]:
        """Inputs by name."""
        given = {**self.inner.examples(batch), "sizes": whole(self.detector, batch)}
        return {name: given[name] for name in self.inputs}

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the class says."""
        boxes, scores = self.inner(pixels)
        pairs, classes = scores.flatten(1), scores.shape[2]
        lowest = pairs.topk(torch.sym_min(self.candidates, pairs.shape[1])).values[:, -1:, None]
        boxes = clipped(boxes, sizes)
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdim=True)
        scores = torch.where(real & (scores >= lowest), scores, -1)
        kept = suppressed(boxes, scores.transpose(1, 2), self.iou, _FLOOR).transpose(1, 2).flatten(1)
        score, pair = kept.topk(torch.sym_min(DETECTIONS, kept.shape[1]))
        found = boxes.gather(1, (pair // classes)[..., None].expand(-1, -1, 4))
        return found, score, torch.where(score < 0, -1, pair % classes)


def whole(detector: Detector, batch: int) -> Tensor:
    """(B, 2) float32: height and width of images that fill the input."""
    return torch.tensor(detector.resize.input_size, dtype=torch.float32).repeat(batch, 1)


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, A, 4) xyxy inside ``sizes`` (B, 2), height and width."""
    return boxes.clamp(min=0).minimum(sizes[:, None, [1, 0, 1, 0]])


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
            raise DetkitError("sliding windows are exported for one size", "--dynamic", "leave it out; see --size")
        graph = DenseGraph(detector, head, dynamic)
        return SuppressedGraph(graph, detector.iou) if nms else graph
    if isinstance(head, ImageHead) and head.protocol != "points":
        for asked, option in ((nms, "--nms"), (dynamic, "--dynamic")):
            if asked:
                raise DetkitError("a head for whole images has one answer, of one size", option, "leave it out")
        return ImageGraph(detector, head)
    why = "points" if head.protocol == "points" else "proposals" if head.takes_proposals else "head segment"
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
    given, reasons = tuple(graph.examples(2).values()), []
    how: dict[str, Any] = {"opset_version": OPSET, "verbose": False, "external_data": False}
    how |= {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
    for dynamo in (True, False) if type(graph) in (DenseGraph, ImageGraph) and not graph.dynamic else (True,):
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
