"""Which prior answers for which object: three-state assignment (positive, ignored, negative) for a whole batch.

There is no loop over images. Objects of all images stand in one table (``Objects``), and pairs of objects and priors
are compared in chunks that stay below 256 MB, so 5000 boxes per image are slow, never too many.

**Collisions.** A slot (an image's prior) holds one object. Where several claim it, the smallest in area gets it, for it
has the fewest other slots to go to; of equal ones the first in the target. ``Assignment.lost`` counts the objects that
are left without any slot.

**Ignored regions.** Crowds and difficult objects are neither to be found nor background: the slots that they would have
been given and the priors that they overlap (more than half of the prior for a crowd, IoU above 0.5 for a difficult
object) are not negative. Objects without positive area are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.coder import Level

CHUNK_BYTES = 256 * 2**20
_BYTES_PER_PAIR = 64  # the float32 intermediates of one object-prior pair, measured
_IGNORED_OVERLAP = 0.5


class Objects(NamedTuple):
    """All labelled objects of a batch, one row each, in the order of the images.

    Attributes:
        boxes: (T, 4) float32 xyxy, input pixels.
        labels: (T,) int64.
        image: (T,) int64, the place in the batch.
        weight: (T,) float32.
        crowd: (T,) bool.
        difficult: (T,) bool.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    weight: Tensor
    crowd: Tensor
    difficult: Tensor

    def rows(self, index: Tensor | slice) -> Objects:
        """The objects at ``index`` (bool mask, int64 or slice)."""
        return Objects(*(column[index] for column in self))

    @property
    def areas(self) -> Tensor:
        """(T,) float32."""
        return (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])

    @property
    def real(self) -> Tensor:
        """(T,) bool: to be found, that is neither crowd nor difficult, and of some area."""
        return ~(self.crowd | self.difficult) & (self.areas > 0)


class Assignment(NamedTuple):
    """Which priors answer for which objects.

    Attributes:
        positive: (P, 3) int64: image, prior, object (a row of ``Objects``), sorted by image and prior, every slot once.
        ignore: (B, A) bool: priors that are neither positive nor negative.
        lost: 0-d int64, objects left without a slot.
    """

    positive: Tensor
    ignore: Tensor
    lost: Tensor


class Regions(NamedTuple):
    """What regions (R, 4) of one image show.

    Attributes:
        iou: (R,), the highest with an object.
        row: (R,) int64, that object, of those it was looked for among.
        ignore: (R,) bool: it shows a crowd or a difficult object, and no other.
    """

    iou: Tensor
    row: Tensor
    ignore: Tensor


def assign_midpoint(
    levels: Sequence[Level],
    objects: Objects,
    images: int,
    *,
    ignore_above: float | None = None,
    pred: Tensor | None = None,
) -> Assignment:
    """Each object belongs to the cell of its midpoint and the anchor (of all levels) of best shape IoU.

    Every other prior is negative (YOLO as textbooks tell it). Equal anchors: the first.

    Args:
        levels: The grids.
        objects: Of the batch.
        images: How many.
        ignore_above: Priors whose predicted box overlaps any object by more than this IoU are ignored (Darknet's rule,
            YOLOv3 section 2.1).
        pred: (B, A, 4) xyxy, the predicted boxes.

    Raises:
        ValueError: ``ignore_above`` comes without boxes.
    """
    assignment = _settle(_grid_claims(levels, objects, ratio=None, neighbours=False), levels, objects, images)
    if ignore_above is None:
        return assignment
    if pred is None:
        raise ValueError("ignore_above compares predicted boxes with the objects: give pred (B, A, 4)")
    near = _overlapping(pred.detach(), objects.rows(objects.areas > 0), images, ignore_above, crowd_rule=False)
    return assignment._replace(ignore=_except_positive(assignment.ignore | near, assignment.positive))


def assign_ratio(
    levels: Sequence[Level], objects: Objects, images: int, *, ratio: float = 3.5, neighbours: bool = True
) -> Assignment:
    """Each object claims, for every anchor whose width and height are within a factor ``ratio`` of its own, the cell of
    its midpoint and (``neighbours``) the nearest cell on the left or right and the nearest above or below.

    An object that no anchor fits goes to the anchor of best shape IoU, so none is dropped. This gives many positives
    per object and trains fast (the rule of YOLOv5 and its successors in spirit).

    Args:
        levels: The grids.
        objects: Of the batch.
        images: How many.
        ratio: The factor.
        neighbours: Claim the two neighbouring cells too.
    """
    return _settle(_grid_claims(levels, objects, ratio=ratio, neighbours=neighbours), levels, objects, images)


def assign_iou(
    priors: Tensor, objects: Objects, images: int, *, positive: float = 0.7, negative: float = 0.3, best: bool = True
) -> Assignment:
    """Priors (A, 4) xyxy by IoU with the objects: positive from ``positive`` up (for the object of highest IoU),
    negative below ``negative``, ignored between (Faster R-CNN, section 3.1.2).

    Args:
        priors: (A, 4) xyxy.
        objects: Of the batch.
        images: How many.
        positive: An IoU.
        negative: An IoU.
        best: An object's best priors are positive at any IoU above 0, so that no object goes unanswered.
    """
    real = objects.real
    wanted = objects.rows(real)
    highest = priors.new_zeros(images, len(priors))
    for rows in chunks(len(wanted.labels), len(priors)):
        iou = overlap(wanted.boxes[rows, None], priors[None])
        index = wanted.image[rows, None].expand(-1, len(priors))
        highest.scatter_reduce_(0, index, iou, "amax")
    found = []
    for rows in chunks(len(wanted.labels), len(priors)):
        iou = overlap(wanted.boxes[rows, None], priors[None])
        claim = (iou >= positive) & (iou == highest[wanted.image[rows]])
        if best:
            claim |= (iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)
        row, prior = claim.nonzero(as_tuple=True)
        found.append(torch.stack((row + rows.start, prior)))
    row, prior = torch.cat(found, dim=1) if found else priors.new_zeros((2, 0), dtype=torch.int64)
    chosen, lost = _resolve(prior, real.nonzero().squeeze(1)[row], objects, len(priors))
    regions = objects.rows((objects.crowd | objects.difficult) & (objects.areas > 0))
    ignore = (highest >= negative) | _overlapping(priors, regions, images, _IGNORED_OVERLAP, crowd_rule=True)
    return Assignment(chosen, _except_positive(ignore, chosen), lost)


def label_regions(boxes: Tensor, objects: Objects, positive: float = 0.5) -> Regions:
    """What boxes of one image show of its objects (Fast R-CNN, section 2.3).

    Args:
        boxes: (R, 4) xyxy.
        objects: Of that image; of several of equal IoU the first counts.
        positive: The IoU from which a box shows an object.
    """
    iou, row = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    real = objects.real.nonzero().squeeze(1)
    for rows in chunks(len(real), len(boxes)):
        best, at = overlap(objects.boxes[real[rows], None], boxes[None]).max(dim=0)
        better = best > iou
        iou, row = torch.where(better, best, iou), torch.where(better, real[rows][at], row)
    regions = objects.rows((objects.crowd | objects.difficult) & (objects.areas > 0))
    regions = regions._replace(image=torch.zeros_like(regions.image))
    ignore = _overlapping(boxes, regions, 1, _IGNORED_OVERLAP, crowd_rule=True)[0]
    return Regions(iou, row, ignore & (iou < positive))


def draw(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows that are true, drawn without replacement.

    Args:
        among: (N,) bool.
        count: At most so many.
        generator: On the CPU, whatever ``among`` is on.

    Returns:
        Indices (K,) int64.
    """
    places = among.nonzero().squeeze(1)
    return places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]


def _grid_claims(
    levels: Sequence[Level], objects: Objects, ratio: float | None, neighbours: bool
) -> tuple[Tensor, Tensor]:
    """(prior, object): int64 pairs, every slot of a grid that an object asks for."""
    found = [
        _claims_of_rows(levels, objects.boxes[rows], ratio, neighbours, rows.start)
        # Each anchor makes at most three claims of a few int64 numbers.
        for rows in chunks(len(objects.labels), 5 * sum(len(level.anchors) for level in levels))
    ]
    empty = objects.labels.new_zeros(0)
    prior, row = (torch.cat(column) for column in zip(*found, strict=True)) if found else (empty, empty)
    keep = (objects.areas > 0)[row]
    return prior[keep], row[keep]


def _claims_of_rows(
    levels: Sequence[Level], boxes: Tensor, ratio: float | None, neighbours: bool, start: int
) -> tuple[Tensor, Tensor]:
    anchors = torch.cat([level.anchors for level in levels]).to(boxes)
    sizes = (boxes[:, 2:] - boxes[:, :2])[:, None]
    smaller = torch.minimum(sizes, anchors).prod(-1)
    # The union is clamped for boxes without area, which are left out later.
    shape_iou = smaller / (sizes.prod(-1) + anchors.prod(-1) - smaller).clamp(min=1e-9)
    fits = torch.zeros_like(shape_iou, dtype=torch.bool).scatter_(1, shape_iou.argmax(1, keepdim=True), True)
    if ratio is not None:
        scale = sizes / anchors
        near = torch.maximum(scale, 1 / scale).amax(-1) < ratio
        fits = torch.where(near.any(1, keepdim=True), near, fits)
    row, anchor = fits.nonzero(as_tuple=True)

    numbers, strides, origins, offset = [], [], [], 0
    for level in levels:
        k = len(level.anchors)
        numbers += [(level.width, level.height, offset + slot, k) for slot in range(k)]
        strides += [level.stride] * k
        origins += [level.centre - level.stride / 2] * k
        offset += level.total
    width, height, first, per_cell = anchor.new_tensor(numbers)[anchor].unbind(1)
    place = (boxes[row, :2] + boxes[row, 2:]) / 2 - boxes.new_tensor(origins)[anchor, None]
    place = place / boxes.new_tensor(strides)[anchor, None]
    last = torch.stack((width, height), dim=1) - 1
    # A midpoint on the right or bottom edge belongs to the last cell.
    cell = place.floor().long().clamp(min=0).minimum(last)
    cells = cell[None]
    if neighbours:
        step = torch.where(place - cell < 0.5, -1, 1)
        cells = torch.stack((cell, cell + step * step.new_tensor((1, 0)), cell + step * step.new_tensor((0, 1))))
    inside = ((cells >= 0) & (cells <= last)).all(-1)
    prior = first + (cells[..., 1] * width + cells[..., 0]) * per_cell
    return prior[inside], (row + start).expand(len(cells), -1)[inside]


def _settle(claims: tuple[Tensor, Tensor], levels: Sequence[Level], objects: Objects, images: int) -> Assignment:
    """Gives each claimed slot to one object and marks what is ignored."""
    prior, row = claims
    total = sum(level.total for level in levels)
    real = objects.real[row]
    positive, lost = _resolve(prior[real], row[real], objects, total)
    regions = objects.rows((objects.crowd | objects.difficult) & (objects.areas > 0))
    ignore = torch.zeros((images, total), dtype=torch.bool, device=objects.boxes.device)
    if len(regions.labels):
        boxes = torch.cat([level.priors().boxes for level in levels])
        ignore |= _overlapping(boxes, regions, images, _IGNORED_OVERLAP, crowd_rule=True)
        ignore[objects.image[row[~real]], prior[~real]] = True
    return Assignment(positive, _except_positive(ignore, positive), lost)


def _resolve(prior: Tensor, row: Tensor, objects: Objects, priors: int) -> tuple[Tensor, Tensor]:
    """(positive (P, 3), lost): every claimed slot goes to the smallest claimant, of equal ones to the first."""
    count = len(objects.labels)
    rank = torch.empty_like(objects.image)
    rank[objects.areas.argsort(stable=True)] = torch.arange(count, device=rank.device)
    slot = objects.image[row] * priors + prior
    order = (slot * max(count, 1) + rank[row]).argsort()
    slot, row = slot[order], row[order]
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    served = torch.zeros(count, dtype=torch.bool, device=rank.device)
    asked = served.clone()
    asked[row] = True
    served[row[first]] = True
    slot, row = slot[first], row[first]
    return torch.stack((slot // priors, slot % priors, row), dim=1), (asked & ~served).sum()


def _except_positive(ignore: Tensor, positive: Tensor) -> Tensor:
    ignore = ignore.clone()
    ignore[positive[:, 0], positive[:, 1]] = False
    return ignore


def _overlapping(boxes: Tensor, objects: Objects, images: int, threshold: float, crowd_rule: bool) -> Tensor:
    """(B, A) bool: boxes (A, 4), or (B, A, 4) one set per image, that some object of the image overlaps by more.

    Overlap is IoU; with ``crowd_rule``, for crowds, the share of the box that lies inside the crowd's.
    """
    priors = boxes.shape[-2]
    hits = torch.zeros((images, priors), dtype=torch.int32, device=boxes.device)
    for rows in chunks(len(objects.labels), priors):
        image = objects.image[rows]
        against = boxes[None] if boxes.ndim == 2 else boxes[image]
        inside = objects.crowd[rows, None] if crowd_rule else None
        over = overlap(objects.boxes[rows, None], against, inside) > threshold
        hits.index_add_(0, image, over.to(torch.int32))
    return hits > 0


def overlap(objects: Tensor, boxes: Tensor, inside: Tensor | None = None) -> Tensor:
    """IoU of (T, 1, 4) and (T or 1, A, 4) -> (T, A); where ``inside`` (T, 1), intersection over the box's own area."""
    x1, y1, x2, y2 = objects.unbind(-1)
    u1, v1, u2, v2 = boxes.unbind(-1)
    common = (x2.minimum(u2) - x1.maximum(u1)).clamp(min=0) * (y2.minimum(v2) - y1.maximum(v1)).clamp(min=0)
    own = (u2 - u1) * (v2 - v1)
    whole = own + (x2 - x1) * (y2 - y1) - common
    if inside is not None:
        whole = torch.where(inside, own, whole)
    return common / whole.clamp(min=1e-9)


def chunks(rows: int, pairs_per_row: int) -> Iterator[slice]:
    """Slices of ``rows`` objects whose pairs stay below ``CHUNK_BYTES``."""
    step = max(1, CHUNK_BYTES // (_BYTES_PER_PAIR * max(pairs_per_row, 1)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
