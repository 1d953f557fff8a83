"""A head without anchors: the cell that an object's centre lies in answers for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.heads.dense import gather_objects, select_detections
from detkit.interfaces import Head
from detkit.ops.boxes import paired_iou
from detkit.structures import Detections, Limits, Loss, Target


class CentreHead(Head, nn.Module):
    """Class scores and a box, as distances to its four sides, for each cell of the finest map.

    Args:
        channels: Of each feature map.
        strides: Of each feature map, in input pixels.
        num_classes: How many classes there are.
        box_gain: Weight of the box term.
    """

    def __init__(self, channels: list[int], strides: list[int], num_classes: int, *, box_gain: float = 1.0) -> None:
        super().__init__()
        self.stride, self.num_classes, self.box_gain = strides[0], num_classes, box_gain
        self.layer = nn.Conv2d(channels[0], 4 + num_classes, 1)
        nn.init.constant_(self.layer.bias[4:], -4.0)  # few cells hold an object
        self.class_rows = {"layer.": (4, 1, 0)}

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """boxes (B, A, 4) xyxy in input pixels and classes (B, A, C) logits of the A = H W cells, row by row."""
        table = self.layer(features[0]).float()
        height, width = table.shape[-2:]
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (torch.stack((column, row), -1).reshape(-1, 2).to(table) + 0.5) * self.stride
        table = table.flatten(2).transpose(1, 2)
        sides = table[..., :4].clamp(max=6).exp() * self.stride
        boxes = torch.cat((centres - sides[..., :2], centres + sides[..., 2:]), -1)
        return {"boxes": boxes, "classes": table[..., 4:], "grid": torch.tensor([height, width])}

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """``classes``: cross-entropy of all cells; ``box``: 1 - IoU of the cells that answer; both per object."""
        objects = gather_objects(targets, raw["boxes"].device)
        objects = objects.rows(objects.real)
        height, width = raw["grid"].tolist()
        centre = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / self.stride
        column, row = centre[:, 0].long().clamp(0, width - 1), centre[:, 1].long().clamp(0, height - 1)
        cell = row * width + column
        wanted = torch.zeros_like(raw["classes"])
        wanted[objects.image, cell, objects.labels] = 1.0
        classes = F.binary_cross_entropy_with_logits(raw["classes"], wanted, reduction="sum")
        boxes = raw["boxes"][objects.image, cell]
        box = (1 - paired_iou(boxes, objects.boxes)).sum()
        count = box.new_tensor(float(max(len(cell), 1)))
        return {"classes": Loss(classes, count), "box": Loss(box * self.box_gain, count)}

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Cells whose score reaches ``limits.conf``, after NMS per class."""
        scores = raw["classes"].sigmoid()
        image, cell, label = (scores >= limits.conf).nonzero(as_tuple=True)
        if limits.classes is not None:
            wanted = torch.isin(label, torch.tensor(limits.classes, device=label.device))
            image, cell, label = image[wanted], cell[wanted], label[wanted]
        boxes, score = raw["boxes"][image, cell], scores[image, cell, label]
        return select_detections(boxes, score, label, image, sizes, self.num_classes, limits)
