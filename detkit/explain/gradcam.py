"""Where an image speaks for a class, told by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.data.loader import collate
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.explain.features import stages_of
from detkit.heads.dense import DenseHead
from detkit.heads.pooling import with_context
from detkit.ops.roi import roi_table
from detkit.structures import Sample


class Cam(NamedTuple):
    """heat (H, W) float32, 0..1, in the image's pixels; label, score: the class and its own, 0..1; stage: whose maps
    were looked at."""

    heat: np.ndarray
    label: int
    score: float
    stage: int


def grad_cam(detector: Detector, image: np.ndarray, label: int | None = None, stage: int | None = None) -> Cam:
    """Where an image, uint8 (H, W, 3) RGB, speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    Equations 1 and 2: the stage's maps, each weighted by the mean of the class logit's gradient in it, summed, and cut
    off below 0. Of a detector it is the logit of the place (prior or region) that answers most for the class.
    label: None for the class of the highest score; stage: None for the deepest one that the answer comes through.

    In R-CNN it is the CNN inside the head that looks, at that one region.

    Raises:
        DetkitError: no such stage, or the answer does not come through it.
    """
    stages = stages_of(detector, stage)
    source = detector.proposals_for_image
    sample = Sample(image, proposals=None if source is None else source(image, ""))
    batch = collate([sample], detector.resize)[0].to(detector.device)
    with _noted(stages, stage) as outputs, torch.enable_grad():  # weights may be frozen: gradients start at the pixels
        features = detector.features(batch.pixels.float().requires_grad_())
    boxes = detector.propose(batch, features)[0]
    with torch.no_grad():
        scores = _scores(detector, detector.head.raw(features, boxes))
    if not len(scores):
        raise DetkitError("no region was proposed in this image", do="give another one")
    label = int(scores.amax(0).argmax()) if label is None else label
    place, score = int(scores[:, label].argmax()), float(scores[:, label].max())
    if boxes is not None:  # the others need no gradient
        boxes, place = [boxes[0][place : place + 1]], 0
    with _noted(stages, stage) as in_region, torch.enable_grad():
        logit = _logits(detector, detector.head.raw(features, boxes))[place, label]
    outputs, window = outputs + in_region, None
    if boxes is not None and in_region:
        pooling: Any = detector.head.pooling
        window = with_context(roi_table(boxes), pooling.size, pooling.padding)[0, 1:]
    gradients = torch.autograd.grad(logit, [output for _, output in outputs], allow_unused=True)
    pairs = [(number, x, g) for (number, x), g in zip(outputs, gradients, strict=True) if g is not None and g.any()]
    if not pairs:
        what = f"the answer for {detector.classes[label]} does not come through stage {stage}"
        if stage is None:  # every unit between is off
            what = f"the answer for {detector.classes[label]} does not depend on what this image shows"
        raise DetkitError(what, do="name another class" if stage is None else "leave --stage out, for the deepest")
    chosen = max(number for number, _, _ in pairs)
    height, width = (int(v) for v in batch.sizes[0])
    heat = torch.zeros(batch.pixels.shape[-2:], device=detector.device)
    for number, x, gradient in pairs:
        if number == chosen:
            weighted = (x.detach() * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
            heat += _spread(weighted, heat.shape, window)
    heat = F.interpolate(heat[None, None, :height, :width], image.shape[:2], mode="bilinear")[0, 0]
    return Cam((heat / heat.max().clamp(min=1e-12)).cpu().numpy(), label, score, chosen)


@contextmanager
def _noted(stages: list[nn.Module], stage: int | None) -> Iterator[list[tuple[int, Tensor]]]:
    """Number and output of each of the stages (of ``stage`` alone) that is called in the block."""
    outputs: list[tuple[int, Tensor]] = []

    def note(number: int) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.append((number, output))

    # A pyramid calls its stages once a scale.
    handles = [module.register_forward_hook(note(k)) for k, module in enumerate(stages) if stage in (None, k)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _spread(cells: Tensor, shape: Sequence[int], window: Tensor | None) -> Tensor:
    """``cells`` (1, 1, h, w), which saw the whole input or its part ``window`` (xyxy), as ``shape`` (H, W) pixels."""
    if window is None:
        return F.interpolate(cells, tuple(shape), mode="bilinear")[0, 0]
    pixels = (torch.arange(side, device=cells.device) + 0.5 for side in shape)
    ends = zip(pixels, window[:2].flip(0), window[2:].flip(0), strict=True)
    grid = torch.meshgrid(*((2 * at - low - high) / (high - low) for at, low, high in ends), indexing="ij")
    spread = F.grid_sample(cells, torch.stack(grid[::-1], -1)[None], padding_mode="border", align_corners=False)[0, 0]
    return spread * (grid[0].abs() <= 1) * (grid[1].abs() <= 1)


def overlaid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A copy of ``image``, uint8 (H, W, 3) RGB, under heat (H, W) of 0..1, from blue to red."""
    from matplotlib import colormaps

    colours = colormaps["turbo"](heat)[..., :3] * 255
    return np.rint((image + colours) / 2).astype(np.uint8)


def _scores(detector: Detector, raw: dict[str, Tensor]) -> Tensor:
    """(A, C), 0..1, of one image: of each prior, of each region, or of the image as a whole."""
    if raw["classes"].ndim == 3:
        scores: Tensor = cast(DenseHead, detector.head).scores(raw)[0]
        return scores
    if "margins" in raw:  # of R-CNN's linear SVMs
        return raw["margins"].sigmoid()
    return raw["classes"].softmax(-1)[:, : len(detector.classes)]


def _logits(detector: Detector, raw: dict[str, Tensor]) -> Tensor:
    """(A, C), of one image, as ``_scores``: before softmax; a prior's objectness and class added up."""
    if raw["classes"].ndim == 3:
        return (raw["objectness"][..., None] + raw["classes"])[0]
    return raw.get("margins", raw["classes"])[:, : len(detector.classes)]
