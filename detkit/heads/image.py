"""Heads that answer once for a whole image: which class it shows, or one object, where it is, and points on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.backbones.base import set_logits
from detkit.heads.alignment import Alignment
from detkit.heads.dense import RegressionLoss, of_wanted_classes
from detkit.heads.layers import exact_output
from detkit.heads.points import Landmarks
from detkit.heads.trunk import TrunkHead, output_shape, trunk_for
from detkit.interfaces import Head
from detkit.ops.losses import class_loss, iou_loss, objectness_loss, squared_loss
from detkit.options import split, takes
from detkit.structures import Detections, Limits, Loss, Target

SIDE_GAIN = 0.3  # of side branches (Szegedy et al. 2014, arXiv 1409.4842, section 5)
_CELLS, _IMAGE = 7, 224  # of the published classifiers: cells along a side of the last map, pixels of the image


class WholeImage(Head, nn.Module):
    """A head with one answer for an image. Subclasses write ``raw``, ``loss`` and ``answers``.

    ``allows_mosaic`` is false: an image made of several has no one answer.

    Attributes:
        ranks_all: Under the limits of evaluation every class answers, however unlikely: top-5 asks for all ranks.
    """

    allows_mosaic = False
    ranks_all = False

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Scores (B, C), boxes (B, 4) in input pixels, and more (B, ...) that goes with them."""
        raise NotImplementedError

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch, input pixels, clipped to ``sizes`` (B, 2) height, width; without class names), best first.

        One per class with a score of at least ``limits.conf``, all at the image's one box.
        """
        scores, boxes, more = self.answers(raw, sizes)
        scores = of_wanted_classes(torch.nan_to_num(scores, nan=-1), limits)
        boxes = boxes.clamp(min=0).minimum(sizes[:, [1, 0, 1, 0]].to(boxes))
        ordered, labels = scores.sort(dim=1, descending=True, stable=True)
        every = self.ranks_all and limits.conf <= Limits.evaluation().conf
        lowest = 0.0 if every else max(limits.conf, 0.0)
        counts = (ordered >= lowest).sum(1).clamp(max=limits.max_detections).tolist()
        return [
            Detections(
                boxes[i].expand(n, 4),
                ordered[i, :n],
                labels[i, :n],
                extra={name: value[i].expand(n, *value.shape[1:]) for name, value in more.items()},
            )
            for i, n in enumerate(counts)
        ]


def whole_boxes(sizes: Tensor, like: Tensor) -> Tensor:
    """(B, 4): each image's whole part of the input, ``sizes`` (B, 2) height and width, of the type of ``like``."""
    return torch.cat((torch.zeros_like(sizes), sizes.flip(1)), dim=1).to(like)


class ImageHead(WholeImage, TrunkHead):
    """The last map, pooled to ``cells`` x ``cells`` or through the backbone's own trunk, ``hidden`` layers, one output.

    A finer map than the last is not looked at, so a neck that joins several is of no use.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        outputs: int,
        trunk: nn.Module | None,
        layers: Literal["pool", "backbone"],
        cells: int,
        hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        for name, value in (("cells", cells), ("hidden", min(hidden, default=1))):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_share("dropout", dropout)
        self.num_classes, self.from_backbone = num_classes, layers == "backbone"
        given = trunk_for(layers, trunk, "pool")
        self.trunk = nn.AdaptiveAvgPool2d(cells) if given is None else given
        # A trunk that begins early may pool before it looks at as many cells as the last map has.
        size = max(_CELLS, math.ceil(_IMAGE / strides[-1]))
        width = math.prod(output_shape(self.trunk, (channels[-1], size, size), "the trunk"))
        widths, parts = (width, *hidden), list[nn.Module]()
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*parts, nn.Dropout(dropout))
        self.last = nn.Linear(widths[-1], outputs)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)

    def pooled(self, features: list[Tensor]) -> Tensor:
        """(B, D), what the last layer reads, of maps (B, C_l, H_l, W_l)."""
        return self.hidden(self.trunk(features[-1]).flatten(1))  # type: ignore[no-any-return]

    def table(self, features: list[Tensor]) -> Tensor:
        """(B, outputs) float32 of maps (B, C_l, H_l, W_l)."""
        return exact_output(self.last, self.pooled(features))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


class Classify(ImageHead):
    """Image classification: softmax over the classes, an answer being a detection of the whole image.

    Images are labelled by ``Target.image_label`` (class folders have one each); one without teaches nothing.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: C.
        trunk: The rest of the backbone's classifier, used with ``layers: backbone``.
        sides: Branches that end in logits (``detkit.backbones.base.Classifier.branches``), by the place of their map in
            training.
        layers: The last map averaged (``pool``), or the rest of the backbone's own classifier up to its logits
            (``backbone``: EfficientNet's last convolution, VGG's fc6 and fc7).
        hidden: Widths of fully connected layers with ReLU after that.
        dropout: Before the last layer.
        smoothing: Of the labels.
        options: Those of ``Alignment``.

    Raises:
        DetkitError: ``layers: backbone``, and the backbone gives no trunk.
        ValueError: An option out of its range.
    """

    protocol = "classify"
    ranks_all = True

    @takes(Alignment)
    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        sides: Mapping[int, nn.Sequential] | None = None,
        *,
        layers: Literal["pool", "backbone"] = "pool",
        hidden: tuple[int, ...] = (),
        dropout: float = 0.2,
        smoothing: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__(channels, strides, num_classes, num_classes, trunk, layers, 1, hidden, dropout)
        self.alignment = Alignment(self.last.in_features, **split(options, Alignment)[0])
        _check_share("smoothing", smoothing)
        sides = sides or {}
        self.smoothing, self._places = smoothing, tuple(sides)
        self.sides = nn.ModuleList(set_logits(side, num_classes) for side in sides.values())
        lasts = ["last.", *(f"sides.{k}.{len(side) - 1}." for k, side in enumerate(sides.values()))]
        self.class_rows = dict.fromkeys(lasts, (0, 1, 0))

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """classes (B, C) float32 logits, of maps (B, C_l, H_l, W_l); in training mode also the branches': side1, ...,
        and pooled (B, D) if two domains are to be aligned."""
        pooled = self.pooled(features)
        raw = {"classes": exact_output(self.last, pooled)}
        if self.training:
            raw |= {"pooled": pooled.float()} if self.alignment.align != "none" else {}
            for k, (place, side) in enumerate(zip(self._places, self.sides, strict=True), 1):
                raw[f"side{k}"] = side(features[place]).float()
        return raw

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The term ``classes``: minus log-likelihood of each image's label, counted by labelled images; ``side1``,
        ``side2``: the same of the branches that ``raw`` has, times ``SIDE_GAIN``; ``domains``: see ``Alignment``."""
        given = [-1 if target.image_label is None else target.image_label for target in targets]
        labels = torch.tensor(given, device=raw["classes"].device)
        known = labels >= 0
        terms = {}
        for name, logits in raw.items():
            if name == "pooled":
                terms["domains"] = self.alignment.loss(logits, targets)
                continue
            each = class_loss(logits[known], labels[known], "softmax", smoothing=self.smoothing)
            gain = 1.0 if name == "classes" else SIDE_GAIN
            terms[name] = Loss(each.sum() * gain, known.sum().to(each.dtype))
        return terms

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Probabilities (B, C), and the whole image as the box."""
        return raw["classes"].softmax(1), whole_boxes(sizes, raw["classes"]), {}


def chosen_object(target: Target) -> int | None:
    """The row of the object that stands for the image: the largest that is neither crowd nor difficult, of equals
    the first; None if there is none."""
    if not len(target):
        return None
    areas = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(1).masked_fill(target.ignore, -1)
    best = int(areas.argmax())
    return best if areas[best] > 0 else None


def localization_target(target: Target, size: Sequence[int], num_classes: int) -> Tensor:
    """The textbook's y of an image's one object (``chosen_object``).

    Args:
        target: Torch, pixels.
        size: Height and width of the image.
        num_classes: C.

    Returns:
        (5 + C,) float32: P_c, b_x, b_y, b_h, b_w, c_1 .. c_C: the box's centre, height and width as fractions of the
        image. Without an object all are 0, and only P_c is asked for.
    """
    wanted = target.boxes.new_zeros(5 + num_classes)
    row = chosen_object(target)
    if row is not None:
        x1, y1, x2, y2 = target.boxes[row].unbind()
        height, width = size
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (y2 - y1) / height, (x2 - x1) / width)
        wanted[:5] = torch.stack((torch.ones_like(x1), *box))
        wanted[5 + target.labels[row]] = 1
    return wanted


class Localize(ImageHead):
    """Classification with localization: P_c, b_x, b_y, b_h, b_w as sigmoids, a softmax over the classes; and landmarks.

    Of several objects the largest is the image's; an image with only crowds or difficult ones teaches nothing. With
    both losses ``squared`` and gains of 1 it is the textbook's loss (``detkit.ops.losses.localization_loss``).

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: C.
        trunk: The rest of the backbone's classifier, used with ``layers: backbone``.
        layers: The last map pooled to ``cells`` x ``cells``, or the rest of the backbone's own classifier.
        cells: See ``layers``.
        hidden: Widths of fully connected layers with ReLU after that.
        dropout: Before the last layer.
        box_loss: 1 - IoU of a kind, or the ``squared`` error of the four fractions.
        score_loss: ``likelihood`` (logistic loss for P_c, minus log-likelihood for the classes) or the ``squared``
            error of the probabilities.
        beta: Where the landmarks' loss turns from square to line.
        objectness_gain: Weight of P_c's term.
        box_gain: Weight of the box term.
        class_gain: Weight of the class term.
        options: Those of ``Landmarks``.

    Raises:
        DetkitError: ``layers: backbone``, and the backbone gives no trunk.
        ValueError: An option out of its range.
    """

    @takes(Landmarks)
    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        *,
        layers: Literal["pool", "backbone"] = "pool",
        cells: int = 5,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.0,
        box_loss: RegressionLoss = "giou",
        score_loss: Literal["likelihood", "squared"] = "likelihood",
        beta: float = 0.1,
        objectness_gain: float = 1.0,
        box_gain: float = 1.0,
        class_gain: float = 1.0,
        **options: object,
    ) -> None:
        marks = Landmarks(beta, **split(options, Landmarks)[0])
        before = 5 + 2 * marks.points
        super().__init__(channels, strides, num_classes, before + num_classes, trunk, layers, cells, hidden, dropout)
        self.class_rows = {"last.": (before, 1, 0)}
        self.box_loss, self.squared_scores = box_loss, score_loss == "squared"
        self.gains = {"objectness": objectness_gain, "box": box_gain, "classes": class_gain}
        self.marks, self.protocol, self.flip_pairs = marks, marks.protocol, marks.flip_pairs

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Logits, float32, of maps (B, C_l, H_l, W_l): objectness (B,), boxes (B, 4: x, y, h, w), classes (B, C); and
        points (B, K, 2), x and y as fractions of the image less a half."""
        table, points = self.table(features), self.marks.points
        presence, boxes, places, classes = table.split([1, 4, 2 * points, self.num_classes], dim=1)
        raw = {"objectness": presence[:, 0], "boxes": boxes, "classes": classes}
        return raw | {"points": places.unflatten(1, (points, 2))} if points else raw

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The terms ``objectness``, counted by images; ``box`` and ``classes``, by those with an object; ``points``,
        by visible points of these objects.

        Args:
            raw: What ``raw`` returned.
            targets: Torch, pixels of the input, one per image.
            sizes: (B, 2) height, width of the images in the input.

        Raises:
            DetkitError: The data has another number of points per object.
        """
        logits = raw["objectness"]
        pairs = zip(targets, sizes.tolist(), strict=True)
        rows = [localization_target(target, size, self.num_classes) for target, size in pairs]
        wanted = torch.stack(rows).to(logits)
        known = logits.new_tensor([len(t) == 0 or not bool(t.ignore.all()) for t in targets])
        there = (wanted[:, 0] > 0).nonzero().squeeze(1)
        presence = objectness_loss(logits, wanted[:, 0], squared=self.squared_scores) * known
        fractions = raw["boxes"][there].sigmoid()
        if self.box_loss == "squared":
            box = squared_loss(fractions, wanted[there, 1:5])
        else:
            scale = sizes[there].flip(1).to(fractions)
            box = iou_loss(_corners(fractions, scale), _corners(wanted[there, 1:5], scale), self.box_loss)
        labels = wanted[there, 5:].argmax(1)
        classes = class_loss(raw["classes"][there], labels, "softmax", squared=self.squared_scores)
        objects = logits.new_tensor(float(len(there)))
        terms = {"objectness": (presence, known.sum()), "box": (box, objects), "classes": (classes, objects)}
        losses = {name: Loss(each.sum() * self.gains[name], count) for name, (each, count) in terms.items()}
        if self.marks.points:
            chosen = [t[row : row + 1] for t in targets if (row := chosen_object(t)) is not None]
            boxes = torch.cat([logits.new_zeros((0, 4)), *(t.boxes.to(logits) for t in chosen)])
            losses["points"] = self.marks.loss(self._pixels(raw, sizes)[there], self.marks.table(chosen), boxes)
        return losses

    def _pixels(self, raw: dict[str, Tensor], sizes: Tensor) -> Tensor:
        """(B, K, 2) x, y of the points in input pixels."""
        return (raw["points"] + 0.5) * sizes.flip(1)[:, None].to(raw["points"])

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """P_c times class probability (B, C), the image's one box, and the ``points`` (B, K, 2), in input pixels."""
        scores = raw["objectness"].sigmoid()[:, None] * raw["classes"].softmax(1)
        more = {"points": self._pixels(raw, sizes)} if self.marks.points else {}
        return scores, _corners(raw["boxes"].sigmoid(), sizes.flip(1).to(scores)), more


def _corners(fractions: Tensor, scale: Tensor) -> Tensor:
    """(N, 4) x, y, h, w as fractions to xyxy in pixels; scale (N, 2): width, height."""
    half = fractions[:, [3, 2]] / 2
    return torch.cat((fractions[:, :2] - half, fractions[:, :2] + half), dim=1) * scale.repeat(1, 2)
