"""Where a picture speaks for a class, told by gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.data.loader import collate
from detkit.detector import Detector
from detkit.engine.inspect import check_stage
from detkit.errors import DetkitError
from detkit.structures import Sample


class Cam(NamedTuple):
    """heat (H, W) float32, 0..1, in the picture's pixels; label, score: the class and its own, 0..1; stage: whose maps
    were looked at."""

    heat: np.ndarray
    label: int
    score: float
    stage: int


def grad_cam(detector: Detector, image: np.ndarray, label: int | None = None, stage: int | None = None) -> Cam:
    """Where a picture, uint8 (H, W, 3) RGB, speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    Equations 1 and 2: the stage's maps, each weighted by the mean of the class logit's gradient in it, summed, and cut
    off below 0. Of a detector it is the logit of the place (prior or region) that answers most for the class.
    label: None for the class of the highest score; stage: None for the deepest one that the answer comes through.

    Raises:
        DetkitError: no such stage, or the answer does not come through it; a backbone that only hands pixels on.
    """
    stages = detector.backbone.stages
    if not any(True for _ in detector.backbone.parameters()):
        raise DetkitError("this model's backbone only hands the pixels on", do="inspect the CNN that its head holds")
    if stage is not None:
        check_stage(detector, stage)
    source = detector.of_image
    sample = Sample(image, proposals=None if source is None else source(image, ""))
    batch = collate([sample], detector.resize)[0].to(detector.device)
    outputs: list[tuple[int, Tensor]] = []

    def noted(number: int) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.append((number, output))

    # A pyramid calls its stages once a scale.
    handles = [module.register_forward_hook(noted(k)) for k, module in enumerate(stages) if stage in (None, k)]
    try:
        with torch.enable_grad():  # the weights may be frozen: gradients start at the pixels
            features = detector.features(batch.pixels.float().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    boxes = detector.propose(batch, features)[0]
    with torch.no_grad():
        scores = _scores(detector, detector.head.raw(features, boxes))
    if not len(scores):
        raise DetkitError("no region was proposed in this picture", do="give another one")
    label = int(scores.amax(0).argmax()) if label is None else label
    place, score = int(scores[:, label].argmax()), float(scores[:, label].max())
    if boxes is not None:  # the others need no gradient
        boxes, place = [boxes[0][place : place + 1]], 0
    with torch.enable_grad():
        logit = _logits(detector, detector.head.raw(features, boxes))[place, label]
    gradients = torch.autograd.grad(logit, [output for _, output in outputs], allow_unused=True)
    pairs = [(number, x, g) for (number, x), g in zip(outputs, gradients, strict=True) if g is not None and g.any()]
    if not pairs:
        what = f"the answer for {detector.classes[label]} does not come through stage {stage}"
        if stage is None:  # every unit between is off
            what = f"the answer for {detector.classes[label]} does not depend on what this picture shows"
        raise DetkitError(what, do="name another class" if stage is None else "leave --stage out, for the deepest")
    chosen = max(number for number, _, _ in pairs)
    height, width = (int(v) for v in batch.sizes[0])
    heat = torch.zeros(batch.pixels.shape[-2:], device=detector.device)
    for number, x, gradient in pairs:
        if number == chosen:
            weighted = (x.detach() * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
            heat += F.interpolate(weighted, heat.shape, mode="bilinear")[0, 0]
    heat = F.interpolate(heat[None, None, :height, :width], image.shape[:2], mode="bilinear")[0, 0]
    return Cam((heat / heat.max().clamp(min=1e-12)).cpu().numpy(), label, score, chosen)


def overlaid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A copy of ``image``, uint8 (H, W, 3) RGB, under heat (H, W) of 0..1, from blue to red."""
    from matplotlib import colormaps

    colours = colormaps["turbo"](heat)[..., :3] * 255
    return np.rint((image + colours) / 2).astype(np.uint8)


def _scores(detector: Detector, raw: dict[str, Tensor]) -> Tensor:
    """(A, C), 0..1, of one picture: of each prior, of each region, or of the picture as a whole."""
    if raw["classes"].ndim == 3:
        scores: Tensor = detector.head.scores(raw)[0]
        return scores
    return raw["classes"].softmax(-1)[:, : len(detector.classes)]


def _logits(detector: Detector, raw: dict[str, Tensor]) -> Tensor:
    """(A, C), of one picture, as ``_scores``: before softmax; a prior's objectness and class added up."""
    if raw["classes"].ndim == 3:
        return (raw["objectness"][..., None] + raw["classes"])[0]
    return raw["classes"][:, : len(detector.classes)]
