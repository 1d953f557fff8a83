"""The content of one image in the style of another (Gatys, Ecker, Bethge 2016, "Image style transfer using
convolutional neural networks"): the image itself is what learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from detkit.backbones.base import StagedBackbone
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.io.draw import scaled_to

_SMOOTH = 1e-3  # weight of the differences between neighbouring pixels, in units of their standard deviation


def gram(maps: Tensor) -> Tensor:
    """(C, C): of maps (C, H, W), the sums over all places of the products of two channels; what is where is lost."""
    flat = maps.flatten(1)
    return flat @ flat.T


def style_loss(maps: Tensor, wanted: Tensor) -> Tensor:
    """Equation 4 of Gatys et al., with each Gram matrix divided by its number of places, so that sizes may differ.

    1 / (4 C^2) * sum of (G / M - A / M')^2.

    Args:
        maps: (C, H, W), of M places.
        wanted: (C, h, w) of the style image, of M' places.
    """
    channels, places, others = len(maps), maps[0].numel(), wanted[0].numel()
    return (gram(maps) / places - gram(wanted) / others).square().sum() / (4 * channels**2)


def content_loss(maps: Tensor, wanted: Tensor) -> Tensor:
    """Equation 1, as a mean: half the mean of (F - P)^2, both (C, H, W)."""
    return (maps - wanted).square().mean() / 2


def transfer_style(
    network: Detector,
    content: np.ndarray,
    style: np.ndarray,
    *,
    content_stage: int,
    style_stages: Sequence[int],
    beta: float = 1.0,
    alpha: float = 1.0,
    size: int = 256,
    steps: int = 100,
    optimizer: Literal["lbfgs", "adam"] = "lbfgs",
    start: Literal["content", "noise"] = "content",
    seed: int = 0,
    on_step: Callable[[int, float, np.ndarray], None] = lambda step, loss, image: None,
) -> np.ndarray:
    """J = alpha * J_content + beta * J_style made small (equation 7), each stage's J_style being measured in units of
    its own at the start, so that alpha and beta mean the same for every network.

    Args:
        network: Its backbone looks; ``detkit.explain.features.published_network`` makes one.
        content: uint8 (H, W, 3) RGB.
        style: uint8 (h, w, 3) RGB.
        content_stage: Whose maps are to be those of the content.
        style_stages: Whose Gram matrices are to be those of the style.
        beta: Weight of the style.
        alpha: Weight of the content.
        size: Longer side of the result.
        steps: Evaluations of J and its gradient.
        optimizer: L-BFGS as in the paper, or Adam.
        start: From the content, or from noise.
        seed: Of the noise.
        on_step: Told each step, J and the image so far.

    Returns:
        uint8 (H', W', 3) RGB.

    Raises:
        DetkitError: No such stage.
    """
    backbone = network.backbone
    if not isinstance(backbone, StagedBackbone) or not all(
        0 <= stage < len(backbone.stages) for stage in (content_stage, *style_stages)
    ):
        raise DetkitError(
            f"the network has the stages 0 to {len(backbone.stages) - 1}", "--layers", "name some of these"
        )
    wanted = (content_stage, *style_stages)

    def maps_of(x: Tensor) -> list[Tensor]:
        found = []
        for stage in backbone.stages[: max(wanted) + 1]:
            x = stage(x)
            found.append(x[0])
        return [found[stage] for stage in wanted]

    def prepared(image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(scaled_to(image, size).transpose(2, 0, 1), np.float32))[None]
        return network.normalised(pixels.to(network.device))

    network.eval().requires_grad_(False)
    own = prepared(content)
    with torch.no_grad():
        kept, *looks = maps_of(own)[:1] + maps_of(prepared(style))[1:]
        torch.manual_seed(seed)
        x = own.clone() if start == "content" else torch.randn_like(own)
        units = [style_loss(m, w).clamp(min=1e-12) for m, w in zip(maps_of(own)[1:], looks, strict=True)]
        scale = kept.square().mean().clamp(min=1e-12)
    x.requires_grad_()
    solver = (
        torch.optim.LBFGS([x], max_iter=1, history_size=20) if optimizer == "lbfgs" else torch.optim.Adam([x], 0.02)
    )

    def loss() -> Tensor:
        solver.zero_grad()
        found, *made = maps_of(x)
        style_terms = [style_loss(m, w) / unit for m, w, unit in zip(made, looks, units, strict=True)]
        rough = x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()
        value = alpha * content_loss(found, kept) / scale + beta * sum(style_terms) / len(made) + _SMOOTH * rough
        value.backward()
        return value

    for step in range(1, steps + 1):
        value = solver.step(loss)
        on_step(step, value.item(), as_pixels(x, network))
    return as_pixels(x, network)


def as_pixels(x: Tensor, network: Detector) -> np.ndarray:
    """uint8 (H, W, 3) RGB of normalised pixels (1, 3, H, W)."""
    pixels = (x.detach() * network.std + network.mean)[0].permute(1, 2, 0)
    return pixels.round().clamp(0, 255).to("cpu", torch.uint8).numpy()
