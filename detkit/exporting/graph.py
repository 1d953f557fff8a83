"""The part of a detector that is exported: pixels in, boxes and scores of every class out, or detections."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.detector import Detector
from detkit.exporting.operators import suppressed
from detkit.heads.dense import GridHead
from detkit.heads.image import ImageHead
from detkit.ops.coder import Priors
from detkit.structures import Limits

DETECTIONS = 300  # per image at most, of a graph with NMS
_FLOOR = Limits.evaluation().conf * 0.9999  # ONNX's NMS takes what is above a threshold, ours what reaches it


Axes = dict[str, dict[int, torch.export.Dim]]


class Graph(nn.Module):
    """uint8 ``pixels`` (B, 3, H, W), RGB, to ``boxes`` (B, A, 4) xyxy and ``scores`` (B, A, C).

    Args:
        detector: Put into evaluation mode.
        dynamic: H and W are any multiples of the detector's stride, else its own.

    Attributes:
        inputs: Names.
        outputs: Names.
        candidates: (box, class) pairs per image that enter NMS at most; None: all of them.
        shares: The boxes are in shares of the image's part of the input, else in input pixels.
    """

    inputs: tuple[str, ...] = ("pixels",)
    outputs: tuple[str, ...] = ("boxes", "scores")
    candidates: int | None
    shares = False

    def __init__(self, detector: Detector, dynamic: bool = False) -> None:
        super().__init__()
        self.detector, self.dynamic = detector.eval(), dynamic

    def examples(self, batch: int) -> dict[str, Tensor]:
        """Inputs by name."""
        return {"pixels": torch.zeros((batch, 3, *self.detector.resize.input_size), dtype=torch.uint8)}

    def axes(self) -> Axes:
        """Of each input the axes that may have any length."""
        batch, stride = torch.export.Dim("batch"), self.detector.resize.stride
        axes: Axes = {name: {0: batch} for name in self.inputs}
        if self.dynamic:
            axes["pixels"] |= {2: stride * torch.export.Dim("rows"), 3: stride * torch.export.Dim("columns")}
        return axes


class _Sizes(list[Any]):
    """What stands for the tensor of the levels' sizes while they are symbols, which a tensor would make numbers."""

    tolist = list.copy


def sized(raw: dict[str, Tensor], features: list[Tensor]) -> dict[str, Tensor]:
    """What a head makes of maps, with their sizes in such a form."""
    sizes: Any = _Sizes(feature.shape[-2:] for feature in features)
    return {**raw, "grid": sizes}


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
            return self.head.decoded(sized(raw, features))
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


class PixelGraph(Graph):
    """Of a head ``segment``: ``logits`` (B, C, H, W) of each input pixel; with a background, its are the last."""

    outputs = ("logits",)
    candidates = None

    def forward(self, pixels: Tensor) -> Tensor:
        """As the class says."""
        return self.detector.raw(pixels)["pixels"]


class SuppressedGraph(Graph):
    """A graph and NMS: ``boxes`` (B, N, 4), ``scores`` (B, N) and ``labels`` (B, N), best first; N is ``DETECTIONS``,
    and what is no detection has score and label -1.

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

    def axes(self) -> Axes:
        """Of each input the axes that may have any length."""
        inner = self.inner.axes()
        return {name: inner.get(name, {0: inner["pixels"][0]}) for name in self.inputs}

    def forward(self, pixels: Tensor, sizes: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As the class says."""
        given = {"pixels": pixels, "sizes": sizes, "proposals": proposals}
        boxes, scores = self.inner(*(given[name] for name in self.inner.inputs))
        pairs, classes = scores.flatten(1), scores.shape[2]
        if self.candidates is not None:
            lowest = pairs.topk(torch.sym_min(self.candidates, pairs.shape[1])).values[:, -1:, None]
            scores = torch.where(scores >= lowest, scores, -1)
        boxes = boxes_inside(boxes, sizes)
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        apart = boxes.ndim == 4  # each class has boxes of its own
        scores = torch.where(real if apart else real[..., None], scores, -1)
        columns = scores.transpose(1, 2)
        if apart:
            own = columns.flatten(0, 1)[:, None]
            kept = suppressed(boxes.transpose(1, 2).flatten(0, 1), own, self.iou, _FLOOR).reshape(columns.shape)
        else:
            kept = suppressed(boxes, columns, self.iou, _FLOOR)
        # Enough that there are none, where a graph can find fewer.
        kept = F.pad(kept.transpose(1, 2).flatten(1), (0, DETECTIONS), value=-1.0)
        boxes = F.pad(boxes.flatten(1, -2), (0, 0, 0, DETECTIONS))
        score, pair = kept.topk(DETECTIONS)
        row = (pair if apart else pair // classes)[..., None].expand(-1, -1, 4)
        return boxes.gather(1, row), score, torch.where(score < 0, -1, pair % classes)


def whole(detector: Detector, batch: int) -> Tensor:
    """(B, 2) float32: height and width of images that fill the input."""
    return torch.tensor(detector.resize.input_size, dtype=torch.float32).repeat(batch, 1)


def boxes_inside(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, ..., 4) xyxy inside ``sizes`` (B, 2), height and width."""
    corners = sizes[:, [1, 0, 1, 0]].reshape(-1, *[1] * (boxes.ndim - 2), 4)
    return boxes.clamp(min=0).minimum(corners)
