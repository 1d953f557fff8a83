"""The region proposal network (Ren et al. 2015, arXiv 1506.01497, section 3.1): a dense head of one class, "object"."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.heads.dense import DenseHead, select_detections
from detkit.interfaces import ProposalSource
from detkit.ops import boxes as box_ops
from detkit.ops.anchors import deal
from detkit.ops.assign import Assignment, Objects, assign_iou, draw
from detkit.ops.coder import Priors, encode_deltas, grid_priors
from detkit.ops.inputs import check_positive, check_shares
from detkit.structures import Batch, Limits


class RPN(DenseHead, ProposalSource):
    """Objectness and deltas for anchors of several scales and ratios at every cell; the best become proposals.

    Args:
        channels: Of the feature maps.
        strides: Theirs.
        scales: The anchors' sides in input pixels, sorted and dealt evenly to the maps, the smallest to the finest (one
            each with a pyramid, section 4.1 of Lin et al. 2017).
        ratios: Height / width.
        positive: IoU from which an anchor is an object's.
        negative: IoU below which it is background.
        samples: Anchors per image that take part in the loss, at most half of them positive.
        before: Proposals per level before NMS, for training and prediction.
        after: Proposals per image after it, for training and prediction.
        iou: NMS drops boxes that overlap more.
        beta: Where smooth L1 turns from square to line.
        box_gain: Weight of the term, which is divided by ``samples``.
        objectness_gain: Weight of the term, which is divided by ``samples``.
        objectness_prior: As for ``DenseHead``.
        stem: As for ``DenseHead``.
        share_stem: As for ``DenseHead``.
        plain: The paper's own stem, a 3 x 3 convolution with ReLU, one for all maps.
    """

    class_scores = False

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        *,
        scales: list[float],
        ratios: list[float] | None = None,
        positive: float = 0.7,
        negative: float = 0.3,
        samples: int = 256,
        before: tuple[int, int] = (2000, 1000),
        after: tuple[int, int] = (1000, 300),
        iou: float = 0.7,
        beta: float = 1 / 9,
        box_gain: float = 1.0,
        objectness_gain: float = 1.0,
        objectness_prior: float = 0.1,
        stem: int = 1,
        share_stem: bool = False,
        plain: bool = False,
    ) -> None:
        check_positive(samples=samples, before=min(before), after=min(after), beta=beta)
        check_shares(positive=positive, negative=negative, iou=iou)
        super().__init__(
            channels,
            strides,
            1,
            anchors=anchors(scales, ratios or [0.5, 1.0, 2.0], strides),
            box_loss="squared",
            objectness="one",
            normalise="images",
            box_gain=box_gain / samples,
            objectness_gain=objectness_gain / samples,
            objectness_prior=objectness_prior,
            stem=0 if plain else stem,
            share_stem=share_stem or plain,
        )
        if plain:
            convolution = nn.Conv2d(channels[0], channels[0], 3, padding=1)
            self.stems = nn.ModuleList([nn.Sequential(convolution, nn.ReLU(inplace=True))])
        self.positive, self.negative, self.samples, self.beta = positive, negative, samples, beta
        self.before, self.after, self.iou = before, after, iou
        self.max_proposals = after[1]
        # On the CPU, whatever the model is on; the engine keeps its state in the checkpoint.
        self.generator = torch.Generator("cpu").manual_seed(torch.initial_seed())

    def assign(self, priors: Priors, objects: Objects, raw: dict[str, Tensor]) -> Assignment:
        """By IoU; of the positive and negative anchors, those not drawn are ignored."""
        images = len(raw["objectness"])
        found = assign_iou(priors.boxes, objects, images, positive=self.positive, negative=self.negative)
        candidates = ~found.ignore
        candidates[found.positive[:, 0], found.positive[:, 1]] = False
        kept, ignore = [], torch.ones_like(found.ignore)
        for image in range(images):
            positive = draw(found.positive[:, 0] == image, self.samples // 2, self.generator)
            negative = draw(candidates[image], self.samples - len(positive), self.generator)
            kept.append(positive.sort().values)
            ignore[image, negative] = False
        rows = found.positive[torch.cat(kept)]
        ignore[rows[:, 0], rows[:, 1]] = False
        return Assignment(rows, ignore, found.lost)

    def box_terms(self, code: Tensor, priors: Priors, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth L1 of the deltas, summed over the four."""
        loss = F.smooth_l1_loss(code, encode_deltas(boxes, priors.boxes), reduction="none", beta=self.beta).sum(1)
        return loss, box_ops.paired_iou(self.decode(code.detach(), priors), boxes)

    def propose(self, batch: Batch, features: list[Tensor], training: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The best boxes per image, (R_i, 4) in input pixels, best first, and ``raw``, which ``loss`` reads."""
        raw = self.raw(features)
        before, after = (pair[0 if training else 1] for pair in (self.before, self.after))
        boxes, scores, level = self.candidates(raw, before)
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        # Levels do not suppress each other: they are what classes are elsewhere.
        labels, limits = level.repeat(len(boxes)), Limits(0.0, self.iou, after)
        found = select_detections(
            boxes.flatten(0, 1), scores.flatten(), labels, image, batch.sizes, len(self.strides), limits
        )
        return [f.boxes for f in found], raw

    @torch.no_grad()
    def candidates(self, raw: dict[str, Tensor], before: int) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes (B, S, 4) of highest score (B, S) of each level, ``before`` at most, and their level (S,)."""
        logits, levels = raw["objectness"].nan_to_num(-torch.inf), self.levels(raw)
        totals = [level.total for level in levels]
        parts = [part.topk(min(before, part.shape[1]), dim=1).indices for part in logits.split(totals, dim=1)]
        starts = [0, *accumulate(totals[:-1])]
        rows = torch.cat([part + start for part, start in zip(parts, starts, strict=True)], dim=1)
        codes = raw["boxes"][torch.arange(rows.shape[0], device=rows.device)[:, None], rows]
        level = torch.cat([torch.full_like(part[0], i) for i, part in enumerate(parts)])
        return self.decode(codes, grid_priors(levels).rows(rows)), logits.gather(1, rows).sigmoid(), level


def anchors(scales: list[float], ratios: list[float], strides: list[int]) -> list[list[tuple[float, float]]]:
    """The anchors of each feature map.

    Args:
        scales: Sides of the squares of equal area, in input pixels.
        ratios: Height / width.
        strides: Of the maps.

    Returns:
        Per stride, (width, height) of every scale in every ratio.

    Raises:
        DetkitError: No scales or ratios, or scales that the levels cannot share evenly.
    """
    for name, values, say in (("scales", scales, "[32, 64]"), ("ratios", ratios, "[0.5, 1, 2]")):
        if not values or min(values) <= 0:
            raise DetkitError(f"the RPN needs {name} above 0, got {values}", f"proposals.{name}", f"give {say}, say")
    dealt = deal(sorted(scales), strides, "scales", "proposals.scales")
    return [[(side / ratio**0.5, side * ratio**0.5) for side in sides for ratio in ratios] for sides in dealt]
