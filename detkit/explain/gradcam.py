"""Where an image speaks for a class, told by gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.explain.features import stages_of
from detkit.heads.dense import GridHead
from detkit.heads.roi import RoIHead
from detkit.heads.trunk import with_context
from detkit.interfaces import Raw
from detkit.ops.roi import roi_table
from detkit.structures import Sample

Outputs = list[tuple[int, Tensor]]  # of stages, by number


class Cam(NamedTuple):
    """Where an image speaks for a class.

    Attributes:
        heat: (H, W) float32, 0..1, in the image's pixels.
        label: The class.
        score: Its own, 0..1.
        stage: Whose maps were looked at.
    """

    heat: np.ndarray
    label: int
    score: float
    stage: int


def grad_cam(detector: Detector, image: np.ndarray, label: int | None = None, stage: int | None = None) -> Cam:
    """Where an image speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    Equations 1 and 2: the stage's maps, each weighted by the mean of the class logit's gradient in it, summed, and cut
    off below 0. Of a detector it is the logit of the place (prior or region) that answers most for the class. In R-CNN
    it is the CNN inside the head that looks, at that one region.

    Args:
        detector: A detector or classifier.
        image: uint8 (H, W, 3) RGB.
        label: Of the class; None: that of the highest score.
        stage: Of the backbone, from 0; None: the deepest one that the answer comes through.

    Raises:
        DetkitError: No such stage, or the answer does not come through it.
    """
    stages = stages_of(detector, stage)
    batch = detector.batch_of([Sample(image)])
    size = batch.pixels.new_tensor(batch.pixels.shape[:1:-1], dtype=torch.float32)  # width, height
    seen = torch.cat((torch.zeros_like(size), size))  # what the stages are shown of the input
    with _noted(stages, stage) as outputs, torch.enable_grad():  # weights may be frozen: gradients start at the pixels
        features = detector.features(batch.pixels.float().requires_grad_())
    boxes = detector.propose(batch, features)[0]
    with torch.no_grad():
        scores = _answers(detector, detector.head.raw(features, boxes))[0]
    if not len(scores):
        raise DetkitError("no region was proposed in this image", do="give another one")
    label = int(scores.amax(0).argmax()) if label is None else label
    place, score = int(scores[:, label].argmax()), float(scores[:, label].max())
    if boxes is not None:  # the others need no gradient
        boxes, place = [boxes[0][place : place + 1]], 0
    with _noted(stages, stage) as in_region, torch.enable_grad():
        logit = _answers(detector, detector.head.raw(features, boxes))[1][place, label]
    if boxes is not None and in_region and isinstance(detector.head, RoIHead):
        pooling = detector.head.pooling
        seen = with_context(roi_table(boxes), pooling.size, pooling.padding)[0, 1:]
    outputs += in_region
    gradients = torch.autograd.grad(logit, [output for _, output in outputs], allow_unused=True)
    pairs = [(number, x, g) for (number, x), g in zip(outputs, gradients, strict=True) if g is not None and g.any()]
    if not pairs:
        what, do = f"does not come through stage {stage}", "leave --stage out, for the deepest"
        if stage is None:  # every unit between is off
            what, do = "does not depend on what this image shows", "name another class"
        raise DetkitError(f"the answer for {detector.classes[label]} {what}", do=do)
    chosen = max(number for number, _, _ in pairs)
    summed = [(x.detach() * g.mean((2, 3), keepdim=True)).sum(1, keepdim=True) for k, x, g in pairs if k == chosen]
    heat = torch.stack([_spread(cells.relu(), size, seen) for cells in summed]).sum(0)
    rows, columns = batch.sizes[0].tolist()
    heat = F.interpolate(heat[None, None, :rows, :columns], image.shape[:2], mode="bilinear")[0, 0]
    return Cam((heat / heat.max().clamp(min=1e-12)).cpu().numpy(), label, score, chosen)


@contextmanager
def _noted(stages: list[nn.Module], stage: int | None) -> Iterator[Outputs]:
    """Number and output of each of the stages (of ``stage`` alone) that is called in the block; a pyramid calls its
    stages once per scale."""
    outputs: Outputs = []

    def note(number: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append((number, output))

    with ExitStack() as hooks:
        for k, module in enumerate(stages):
            if stage in (None, k):
                hooks.enter_context(module.register_forward_hook(partial(note, k)))
        yield outputs


def _spread(cells: Tensor, size: Tensor, window: Tensor) -> Tensor:
    """``cells`` (1, 1, h, w), which saw the part ``window`` (xyxy) of an input of ``size`` (width, height): as (H, W)
    pixels of it, 0 outside."""
    side = window[2:] - window[:2]
    matrix = torch.cat(((size / side).diag(), ((size - window[:2] - window[2:]) / side)[:, None]), dim=1)
    grid = F.affine_grid(matrix[None], [1, 1, *size.int().flip(0).tolist()], align_corners=False)
    spread = F.grid_sample(cells, grid, padding_mode="border", align_corners=False)[0, 0]
    return spread * (grid[0].abs() <= 1).all(-1)


def _answers(detector: Detector, raw: Raw) -> tuple[Tensor, Tensor]:
    """(A, C) of one image's priors or regions, or of it as a whole: scores, 0..1, and what they come from.

    A prior's objectness and class are added up.
    """
    if isinstance(detector.head, GridHead):
        logits = raw["classes"] + raw["objectness"][..., None] if "objectness" in raw else raw["classes"]
        return detector.head.scores(raw)[0], logits[0]
    if "margins" in raw:  # of R-CNN's linear SVMs
        return raw["margins"].sigmoid(), raw["margins"]
    count = len(detector.classes)  # background comes last
    return raw["classes"].softmax(-1)[:, :count], raw["classes"][:, :count]
