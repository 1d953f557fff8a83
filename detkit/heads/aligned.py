"""A dense head without anchors: one prior per cell, and a score for each class that says how good the box is, too.

Generalized Focal Loss (Li et al. 2020, arXiv 2006.04388), TOOD (Feng et al. 2021, arXiv 2108.07755), VarifocalNet
(Zhang et al. 2021, arXiv 2008.13367), YOLOX (Ge et al. 2021, arXiv 2107.08430). ``detkit.ops.dynamic`` says which prior
answers for which object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.layers import Act, conv_block
from detkit.heads.alignment import Alignment
from detkit.heads.dense import GridHead, GridOptions, gather_objects, known_classes
from detkit.heads.layers import exact_output
from detkit.ops.coder import Level, Priors, decode_deltas
from detkit.ops.dynamic import assign_soft, assign_tal, class_mask
from detkit.ops.inputs import check_positive, check_shares
from detkit.ops.losses import BoxLoss, distribution_focal_loss, iou_loss, quality_focal_loss, varifocal_loss
from detkit.options import split, takes
from detkit.structures import Loss, Target


@dataclass(kw_only=True)
class AlignedOptions(GridOptions):
    """How the head is trained.

    Attributes:
        assign: ``tal`` or ``soft``, see ``detkit.ops.dynamic``.
        topk: Priors that may answer for one object.
        alpha: Exponent of the score in ``tal``.
        beta: Exponent of the IoU in ``tal``.
        class_loss: ``quality_focal`` or ``varifocal``; with an objectness cross-entropy, where an object is.
        box_loss: 1 - IoU of a kind.
        class_gain: Weight of the class term.
        box_gain: Weight of the box term; an object's own weight multiplies all its terms.
        dfl_gain: Weight of the distributions' term, with ``reg_max``.
        objectness_gain: Weight of the objectness term, with ``objectness``.
        prior: Every score before training, so that the first steps are calm.
    """

    assign: Literal["tal", "soft"] = "tal"
    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    class_loss: Literal["quality_focal", "varifocal"] = "quality_focal"
    box_loss: BoxLoss = "giou"
    class_gain: float = 1.0
    box_gain: float = 2.0
    dfl_gain: float = 0.25
    objectness_gain: float = 1.0
    prior: float = 0.01


class Aligned(GridHead):
    """Each cell has one point and answers with class scores and a box around it; levels share no layers.

    The published heads are options of this one::

        NanoDet-Plus  {name: aligned, decoupled: false, stem: 2, act: leaky, reg_max: 7, offset: 0, assign: soft}
        YOLOX         {name: aligned, width: 64, stem: 2, kernel: 3, norm_eps: 0.001, coder: deltas, objectness: true,
                       offset: 0, assign: soft, box_gain: 5}  # width: 256 w; separable: false but for nano

    Layers, per level i: ``stems.i`` (with ``width``), ``towers.i``, ``box_towers.i`` (with ``decoupled``), then 1 x 1
    ``layers.i`` of the classes and ``box_layers.i`` of the box code, then the objectness; without ``decoupled`` all
    three, in this order, come from ``layers.i``.

    Args:
        channels: Of the feature maps.
        strides: Of the feature maps.
        num_classes: C.
        width: Channels of the branches, made by a 1 x 1 block from the map's; None: the map's own.
        decoupled: One branch for classes and one for boxes, or one for both.
        stem: Blocks (convolution, batch norm, activation) of a branch.
        kernel: Side of their convolutions.
        separable: A depthwise convolution, then a pointwise one, each with batch norm and activation.
        act: The activation.
        norm_eps: Of the batch norms.
        coder: ``distances`` from the point to the box's four sides, or ``deltas`` of centre and log size in strides.
        reg_max: R of a distribution over the distances 0, 1, .. R strides, whose mean is the distance; 0: the distance
            itself, by softplus.
        offset: Of the point in its cell, in strides; 0.5: the centre.
        objectness: A logit more; a score is its product with the class's.
        options: ``AlignedOptions``, and those of ``Alignment`` for the coarsest map averaged.

    Raises:
        ValueError: Options out of their range or that do not go together.
    """

    options: AlignedOptions

    @takes(AlignedOptions, Alignment)
    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        width: int | None = None,
        decoupled: bool = True,
        stem: int = 1,
        kernel: int = 5,
        separable: bool = True,
        act: Act = "silu",
        norm_eps: float = 1e-5,
        coder: Literal["distances", "deltas"] = "distances",
        reg_max: int = 0,
        offset: float = 0.5,
        objectness: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        own, domains = split(options, AlignedOptions, Alignment)
        self.options, self.alignment = AlignedOptions(**own), Alignment(channels[-1], **domains)
        check_positive(width=width or 1, kernel=kernel, topk=self.options.topk, norm_eps=norm_eps)
        check_shares(offset=offset)
        if not 0 < self.options.prior < 1:
            raise ValueError(f"prior must lie between 0 and 1, got {self.options.prior}")
        if stem < 0 or reg_max < 0 or kernel % 2 == 0:
            raise ValueError(f"stem and reg_max are 0 or more, kernel is odd; got {stem}, {reg_max}, {kernel}")
        if reg_max and coder == "deltas":
            raise ValueError("reg_max makes distributions of distances: take coder: distances")
        self.strides, self.num_classes = tuple(strides), num_classes
        self.coder, self.reg_max, self.offset, self.objectness = coder, reg_max, offset, objectness

        def branches() -> nn.ModuleList:
            block = {"separable": separable, "act": act, "norm_eps": norm_eps}
            blocks = [[conv_block(w, w, kernel, **block) for _ in range(stem)] for w in widths]  # type: ignore[arg-type]
            return nn.ModuleList(nn.Sequential(*each) for each in blocks)

        widths = [width or c for c in channels]
        first = [conv_block(c, width, 1, act=act, norm_eps=norm_eps) for c in channels] if width else []
        self.stems = nn.ModuleList(first)
        self.towers = branches()
        self.box_towers = branches() if decoupled else nn.ModuleList()
        others = 4 * (reg_max + 1) + objectness
        outputs = num_classes if decoupled else num_classes + others
        self.layers = nn.ModuleList(nn.Conv2d(w, outputs, 1) for w in widths)
        self.box_layers = nn.ModuleList(nn.Conv2d(w, others, 1) for w in widths if decoupled)
        self.class_rows = {"layers.": (0, 1, outputs - num_classes)}
        # Whatever comes first: the classes, at the prior's odds; the box; the objectness, at these odds again.
        odds = math.log(self.options.prior / (1 - self.options.prior))
        start = torch.zeros(num_classes + others)
        start[:num_classes] = odds
        if coder == "distances" and not reg_max:
            start[num_classes : num_classes + 4] = 2.0  # boxes of about four strides
        if objectness:
            start[-1] = odds
        for layers, bias in ((self.layers, start[:outputs]), (self.box_layers, start[outputs:])):
            for layer in layers:
                nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
                layer.bias = nn.Parameter(bias.clone())

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """What loss and prediction need, from feature maps (B, C_l, H_l, W_l); proposals are not looked at.

        classes (B, A, C) logits, boxes (B, A, 4 (R + 1)) codes, with ``objectness`` (B, A) logits of it, all float32,
        grid (L, 2) int64 on the CPU, height and width of the levels. The A priors go level by level, row by row. In
        training mode also pooled (B, C_l) if two domains are to be aligned.
        """
        parts = []
        for i, x in enumerate(features):
            x = self.stems[i](x) if len(self.stems) else x
            output = exact_output(self.layers[i], self.towers[i](x))  # type: ignore[arg-type]
            if len(self.box_layers):
                boxes = exact_output(self.box_layers[i], self.box_towers[i](x))  # type: ignore[arg-type]
                output = torch.cat((output, boxes), 1)
            parts.append(output.permute(0, 2, 3, 1).flatten(1, 2))
        table = torch.cat(parts, dim=1)
        end = self.num_classes + 4 * (self.reg_max + 1)
        raw = {
            "boxes": table[..., self.num_classes : end],
            "classes": table[..., : self.num_classes],
            "grid": torch.tensor([feature.shape[-2:] for feature in features], device="cpu"),
        }
        if self.training and self.alignment.align != "none":
            raw["pooled"] = features[-1].mean((2, 3)).float()
        return raw | {"objectness": table[..., end]} if self.objectness else raw

    def levels(self, raw: dict[str, Tensor]) -> list[Level]:
        """The grids of this batch; a prior is as large as its cell."""
        sizes, new = raw["grid"].tolist(), raw["boxes"].new_tensor
        return [Level(h, w, s, new([[s, s]]), self.offset * s) for (h, w), s in zip(sizes, self.strides, strict=True)]

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(..., C) float32."""
        scores = raw["classes"].sigmoid()
        return scores * raw["objectness"].sigmoid()[..., None] if self.objectness else scores

    def decode(self, code: Tensor, priors: Priors) -> Tensor:
        """Box codes (..., 4 (R + 1)) as boxes (..., 4) xyxy in input pixels."""
        if self.coder == "deltas":
            return decode_deltas(code, priors.boxes)
        if self.reg_max:
            steps = torch.arange(self.reg_max + 1, dtype=code.dtype, device=code.device)
            sides = (code.unflatten(-1, (4, -1)).softmax(-1) * steps).sum(-1)
        else:
            sides = F.softplus(code)
        sides = sides * priors.strides
        return torch.cat((priors.centres - sides[..., :2], priors.centres + sides[..., 2:]), -1)

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The terms ``classes`` and ``box``, ``dfl`` with ``reg_max``, ``objectness`` with that, ``domains`` of two
        that are aligned; gains included.

        The box's terms are weighted, and divided, by the quality of the answers. The class term is divided by the sum
        of qualities and one per image, so that a batch without objects stays calm. Crowds and difficult objects switch
        off their own class, and an objectness, where nothing answers for another object. Classes of which an image's
        labels do not tell (``Target.known``) count only where an object of theirs is labelled.

        Args:
            raw: What ``raw`` returned.
            targets: Torch, boxes in input pixels, one per image, any number of objects.
            sizes: (B, 2), not looked at.
        """
        options, logits = self.options, raw["classes"]
        objects = gather_objects(targets, logits.device)
        priors = self.priors(raw)
        boxes = self.decode(raw["boxes"], priors)
        judged = priors, objects, self.scores(raw).detach(), boxes.detach()
        if options.assign == "tal":
            answers = assign_tal(*judged, topk=options.topk, alpha=options.alpha, beta=options.beta)
        else:
            answers = assign_soft(*judged, topk=options.topk)
        image, prior, row, quality = answers.image, answers.prior, answers.row, answers.quality
        own, label, truth = objects.weight[row], objects.labels[row], objects.boxes[row]
        weight, images = quality * own, len(logits)

        mask = class_mask(priors, objects, images, self.num_classes)
        wanted, active = torch.zeros_like(logits), mask.to(logits.dtype)
        wanted[image, prior, label] = quality
        if (known := known_classes(targets, self.num_classes, logits.device)) is not None:
            active *= known[:, None]
        active[image, prior, label] = own
        terms = {}
        if self.objectness:
            there, listen = torch.zeros_like(raw["objectness"]), mask.all(-1).to(logits.dtype)
            there[image, prior], listen[image, prior] = 1.0, own
            each = F.binary_cross_entropy_with_logits(raw["objectness"], there, reduction="none") * listen
            terms["objectness"] = each.sum() * options.objectness_gain, own.sum() + images
            at = image, prior
            each = F.binary_cross_entropy_with_logits(logits[at], wanted[at], reduction="none") * active[at]
            terms["classes"] = each.sum() * options.class_gain, own.sum()
        else:
            loss = quality_focal_loss if options.class_loss == "quality_focal" else varifocal_loss
            terms["classes"] = (loss(logits, wanted) * active).sum() * options.class_gain, weight.sum() + images
        box = iou_loss(boxes[image, prior], truth, options.box_loss) * weight
        terms["box"] = box.sum() * options.box_gain, weight.sum()
        if self.reg_max:
            place, code = priors.rows(prior), raw["boxes"][image, prior].unflatten(-1, (4, -1))
            sides = torch.cat((place.centres - truth[:, :2], truth[:, 2:] - place.centres), -1) / place.strides
            each = distribution_focal_loss(code, sides.clamp(0, self.reg_max - 0.01)).mean(-1) * weight
            terms["dfl"] = each.sum() * options.dfl_gain, weight.sum()
        domains = {"domains": self.alignment.loss(raw["pooled"], targets)} if "pooled" in raw else {}
        return {name: Loss(total, count) for name, (total, count) in terms.items()} | domains
