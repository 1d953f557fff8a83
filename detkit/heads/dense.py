"""The head that predicts at every cell of one or more feature maps.

Everything dense detectors share is written once, here: the layers, the loss, the prediction. A family adds how priors
are assigned to objects and how boxes are coded relative to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.heads.layers import exact_output, light_stem
from detkit.interfaces import Head
from detkit.ops import boxes as box_ops
from detkit.ops.assign import Assignment, Objects
from detkit.ops.coder import Level, Priors, decode_deltas, grid_priors
from detkit.ops.losses import Activation, class_loss, class_probabilities, iou_loss, objectness_loss
from detkit.ops.suppression import batched_nms
from detkit.options import split, takes
from detkit.structures import Detections, Limits, Loss, Target

RegressionLoss = Literal["ciou", "diou", "giou", "iou", "squared"]


@dataclass(kw_only=True)
class GridOptions:
    """What any dense head may choose.

    Attributes:
        candidates: (prior, class) pairs per image that enter NMS at most, those of highest score.
    """

    candidates: int = 3000


@dataclass(kw_only=True)
class WindowOptions(GridOptions):
    """How a dense head with an objectness is trained.

    Attributes:
        smoothing: Of the class labels.
        normalise: What the sums of the losses are divided by, the number of ``positives`` (the objectness adds one per
            image, so that a batch without objects stays calm) or of ``images``.
        box_gain: Weight of the box term; an object's own weight multiplies all its terms.
        objectness_gain: Weight of the objectness term.
        class_gain: Weight of the class term.
        objectness_prior: The objectness everywhere before training, so that the first steps are calm.
    """

    smoothing: float = 0.0
    normalise: Literal["positives", "images"] = "positives"
    box_gain: float = 5.0
    objectness_gain: float = 1.0
    class_gain: float = 1.0
    objectness_prior: float = 0.01


@dataclass(kw_only=True)
class DenseOptions(WindowOptions):
    """What a head of anchors may choose besides.

    Attributes:
        box_loss: 1 - IoU of a kind, or what the subclass makes of ``squared``.
        classes: ``sigmoid`` (C yes/no questions) or ``softmax`` (one out of C).
        score_loss: ``likelihood`` (cross-entropy) or the ``squared`` error of probabilities.
        objectness: The value a positive prior should reach, its box's ``iou`` with the object, or ``one``.
        level_gains: The objectness' weight on each level, finest first as the features; None: 1.
        stem: Blocks (depthwise 5x5, pointwise, batch norm, SiLU) before the predicting layer.
        share_stem: One stem for all levels, which must have equally many channels.
    """

    box_loss: RegressionLoss = "ciou"
    classes: Activation = "sigmoid"
    score_loss: Literal["likelihood", "squared"] = "likelihood"
    objectness: Literal["iou", "one"] = "iou"
    level_gains: list[float] | None = None
    stem: int = 0
    share_stem: bool = False


class GridHead(Head, nn.Module):
    """A head that answers at every cell of its maps: how a prediction is made of what ``raw`` says of each prior.

    Subclasses write ``raw``, ``loss``, ``levels``, ``scores`` and ``decode``.

    Attributes:
        strides: Of the feature maps.
        num_classes: C.
        options: ``GridOptions`` or more.
    """

    strides: Sequence[float]
    num_classes: int
    options: GridOptions

    def levels(self, raw: dict[str, Tensor]) -> list[Level]:
        """The grids of this batch."""
        raise NotImplementedError

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(..., C) float32 of the priors whose rows ``raw`` holds."""
        raise NotImplementedError

    def decode(self, code: Tensor, priors: Priors) -> Tensor:
        """Box codes (..., D) of these priors as boxes (..., 4) xyxy in input pixels."""
        raise NotImplementedError

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """``raw``, as a module that is called."""
        return self.raw(features)

    def priors(self, raw: dict[str, Tensor]) -> Priors:
        """The A priors of this batch."""
        return grid_priors(self.levels(raw))

    def decoded(self, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Every prior's box (B, A, 4) xyxy in input pixels and scores (B, A, C): what an exported model returns."""
        return self.decode(raw["boxes"], self.priors(raw)), self.scores(raw)

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch, input pixels, clipped to ``sizes`` (B, 2) height, width; without class names), best first.

        A prior may answer with several classes. Pairs of prior and class with score >= ``limits.conf`` take part, at
        most ``candidates`` per image, those of highest score; then NMS per class; then ``limits.max_detections``.
        """
        conf = max(limits.conf, 0.0)
        # No score exceeds its prior's objectness: most priors need no more than that looked at.
        most = raw["objectness"] if "objectness" in raw else raw["classes"].amax(-1)
        image, prior = (most.sigmoid() >= conf).nonzero(as_tuple=True)
        scores = self.scores({name: raw[name][image, prior] for name in ("objectness", "classes") if name in raw})
        scores = of_wanted_classes(scores, limits)
        row, label = (scores >= conf).nonzero(as_tuple=True)
        image, prior, score = image[row], prior[row], scores[row, label]
        kept = _best(score, torch.bincount(image, minlength=len(sizes)).tolist(), self.options.candidates)
        image, prior, label, score = image[kept], prior[kept], label[kept], score[kept]
        boxes = self.decode(raw["boxes"][image, prior], self.priors(raw).rows(prior))
        return select_detections(boxes, score, label, image, sizes, scores.shape[-1], limits)


class DenseHead(GridHead):
    """k priors per cell on every level; each prior predicts a box code, an objectness and class scores.

    Subclasses write ``assign``; ``decode`` for codes but R-CNN's deltas; ``box_terms`` for losses that are no IoU.

    Args:
        channels: Of the feature maps.
        strides: Of the feature maps.
        num_classes: C.
        anchors: For each level a list of (width, height) in input pixels.
        options: ``DenseOptions``.

    Raises:
        ValueError: Numbers of maps, strides, anchors and options that do not fit together.

    Attributes:
        class_scores: Without them the objectness is the score of label 0 (a proposal network).
    """

    class_scores = True
    options: DenseOptions

    @takes(DenseOptions)
    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        anchors: Sequence[Sequence[Sequence[float]]],
        **options: object,
    ) -> None:
        super().__init__()
        self.options = DenseOptions(**split(options, DenseOptions)[0])
        level_gains, share_stem = self.options.level_gains, self.options.share_stem
        if not len(channels) == len(strides) == len(anchors):
            raise ValueError(f"{len(channels)} feature maps, {len(strides)} strides, anchors for {len(anchors)} levels")
        if level_gains is not None and len(level_gains) != len(channels):
            raise ValueError(f"level_gains needs one number per level: {len(channels)}, not {len(level_gains)}")
        if share_stem and len(set(channels)) > 1:
            raise ValueError(f"share_stem needs equal channels on all levels, they are {list(channels)}")
        self.strides, self.num_classes = tuple(strides), num_classes
        self.anchors = [torch.tensor(level, dtype=torch.float32, device="cpu").reshape(-1, 2) for level in anchors]
        outputs = self.outputs
        self.class_rows = {"layers.": (outputs - num_classes, 1, 0)} if self.class_scores else {}
        layers = [nn.Conv2d(c, len(level) * outputs, 1) for c, level in zip(channels, self.anchors, strict=True)]
        self.layers = nn.ModuleList(layers)
        stems = [light_stem(c, self.options.stem) for c in (channels[:1] if share_stem else channels)]
        self.stems = nn.ModuleList(stems)  # one where it is shared, so that a file holds it once
        odds = self.options.objectness_prior / (1 - self.options.objectness_prior)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            bias = self.first_bias(odds)
            layer.bias = nn.Parameter(bias.repeat(layer.out_channels // len(bias)))

    def first_bias(self, odds: float) -> Tensor:
        """(outputs,) biases of one prior before training, at the odds of an object and of a class."""
        bias = torch.zeros(self.outputs)
        bias[4] = math.log(odds)
        if self.options.classes == "sigmoid" and self.num_classes > 1:
            bias[5:] = -math.log(self.num_classes - 1)
        return bias

    @property
    def outputs(self) -> int:
        """Numbers per prior: the box code's 4, objectness, class scores, in this order."""
        return 5 + (self.num_classes if self.class_scores else 0)

    # What a family adds.

    def assign(self, priors: Priors, objects: Objects, raw: dict[str, Tensor]) -> Assignment:
        """Which prior answers for which object."""
        raise NotImplementedError

    def decode(self, code: Tensor, priors: Priors) -> Tensor:
        """Box codes (..., 4) of these priors as boxes (..., 4) xyxy in input pixels: here of R-CNN's deltas."""
        return decode_deltas(code, priors.boxes)

    def box_terms(self, code: Tensor, priors: Priors, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (P,) and IoU (P,) of the codes (P, 4) of positive priors, whose objects are ``boxes`` (P, 4)."""
        predicted = self.decode(code, priors)
        iou = box_ops.paired_iou(predicted.detach(), boxes)
        if self.options.box_loss == "squared":
            raise ValueError(f"{type(self).__name__} has no squared box loss")
        return iou_loss(predicted, boxes, self.options.box_loss), iou

    # What all share.

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Everything that loss and prediction need, from feature maps (B, C_l, H_l, W_l); proposals are not looked at.

        boxes (B, A, 4) codes, objectness (B, A) logits, classes (B, A, C) logits, all float32 (mixed precision ends
        before the last layer), grid (L, 2) int64 on the CPU, height and width of the levels in cells. The A priors
        go level by level, row by row, cell by cell, anchor by anchor.
        """
        parts = []
        stems = list(self.stems) * (len(features) // len(self.stems))
        for feature, stem, layer in zip(features, stems, self.layers, strict=True):
            output = exact_output(layer, stem(feature))  # type: ignore[arg-type]
            parts.append(output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, self.outputs))
        table = torch.cat(parts, dim=1)
        raw = {
            "boxes": table[..., :4],
            "objectness": table[..., 4],
            "grid": torch.tensor([feature.shape[-2:] for feature in features], device="cpu"),
        }
        return raw | {"classes": table[..., 5:]} if self.class_scores else raw

    def levels(self, raw: dict[str, Tensor]) -> list[Level]:
        """The grids of this batch."""
        device = raw["boxes"].device
        if self.anchors[0].device != device:
            self.anchors = [level.to(device) for level in self.anchors]
        sizes = raw["grid"].tolist()
        return [Level(h, w, s, a) for (h, w), s, a in zip(sizes, self.strides, self.anchors, strict=True)]

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(..., C) float32: objectness times class probability."""
        objectness = raw["objectness"].sigmoid()[..., None]
        if not self.class_scores:
            return objectness
        return objectness * class_probabilities(raw["classes"], self.options.classes)

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The terms ``box``, ``objectness`` and ``classes``, gains included.

        Positive priors answer for their object, negative ones for an objectness of 0, ignored ones for nothing. Without
        positives the box and class terms are zeros that are still in the graph, with a count of 0.

        Args:
            raw: What ``raw`` returned.
            targets: Torch, boxes in input pixels, one per image, any number of objects.
            sizes: (B, 2), not looked at.
        """
        options, squared = self.options, self.options.score_loss == "squared"
        objects = gather_objects(targets, raw["boxes"].device)
        priors = self.priors(raw)
        assignment = self.assign(priors, objects, raw)
        image, prior, row = assignment.positive.unbind(1)
        weight = objects.weight[row]
        box, iou = self.box_terms(raw["boxes"][image, prior], priors.rows(prior), objects.boxes[row])

        logits = raw["objectness"]
        wanted = torch.zeros_like(logits)
        wanted[image, prior] = iou.detach().clamp(min=0) if options.objectness == "iou" else 1.0
        slot_weight = (~assignment.ignore).to(logits.dtype)
        slot_weight[image, prior] = weight
        if options.level_gains is not None:
            parts = zip(self.levels(raw), options.level_gains, strict=True)
            slot_weight *= torch.cat([logits.new_full((level.total,), gain) for level, gain in parts])
        presence = objectness_loss(logits, wanted, squared=squared) * slot_weight

        images, positives = float(len(logits)), float(len(row))
        each, all_slots = (images, images) if options.normalise == "images" else (positives, positives + images)
        terms = {
            "box": ((box * weight).sum() * options.box_gain, each),
            "objectness": (presence.sum() * options.objectness_gain, all_slots),
        }
        if self.class_scores:
            found, labels, smoothing = raw["classes"][image, prior], objects.labels[row], options.smoothing
            known = known_classes(targets, self.num_classes, labels.device)
            if known is not None:
                known = known[image].scatter(1, labels[:, None], True)
            one = class_loss(found, labels, options.classes, squared=squared, smoothing=smoothing, known=known)
            terms["classes"] = (one * weight).sum() * options.class_gain, each
        return {name: Loss(total, total.new_tensor(count)) for name, (total, count) in terms.items()}


def of_wanted_classes(scores: Tensor, limits: Limits) -> Tensor:
    """Scores (..., C), -1 for the classes that ``limits`` does not ask for."""
    if limits.classes is None:
        return scores
    allowed = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
    allowed[list(limits.classes)] = True
    return scores.masked_fill(~allowed, -1)


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    image: Tensor,
    sizes: Tensor,
    classes: int,
    limits: Limits,
    extra: Mapping[str, Tensor] | None = None,
) -> list[Detections]:
    """Candidates of a batch as detections: clipped to their images, NMS per class, the best ``max_detections``.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,).
        image: (N,), the place in the batch.
        sizes: (B, 2) height, width.
        classes: Their number.
        limits: Those of NMS and of the number of detections.
        extra: What goes with the boxes, (N, ...) each.

    Returns:
        One per image, best first.
    """
    size = sizes.to(boxes)[image].flip(1).repeat(1, 2)
    boxes = boxes.clamp(min=0).minimum(size)
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    found, image = Detections(boxes, scores, labels, extra=extra or {})[real], image[real]
    # Classes never suppress each other, nor do images: one call serves the batch.
    kept = batched_nms(found.boxes, found.scores, image * classes + found.labels, limits.iou)
    found, image = found[kept], image[kept]
    return [found[(image == i).nonzero().squeeze(1)[: limits.max_detections]] for i in range(len(sizes))]


def _best(score: Tensor, counts: list[int], most: int) -> Tensor | slice:
    """Where ``score`` (N,), of images one after the other with so many each, is among the ``most`` highest of its own;
    of equal ones the first count."""
    if max(counts, default=0) <= most:
        return slice(None)
    kept = torch.ones_like(score, dtype=torch.bool)
    for mine, place in zip(score.split(counts), kept.split(counts), strict=True):
        if len(mine) > most:
            lowest = mine.topk(most).values[-1]
            torch.greater(mine, lowest, out=place)
            place[(mine == lowest).nonzero().squeeze(1)[: most - int(place.sum())]] = True
    return kept


def gather_objects(targets: Sequence[Target], device: torch.device | str) -> Objects:
    """The objects of a batch's targets (torch) in one table on ``device``."""
    image = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(target) for target in targets]))
    rows = [(t.boxes, t.labels, t.weight, t.crowd, t.difficult) for t in targets]
    boxes, labels, weight, crowd, difficult = (torch.cat(column).to(device) for column in zip(*rows, strict=True))
    return Objects(boxes, labels, image.to(device), weight, crowd, difficult)


def known_classes(targets: Sequence[Target], classes: int, device: torch.device | str) -> Tensor | None:
    """(B, C) bool: of which of the C classes each image's labels tell; None where they tell of all."""
    if all(target.known is None for target in targets):
        return None
    known = torch.zeros((len(targets), classes), dtype=torch.bool)
    for row, target in zip(known, targets, strict=True):
        row[slice(None) if target.known is None else list(target.known)] = True
    return known.to(device)
