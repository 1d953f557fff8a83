"""What is exported of a detector with proposals: regions padded to a fixed number, and masked."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.exporting.graph import Axes, Graph, boxes_inside, sized, whole
from detkit.exporting.operators import suppressed
from detkit.heads.roi import RoIHead
from detkit.ops.coder import decode_deltas
from detkit.proposals.rpn import RPN

_EXAMPLE = 400  # regions per image


class RegionGraph(Graph):
    """Of a head that looks at R regions per image: ``boxes`` (B, R, C, 4), one for each class, and ``scores``
    (B, R, C), -1 where there is no region.

    A further input: ``sizes`` (B, 2) as of ``SuppressedGraph``, where the regions are those of a region proposal
    network, ``proposals`` (B, R, 4) xyxy in input pixels where they come from outside; one whose x1 is below 0 is none.

    Args:
        detector: Put into evaluation mode.
        head: Its own.
        dynamic: See ``Graph``.

    Raises:
        DetkitError: A head with landmarks.
    """

    def __init__(self, detector: Detector, head: RoIHead, dynamic: bool = False) -> None:
        super().__init__(detector, dynamic)
        if head.marks.points:
            raise DetkitError("landmarks are not exported", do="export a detector without points")
        if head.needs_fit:  # no graph branches on a tensor
            vars(head)["fitted"] = bool(head._buffers.pop("fitted"))
        self.head, self.candidates = head, None
        self.source = detector.proposals if isinstance(detector.proposals, RPN) else None
        self.inputs = ("pixels", "proposals" if self.source is None else "sizes")

    def examples(self, batch: int) -> dict[str, Tensor]:
        """Inputs by name."""
        sizes = whole(self.detector, batch)
        if self.source is not None:
            return {**super().examples(batch), "sizes": sizes}
        boxes = torch.cat((torch.zeros_like(sizes), sizes.flip(1)), 1)
        return {**super().examples(batch), "proposals": boxes[:, None].repeat(1, _EXAMPLE, 1)}

    def axes(self) -> Axes:
        """Of each input the axes that may have any length."""
        axes = super().axes()
        if self.source is None:
            axes["proposals"][1] = torch.export.Dim("regions")
        return axes

    def forward(self, pixels: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        features = self.detector.features(pixels)
        regions, real = (given, given[..., 0] >= 0) if self.source is None else proposed(self.source, features, given)
        images, count = regions.shape[:2]
        index = torch.arange(images, dtype=regions.dtype)[:, None, None].expand(images, count, 1)
        rois = torch.cat((index, regions), 2).flatten(0, 1)
        raw = self.head.answers(rois, self.head.embed_part(features, rois))
        boxes = decode_deltas(raw["boxes"], rois[:, None, 1:], self.head.weights)
        scores = torch.where(real.flatten()[:, None], self.head.scores(raw), -1)
        shape = images, count, self.head.num_classes
        return boxes.reshape(*shape, 4), scores.reshape(shape)


def proposed(source: RPN, features: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """What a region proposal network proposes as tensors of fixed shape.

    Args:
        source: The network.
        features: The neck's maps.
        sizes: (B, 2), height and width of each image's part of the input.

    Returns:
        Boxes (B, R, 4) xyxy, best first, and which of them are proposals (B, R).
    """
    boxes, scores, level = source.candidates(sized(source.raw(features), features), source.before[1])
    boxes = boxes_inside(boxes, sizes)
    real = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    levels = torch.arange(len(source.strides))[:, None] == level
    apart = torch.where(real[:, None] & levels, scores[:, None], -1)
    kept = suppressed(boxes, apart, source.iou, -0.5).amax(1)
    best, row = kept.topk(min(source.after[1], kept.shape[1]))
    return boxes.gather(1, row[..., None].expand(-1, -1, 4)), best >= 0
