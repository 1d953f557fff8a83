"""The head that looks at regions one by one: R-CNN's, Fast R-CNN's and Faster R-CNN's.

Each proposal's part of the features is pooled to one size, goes through a trunk, and gets class scores and, for each
class, a box. In R-CNN (Girshick et al. 2014, arXiv 1311.2524) the features are the pixels and the trunk is the whole
CNN, and linear SVMs may follow it. Sections named here are those of Fast R-CNN (Girshick 2015, arXiv 1504.08083).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detkit.errors import DetkitError
from detkit.heads.dense import full_precision, gather_objects, of_wanted_classes, select_detections
from detkit.heads.points import check_points, points_loss, points_table
from detkit.heads.pooling import RegionPooling
from detkit.heads.stages import Embedded, fit_stages
from detkit.heads.trunk import (
    Split,
    batch_norms,
    linear_layers,
    output_width,
    split_layers,
    two_layers,
    without_pooling,
)
from detkit.interfaces import Head
from detkit.ops.assign import Objects, Regions, draw, label_regions
from detkit.ops.coder import decode_deltas, encode_deltas
from detkit.ops.inputs import check_positive, check_shares
from detkit.ops.roi import roi_table
from detkit.structures import Detections, Limits, Loss, Target


class RoIHead(Head, nn.Module):
    """Pooling, trunk, softmax over the classes and background, and class-specific boxes, for each proposal.

    channels, strides: of the feature maps, equally many channels if they are several; num_classes: C; trunk: the rest
    of the backbone's classifier (``detkit.backbones.base.Classifier.split``), used with ``layers: backbone``.

    pool, size, sampling, padding, levels, aligned: how a region becomes size x size cells (``detkit.heads.pooling``);
    ``crops`` goes with the backbone ``identity``. layers: the trunk, the ``backbone``'s or an ``mlp`` of two layers of
    ``width``.
    norm: its BatchNorm keeps its statistics (``fixed``, for pretrained ones) or is ``trained`` on the sampled regions.
    svd: ranks of the trunk's fully connected layers, see ``compress``. chunk: regions that pass the trunk at once; in
    training further chunks are computed again for the gradient, so that memory holds one.

    rois: regions sampled an image in training (section 2.3: 128 for two); positive_share: at most so many of them with
    an IoU of at least ``positive`` with an object; background: IoU of the others (the paper's lower bound is 0.1; where
    they are too few, those below it fill up); weights: of the deltas, one over their standard deviation; beta: where
    smooth L1 turns from square to line; class_gain, box_gain: weights of the loss terms.

    points: landmarks of an object (``detkit.heads.points``), learned on the same regions and answered beside each box;
    flip_pairs: those that change places where an image is mirrored, counted from 0; point_beta: where their loss turns
    from square to line; point_gain: its weight.

    classifier: ``softmax``, or ``svm``: R-CNN's later stages. The head trains as ever, then ``fit`` puts a linear SVM a
    class (svm_cost: its C) in the place of the softmax and ridge regression (ridge: its lambda) in that of the boxes,
    see ``detkit.heads.stages``.
    """

    takes_proposals = True

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        *,
        pool: Literal["align", "max", "crops"] = "align",
        size: int = 7,
        sampling: int = 2,
        padding: int = 16,
        levels: int = 0,
        aligned: bool = True,
        layers: Literal["backbone", "mlp"] = "backbone",
        width: int = 1024,
        norm: Literal["fixed", "trained"] = "fixed",
        svd: list[int] | None = None,
        chunk: int = 256,
        rois: int = 64,
        positive_share: float = 0.25,
        positive: float = 0.5,
        background: tuple[float, float] = (0.0, 0.5),
        weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        beta: float = 1.0,
        class_gain: float = 1.0,
        box_gain: float = 1.0,
        points: int = 0,
        flip_pairs: tuple[tuple[int, int], ...] = (),
        point_beta: float = 0.1,
        point_gain: float = 5.0,
        classifier: Literal["softmax", "svm"] = "softmax",
        svm_cost: float = 1e-3,
        ridge: float = 1000.0,
    ) -> None:
        super().__init__()
        check_positive(size=size, width=width, chunk=chunk, rois=rois, beta=beta, svm_cost=svm_cost, ridge=ridge)
        check_shares(positive_share=positive_share, positive=positive, background=min(background))
        if len(set(channels)) > 1:
            raise ValueError(f"a RoI head needs equally many channels on all maps, not {channels}: take neck fpn")
        if (pool == "crops") != (list(strides) == [1]):
            do = "take backbone {name: identity, cnn: ...} for pool: crops, and another pool for feature maps"
            raise DetkitError(f"pool: {pool} does not fit maps of strides {strides}", "head.pool", do)
        check_points(points, flip_pairs, point_beta)
        if pool == "crops" and 2 * padding >= size:
            raise ValueError(f"padding of {padding} pixels on both sides leaves nothing of a size of {size}")
        if layers == "backbone" and trunk is None:
            raise DetkitError("the backbone gives no trunk", "head.layers", "take layers: mlp")
        self.class_rows = {"classes.": (0, 1, 1), "boxes.": (0, 4, 0)}
        self.num_classes, self.layers, self.chunk, self.norm = num_classes, layers, chunk, norm
        self.rois, self.positive_share, self.positive, self.background = rois, positive_share, positive, background
        self.weights, self.beta = weights, beta
        self.gains = {"classes": class_gain, "boxes": box_gain, "points": point_gain}
        self.points, self.flip_pairs, self.point_beta = points, tuple(flip_pairs), point_beta
        self.protocol = "points" if points else "coco"
        self.pooling = RegionPooling(strides, pool, size, sampling, padding, levels, aligned)
        if layers == "mlp" or trunk is None:
            self.trunk: nn.Module = two_layers(channels[0], size, width)
        else:
            self.trunk = without_pooling(trunk)
        features = output_width(self.trunk, channels[0], size)
        if svd:
            split_layers(self.trunk, svd, decompose=False)
        self.classes, self.boxes = nn.Linear(features, num_classes + 1), nn.Linear(features, 4 * num_classes)
        linear = [(self.classes, 0.01), (self.boxes, 0.001)]  # section 2.3
        if points:
            self.landmarks = nn.Linear(features, 2 * points)
            linear.append((self.landmarks, 0.001))
        for layer, deviation in linear:
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        self.classifier, self.svm_cost, self.ridge = classifier, svm_cost, ridge
        if classifier == "svm":
            self.register_buffer("svm", torch.zeros(num_classes, features))
            self.register_buffer("svm_bias", torch.zeros(num_classes))
            self.register_buffer("fitted", torch.tensor(False))
        # On the CPU, whatever the model is on; the engine keeps its state in the checkpoint.
        self.generator = torch.Generator("cpu").manual_seed(torch.initial_seed())

    @property
    def backbone_trunk(self) -> nn.Module | None:
        """The trunk, if it is the backbone's: it learns at that one's rate."""
        return self.trunk if self.layers == "backbone" else None

    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[Tensor]:
        """Section 2.3: ``rois`` of each image's proposals (R_i, 4) and objects, which are proposals too."""
        chosen = []
        for boxes, target in zip(proposals, targets, strict=True):
            objects = gather_objects([target], boxes.device)
            boxes = torch.cat((boxes, objects.boxes[objects.real].to(boxes)))
            shown = label_regions(boxes, objects, self.positive)
            low, high = self.background
            inside = ~shown.ignore
            groups = (
                shown.iou >= self.positive,
                inside & (shown.iou < high) & (shown.iou >= low),
                inside & (shown.iou < low),
            )
            positive = draw(groups[0], round(self.rois * self.positive_share), self.generator)
            background = draw(groups[1], self.rois - len(positive), self.generator)
            others = draw(groups[2], self.rois - len(positive) - len(background), self.generator)
            chosen.append(boxes[torch.cat((positive, background, others))])
        return chosen

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Everything that loss and prediction need, from maps (B, C_l, H_l, W_l) and proposals, (R_i, 4) an image.

        rois (R, 4) and image (R,) int64, all images' in order; classes (R, C + 1) logits, background last; boxes
        (R, C, 4) deltas; points (R, K, 2) x, y from the region's centre in its widths and heights; once ``fit``,
        margins (R, C), logits of the SVMs' probabilities; all float32.
        """
        if proposals is None:
            raise ValueError("a RoI head needs proposals")
        rois = roi_table(proposals)
        embedded = self.embed(features, rois)
        with full_precision(embedded.device.type):
            embedded = embedded.to(self.classes.weight.dtype)
            classes, boxes = self.classes(embedded), self.boxes(embedded).unflatten(1, (self.num_classes, 4))
            raw = {"rois": rois[:, 1:], "image": rois[:, 0].long(), "classes": classes, "boxes": boxes}
            if self.points:
                raw["points"] = self.landmarks(embedded).unflatten(1, (self.points, 2))
            if self.needs_fit and self.fitted:
                raw["margins"] = F.linear(embedded.float(), self.svm, self.svm_bias)  # type: ignore[arg-type]
        return raw

    def embed(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """(R, D): what the trunk makes of regions (R, 5), batch index and xyxy, in chunks."""
        trained = self.norm == "trained" and self.training and len(rois) > 1  # one region has no statistics
        for layer in batch_norms(self.trunk):
            layer.train(trained)
        if trained:
            return self._embed(features, rois)  # the statistics are those of all
        parts: list[Tensor] = []
        for part in rois.split(self.chunk):
            again: Any = torch.is_grad_enabled() and len(rois) > self.chunk
            parts.append(
                checkpoint(self._embed, features, part, use_reentrant=False) if again else self._embed(features, part)
            )
        return torch.cat(parts)

    def _embed(self, features: list[Tensor], rois: Tensor) -> Tensor:
        return self.trunk(self.pooling(features, rois)).flatten(1)

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The multi-task loss of section 2.3: ``classes`` and ``boxes``, gains included, both counted by regions; and
        ``points``, counted by visible points of the regions that show an object.

        targets: torch, boxes in input pixels, one an image; sizes (B, 2) is not looked at. Regions that show a crowd or
        a difficult object, and no other, count for nothing.

        Raises:
            DetkitError: the data has another number of points an object.
        """
        rois, logits = raw["rois"], raw["classes"]
        objects = gather_objects(targets, rois.device)
        shown = self._shown(raw, objects, len(targets))
        positive = (shown.iou >= self.positive).nonzero().squeeze(1)
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
        if self.points:
            wanted, found = points_table(targets, self.points).to(rois.device)[row], _placed(raw, positive)
            term = points_loss(found, wanted, objects.boxes[row], self.point_beta, weight[positive])
            losses["points"] = Loss(term.sum * self.gains["points"], term.count)
        return losses

    def _shown(self, raw: dict[str, Tensor], objects: Objects, images: int) -> Regions:
        """``label_regions`` of a batch; rows are those of ``objects``."""
        found = []
        for i in range(images):
            mine = objects.image == i
            shown = label_regions(raw["rois"][raw["image"] == i], objects.rows(mine), self.positive)
            rows = mine.nonzero().squeeze(1)
            found.append(shown._replace(row=rows[shown.row] if len(rows) else shown.row))
        return Regions(*(torch.cat(column) for column in zip(*found, strict=True)))

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch, input pixels, clipped to ``sizes`` (B, 2) height, width; without class names), best first.

        A region may answer with several classes, each with a box of its own; scores from ``limits.conf`` up take part
        in NMS, class by class; then ``limits.max_detections``.
        """
        scores = raw["margins"].sigmoid() if "margins" in raw else raw["classes"].softmax(1)[:, :-1]
        scores = of_wanted_classes(scores, limits)
        row, label = (scores >= max(limits.conf, 0.0)).nonzero(as_tuple=True)
        boxes = decode_deltas(raw["boxes"][row, label], raw["rois"][row], self.weights)
        more = {"points": _placed(raw, row)} if self.points else {}
        image, score = raw["image"][row], scores[row, label]
        return select_detections(boxes, score, label, image, sizes, self.num_classes, limits, more)

    @property
    def needs_fit(self) -> bool:
        """True if ``fit`` is to be called once, after training."""
        return self.classifier == "svm"

    @torch.no_grad()
    def fit(self, data: Sequence[Embedded]) -> None:
        """The later stages, from features of the regions of the training images that the trained trunk ``embed``-ed.

        Raises:
            ValueError: no images.
        """
        options = {"cost": self.svm_cost, "ridge": self.ridge, "positive": self.positive, "weights": self.weights}
        found = fit_stages(data, self.num_classes, **options)  # type: ignore[arg-type]
        self.svm.copy_(torch.from_numpy(found.svm))  # type: ignore[operator]
        self.svm_bias.copy_(torch.from_numpy(found.svm_bias))  # type: ignore[operator]
        for label in found.regressed.nonzero()[0]:
            self.boxes.weight[4 * label : 4 * label + 4] = torch.from_numpy(found.boxes[label])
            self.boxes.bias[4 * label : 4 * label + 4] = torch.from_numpy(found.boxes_bias[label])
        self.fitted.fill_(True)  # type: ignore[operator]


def _placed(raw: dict[str, Tensor], rows: Tensor) -> Tensor:
    """(N, K, 2) x, y in input pixels of the points of regions ``rows`` (N,)."""
    corners = raw["rois"][rows].unflatten(1, (2, 2))
    return corners.mean(1, keepdim=True) + raw["points"][rows] * (corners[:, 1:] - corners[:, :1])


def compress(detector: Any, ranks: Sequence[int]) -> list[Split]:
    """Truncated SVD of a trained detector's trunk (section 3.1), in place: the first fully connected layers get these
    ranks, and the detector's config says so, so that its file can be loaded. Its scores are forgotten: they were those
    of the whole layers.

    Raises:
        DetkitError: no such layers, layers that are split already, more ranks than layers, or a rank out of range.
    """
    head = detector.head
    layers = len(linear_layers(head.trunk)) if isinstance(head, RoIHead) else 0
    if not layers:
        do = "take a detector with head roi and layers: mlp, or with a backbone like vgg16"
        raise DetkitError("the detector has no fully connected layers to split", "model.head", do)
    if detector.config["model"]["head"].get("svd"):
        raise DetkitError("its layers are split already", "model.head.svd", "start from the model before that")
    try:
        splits = split_layers(head.trunk, ranks, decompose=True)
    except ValueError as error:
        raise DetkitError(str(error), "--ranks", f"give a rank for each of the {layers} layers, or fewer") from None
    model = detector.config["model"]
    detector.config = {**detector.config, "model": {**model, "head": {**model["head"], "svd": list(ranks)}}}
    detector.scores, detector.record = {}, {**detector.record, "svd": list(ranks)}
    return splits
