"""The head that looks at regions one by one: R-CNN's, Fast R-CNN's and Faster R-CNN's.

Each proposal's part of the features is pooled to one size, goes through a trunk, and gets class scores and, for each
class, a box. In R-CNN (Girshick et al. 2014, arXiv 1311.2524) the features are the pixels and the trunk is the whole
CNN, and linear SVMs may follow it. Sections named here are those of Fast R-CNN (Girshick 2015, arXiv 1504.08083).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from detkit.heads.dense import gather_objects, of_wanted_classes, select_detections
from detkit.heads.layers import exact_output, full_precision
from detkit.heads.points import Landmarks
from detkit.heads.rcnn_svm import Embedded, LaterStages, fit_stages
from detkit.heads.trunk import RegionPooling, TrunkHead, output_shape, region_trunk, trunk_for
from detkit.ops.assign import Objects, Regions, draw, label_regions
from detkit.ops.coder import decode_deltas, encode_deltas
from detkit.ops.inputs import check_positive, check_shares
from detkit.ops.roi import roi_table
from detkit.options import split, takes
from detkit.structures import Detections, Limits, Loss, Target


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Which regions of an image the loss is computed on (section 2.3).

    Attributes:
        rois: Regions sampled per image in training (the paper: 128 for two images).
        positive_share: At most so many of them show an object.
        positive: IoU with an object from which a region shows it.
        background: IoU of the others (the paper's lower bound is 0.1; where they are too few, those below it fill up).

    Raises:
        ValueError: A number out of its range.
    """

    rois: int = 64
    positive_share: float = 0.25
    positive: float = 0.5
    background: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        check_positive(rois=self.rois)
        check_shares(positive_share=self.positive_share, positive=self.positive, background=min(self.background))

    def chosen(self, boxes: Tensor, target: Target, generator: torch.Generator) -> Tensor:
        """``rois`` of one image's proposals (R, 4) and objects, which are proposals too."""
        objects = gather_objects([target], boxes.device)
        boxes = torch.cat((boxes, objects.boxes[objects.real].to(boxes)))
        shown = label_regions(boxes, objects, self.positive)
        low, high = self.background
        groups = (
            (shown.iou >= self.positive, round(self.rois * self.positive_share)),
            (~shown.ignore & (shown.iou < high) & (shown.iou >= low), self.rois),
            (~shown.ignore & (shown.iou < low), self.rois),
        )
        rows = boxes.new_zeros(0, dtype=torch.int64)
        for group, most in groups:
            rows = torch.cat((rows, draw(group, min(most, self.rois - len(rows)), generator)))
        return boxes[rows]


_PARTS = (RegionPooling, region_trunk, Sampler, LaterStages, Landmarks)


class RoIHead(TrunkHead):
    """Pooling, trunk, softmax over the classes and background, and class-specific boxes, for each proposal.

    Args:
        channels: Of the feature maps, equally many if they are several.
        strides: Of the feature maps.
        num_classes: C.
        trunk: The rest of the backbone's classifier (``detkit.backbones.base.Classifier.split``), used with ``layers:
            backbone``.
        layers: The trunk, the ``backbone``'s or an ``mlp`` of two layers.
        norm: The trunk's BatchNorm keeps its statistics (``fixed``, for pretrained ones) or is ``trained`` on the
            sampled regions.
        chunk: Regions that pass the trunk at once; in training further chunks are computed again for the gradient, so
            that memory holds one.
        weights: Of the deltas, one over their standard deviation.
        beta: Where smooth L1 turns from square to line.
        class_gain: Weight of the class term.
        box_gain: Weight of the box term.
        point_beta: Where the landmarks' loss turns from square to line; they are learned on the same regions and
            answered beside each box.
        options: Those of ``RegionPooling``, ``region_trunk``, ``Sampler``, ``LaterStages`` and ``Landmarks``.

    Raises:
        DetkitError: Parts that do not fit together.
        ValueError: An option out of its range.
    """

    takes_proposals = True
    svm: Tensor
    svm_bias: Tensor
    fitted: Tensor

    @takes(*_PARTS)
    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        *,
        layers: Literal["backbone", "mlp"] = "backbone",
        norm: Literal["fixed", "trained"] = "fixed",
        chunk: int = 256,
        weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        beta: float = 1.0,
        class_gain: float = 1.0,
        box_gain: float = 1.0,
        point_beta: float = 0.1,
        **options: object,
    ) -> None:
        super().__init__()
        check_positive(chunk=chunk, beta=beta)
        if len(set(channels)) > 1:
            raise ValueError(f"a RoI head needs equally many channels on all maps, not {channels}: take neck fpn")
        self.num_classes, self.norm, self.chunk, self.weights, self.beta = num_classes, norm, chunk, weights, beta
        self.gains, self.from_backbone = {"classes": class_gain, "boxes": box_gain}, layers == "backbone"
        pooling, trunks, sampler, later, marks = split(options, *_PARTS)
        self.pooling = RegionPooling(strides, **pooling)
        size = self.pooling.size
        self.trunk = region_trunk(trunk_for(layers, trunk, "mlp"), channels[0], size, **trunks)
        self.sampler, self.later, self.marks = Sampler(**sampler), LaterStages(**later), Landmarks(point_beta, **marks)
        self.protocol, self.flip_pairs = self.marks.protocol, self.marks.flip_pairs
        features = math.prod(output_shape(self.trunk, (channels[0], size, size), "the trunk"))
        self.classes, self.boxes = nn.Linear(features, num_classes + 1), nn.Linear(features, 4 * num_classes)
        self.class_rows = {"classes.": (0, 1, 1), "boxes.": (0, 4, 0)}
        linear = [(self.classes, 0.01), (self.boxes, 0.001)]  # section 2.3
        if self.marks.points:
            self.landmarks = nn.Linear(features, 2 * self.marks.points)
            linear.append((self.landmarks, 0.001))
        for layer, deviation in linear:
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        if self.needs_fit:
            self.register_buffer("svm", torch.zeros(num_classes, features))
            self.register_buffer("svm_bias", torch.zeros(num_classes))
            self.register_buffer("fitted", torch.tensor(False))
        # On the CPU, whatever the model is on; the engine keeps its state in the checkpoint.
        self.generator = torch.Generator("cpu").manual_seed(torch.initial_seed())

    @property
    def needs_fit(self) -> bool:
        """True if ``fit`` is to be called once, after training."""
        return self.later.classifier == "svm"

    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[Tensor]:
        """Those of each image's proposals (R_i, 4) and objects that the ``Sampler`` draws."""
        pairs = zip(proposals, targets, strict=True)
        return [self.sampler.chosen(boxes, target, self.generator) for boxes, target in pairs]

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Everything that loss and prediction need, from maps (B, C_l, H_l, W_l) and proposals (R_i, 4) per image.

        rois (R, 4) and image (R,) int64, all images' in order; classes (R, C + 1) logits, background last; boxes
        (R, C, 4) deltas; points (R, K, 2) x, y from the region's centre in its widths and heights; once ``fit``,
        margins (R, C), logits of the SVMs' probabilities; all float32.
        """
        if proposals is None:
            raise ValueError("a RoI head needs proposals")
        rois = roi_table(proposals)
        return self.answers(rois, self.embed(features, rois))

    def answers(self, rois: Tensor, embedded: Tensor) -> dict[str, Tensor]:
        """``raw`` of regions (R, 5), batch index and xyxy, of which the trunk made ``embedded`` (R, D)."""
        classes, boxes = exact_output(self.classes, embedded), exact_output(self.boxes, embedded)
        raw = {"rois": rois[:, 1:], "image": rois[:, 0].long(), "classes": classes}
        raw["boxes"] = boxes.unflatten(1, (self.num_classes, 4))
        if self.marks.points:
            raw["points"] = exact_output(self.landmarks, embedded).unflatten(1, (self.marks.points, 2))
        if self.needs_fit and self.fitted:
            with full_precision(embedded.device):
                raw["margins"] = F.linear(embedded.float(), self.svm, self.svm_bias)
        return raw

    def embed(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """(R, D): what the trunk makes of regions (R, 5), batch index and xyxy, in chunks."""
        trained = self.norm == "trained" and self.training and len(rois) > 1  # one region has no statistics
        for layer in self.trunk.modules():
            if isinstance(layer, _BatchNorm):
                layer.train(trained)
        parts = [rois] if trained else rois.split(self.chunk)  # statistics are those of all
        if torch.is_grad_enabled() and len(parts) > 1:
            return torch.cat([checkpoint(self.embed_part, features, part, use_reentrant=False) for part in parts])
        return torch.cat([self.embed_part(features, part) for part in parts])

    def embed_part(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """``embed`` of all regions at once."""
        return self.trunk(self.pooling(features, rois)).flatten(1)

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The multi-task loss of section 2.3: ``classes`` and ``boxes``, gains included, both counted by regions; and
        ``points``, counted by visible points of the regions that show an object.

        Regions that show a crowd or a difficult object, and no other, count for nothing.

        Args:
            raw: What ``raw`` returned.
            targets: Torch, boxes in input pixels, one per image.
            sizes: (B, 2), not looked at.

        Raises:
            DetkitError: The data has another number of points per object.
        """
        rois, logits = raw["rois"], raw["classes"]
        objects = gather_objects(targets, rois.device)
        shown = self._shown(raw, objects, len(targets))
        positive = (shown.iou >= self.sampler.positive).nonzero().squeeze(1)
        row = shown.row[positive]
        labels = torch.full((len(rois),), self.num_classes, dtype=torch.int64, device=rois.device)
        labels[positive] = objects.labels[row]
        weight = (~shown.ignore).to(logits.dtype)
        weight[positive] = objects.weight[row]
        classes = F.cross_entropy(logits, labels, reduction="none") * weight

        deltas = raw["boxes"][positive, labels[positive]]
        wanted = encode_deltas(objects.boxes[row], rois[positive], self.weights)
        boxes = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.beta).sum(1) * weight[positive]
        count = (~shown.ignore).sum().to(logits.dtype)
        # The other classes' boxes take part with zeros, so that every weight has a gradient.
        terms = {"classes": classes.sum(), "boxes": boxes.sum() + 0 * raw["boxes"].sum()}
        losses = {name: Loss(total * self.gains[name], count) for name, total in terms.items()}
        if self.marks.points:
            points, found = self.marks.table(targets).to(rois.device)[row], _placed(raw, positive)
            losses["points"] = self.marks.loss(found, points, objects.boxes[row], weight[positive])
        return losses

    def _shown(self, raw: dict[str, Tensor], objects: Objects, images: int) -> Regions:
        """``label_regions`` of a batch; rows are those of ``objects``."""
        found = []
        for i in range(images):
            mine = objects.rows(objects.image == i)
            shown = label_regions(raw["rois"][raw["image"] == i], mine, self.sampler.positive)
            found.append(shown._replace(row=shown.row + (objects.image < i).sum()))
        return Regions(*(torch.cat(column) for column in zip(*found, strict=True)))

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(R, C): the SVMs' probabilities, or those of the softmax."""
        return raw["margins"].sigmoid() if "margins" in raw else raw["classes"].softmax(1)[:, :-1]

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch, input pixels, clipped to ``sizes`` (B, 2) height, width; without class names), best first.

        A region may answer with several classes, each with a box of its own; scores from ``limits.conf`` up take part
        in NMS, class by class; then ``limits.max_detections``.
        """
        scores = of_wanted_classes(self.scores(raw), limits)
        row, label = (scores >= max(limits.conf, 0.0)).nonzero(as_tuple=True)
        boxes = decode_deltas(raw["boxes"][row, label], raw["rois"][row], self.weights)
        more = {"points": _placed(raw, row)} if self.marks.points else {}
        image, score = raw["image"][row], scores[row, label]
        return select_detections(boxes, score, label, image, sizes, self.num_classes, limits, more)

    def fit(self, regions: Sequence[Embedded]) -> None:
        """The later stages, from features of the regions of the training images that the trained trunk ``embed``-ed.

        Raises:
            ValueError: No images.
        """
        found = fit_stages(regions, self.num_classes, self.later, self.sampler.positive, self.weights)
        with torch.no_grad():
            self.svm.copy_(torch.from_numpy(found.svm))
            self.svm_bias.copy_(torch.from_numpy(found.svm_bias))
            rows = torch.from_numpy(found.regressed).repeat_interleave(4)
            self.boxes.weight[rows] = torch.from_numpy(found.boxes).flatten(0, 1)[rows].to(self.boxes.weight)
            self.boxes.bias[rows] = torch.from_numpy(found.boxes_bias).flatten()[rows].to(self.boxes.bias)
            self.fitted.fill_(True)


def _placed(raw: dict[str, Tensor], rows: Tensor) -> Tensor:
    """(N, K, 2) x, y in input pixels of the points of regions ``rows`` (N,)."""
    corners = raw["rois"][rows].unflatten(1, (2, 2))
    return corners.mean(1, keepdim=True) + raw["points"][rows] * (corners[:, 1:] - corners[:, :1])
