"""Which prior answers for which object, judged by what the network answers now, and how well: for heads whose class
score is to say how good the box is.

u is the IoU of a prior's predicted box with the object, s its score for the object's class. Only priors whose point
lies inside the object may answer for it; for an object without such a point the nearest one of the finest level may.

* ``assign_tal`` (TOOD, Feng et al. 2021, arXiv 2108.07755, section 3.2): the ``topk`` of highest t = s^alpha u^beta.
  A prior that several objects want answers for the one of highest u. Quality: t / max(t) * max(u) over the object's
  own.
* ``assign_soft`` (dynamic soft labels of NanoDet-Plus and RTMDet, arXiv 2212.07784, section 3.2, after SimOTA of YOLOX,
  arXiv 2107.08430): the k of lowest cost, |u - s|^2 BCE(s, u) summed over classes (u = 0 for the others) - 3 log u;
  k is the sum of the ``topk`` highest u, at least 1. A contested prior goes where its cost is lowest. Quality: u.

As in ``detkit.ops.assign`` there is no loop over images, and pairs of objects and priors come in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.assign import Objects, chunks, overlap
from detkit.ops.coder import Priors

_LEAST = 1e-9  # of a score and an IoU before its logarithm
_OVERLAP_COST = 3.0

# (objects of a chunk, their u (T, A)) to ranks (T, A), the highest answer, and how many of them (T,)
_Rule = Callable[[Objects, Tensor], tuple[Tensor, Tensor]]


class Answers(NamedTuple):
    """Which priors answer for which objects, sorted by image and prior, every slot once.

    Attributes:
        image: (P,) int64.
        prior: (P,) int64.
        row: (P,) int64, the object (a row of ``Objects``).
        quality: (P,) float32 in 0..1, the score that the prior should have for the object's class.
        lost: 0-d int64, objects left without a prior.
    """

    image: Tensor
    prior: Tensor
    row: Tensor
    quality: Tensor
    lost: Tensor


class _Claims(NamedTuple):
    """row, prior (P,) int64, the prior's IoU with the object and its rank (P,), object after object."""

    row: Tensor
    prior: Tensor
    iou: Tensor
    rank: Tensor

    def rows(self, index: Tensor) -> _Claims:
        return _Claims(*(column[index] for column in self))


@torch.no_grad()
def assign_tal(
    priors: Priors,
    objects: Objects,
    scores: Tensor,
    boxes: Tensor,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Answers:
    """Task-aligned assignment, see above; crowds, difficult objects and those without area get nothing.

    Args:
        priors: A.
        objects: Of the batch.
        scores: (B, A, C) in 0..1.
        boxes: (B, A, 4) xyxy, predicted.
        topk: Priors per object, at most.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.
    """

    def rule(chunk: Objects, iou: Tensor) -> tuple[Tensor, Tensor]:
        score = scores[chunk.image, :, chunk.labels]
        # The logarithm of t, which itself may underflow.
        return alpha * _log(score) + beta * _log(iou), torch.full_like(chunk.labels, topk)

    real = objects.real.nonzero().squeeze(1)
    claims = _claims(priors, objects.rows(real), boxes, topk, rule)
    claims = _settled(claims, objects.image[real], len(priors.strides), claims.iou)
    row, top = claims.row, claims.rank.new_full((len(real),), -torch.inf)
    top.scatter_reduce_(0, row, claims.rank, "amax")
    most = claims.iou.new_zeros(len(real)).scatter_reduce_(0, row, claims.iou, "amax")
    return _answers(claims, objects, real, (claims.rank - top[row]).exp() * most[row])


@torch.no_grad()
def assign_soft(priors: Priors, objects: Objects, scores: Tensor, boxes: Tensor, *, topk: int = 13) -> Answers:
    """Assignment by dynamic soft labels, see above; arguments as ``assign_tal``'s."""
    wrong = -_log(1 - scores) * scores.square()  # the cost of classes that are not wanted
    rest = wrong.sum(-1)

    def rule(chunk: Objects, iou: Tensor) -> tuple[Tensor, Tensor]:
        score, others = scores[chunk.image, :, chunk.labels], rest[chunk.image]
        others = others - wrong[chunk.image, :, chunk.labels]
        right = -(iou * _log(score) + (1 - iou) * _log(1 - score)) * (iou - score).square()
        count = iou.topk(min(topk, iou.shape[1]), 1).values.sum(1).long().clamp(min=1)
        return _OVERLAP_COST * _log(iou) - right - others, count

    real = objects.real.nonzero().squeeze(1)
    claims = _claims(priors, objects.rows(real), boxes, topk, rule)
    claims = _settled(claims, objects.image[real], len(priors.strides), claims.rank)
    return _answers(claims, objects, real, claims.iou)


def class_mask(priors: Priors, objects: Objects, images: int, classes: int) -> Tensor:
    """(B, A, C) bool: where a class may be told that it is not there.

    False inside crowds and difficult objects for their own class, and at the prior that would answer for a small one.

    Args:
        priors: A.
        objects: Of the batch.
        images: B.
        classes: C.
    """
    mask = torch.ones((images, len(priors.strides), classes), dtype=torch.bool, device=objects.boxes.device)
    regions = objects.rows((objects.crowd | objects.difficult) & (objects.areas > 0))
    for rows in chunks(len(regions.labels), len(priors.strides)):
        region, prior = _within(priors, regions.boxes[rows]).nonzero(as_tuple=True)
        mask[regions.image[rows][region], prior, regions.labels[rows][region]] = False
    return mask


def _log(share: Tensor) -> Tensor:
    return share.clamp(min=_LEAST).log()


def _within(priors: Priors, boxes: Tensor) -> Tensor:
    """(T, A) bool: priors whose point lies inside the boxes (T, 4), or the nearest of the finest level if none does."""
    x, y = priors.centres.unbind(1)
    x1, y1, x2, y2 = boxes[..., None].unbind(1)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    small = (~inside.any(1)).nonzero().squeeze(1)
    finest = (priors.strides[:, 0] == priors.strides.min()).nonzero().squeeze(1)
    middle = (boxes[small, :2] + boxes[small, 2:]) / 2
    inside[small, finest[torch.cdist(middle, priors.centres[finest]).argmin(1)]] = True
    return inside


def _claims(priors: Priors, objects: Objects, boxes: Tensor, topk: int, rule: _Rule) -> _Claims:
    """The priors that each object wants."""
    none, nothing = objects.labels.new_zeros(0), boxes.new_zeros(0)
    found = [_Claims(none, none, nothing, nothing)]
    for rows in chunks(len(objects.labels), 2 * len(priors.strides)):  # twice the numbers of an IoU alone
        chunk = objects.rows(rows)
        inside = _within(priors, chunk.boxes)
        iou = overlap(chunk.boxes[:, None], boxes[chunk.image]) * inside
        rank, count = rule(chunk, iou)
        best = rank.masked_fill_(~inside, -torch.inf).topk(min(topk, rank.shape[1]), 1)
        places = torch.arange(best.values.shape[1], device=rank.device)
        row, place = ((places < count[:, None]) & (best.values > -torch.inf)).nonzero(as_tuple=True)
        prior = best.indices[row, place]
        found.append(_Claims(row + rows.start, prior, iou[row, prior], best.values[row, place]))
    return _Claims(*(torch.cat(column) for column in zip(*found, strict=True)))


def _settled(claims: _Claims, image: Tensor, priors: int, strength: Tensor) -> _Claims:
    """Each claimed slot goes to the object of highest ``strength`` (P,) there, of equal ones to the first."""
    slot = image[claims.row] * priors + claims.prior
    order = strength.argsort(descending=True, stable=True)
    order = order[slot[order].argsort(stable=True)]
    slot = slot[order]
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    return claims.rows(order[first])


def _answers(claims: _Claims, objects: Objects, real: Tensor, quality: Tensor) -> Answers:
    row, served = real[claims.row], torch.zeros_like(real, dtype=torch.bool)
    served[claims.row] = True
    return Answers(objects.image[row], claims.prior, row, quality, (~served).sum())
