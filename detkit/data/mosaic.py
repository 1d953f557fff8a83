"""Augmentations that join several images: mosaic and mixup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from detkit.data.resize import moved_target
from detkit.data.warp import Warp
from detkit.geometry import Geometry
from detkit.structures import Sample, Target

Placer = Callable[[Sample, tuple[int, int], np.random.Generator], Warp]


def joined(targets: Sequence[Target]) -> Target:
    """The objects of several targets (numpy) as those of one image; points only where all of them have some."""
    names = ["boxes", "labels", "crowd", "difficult", "area", "weight"]
    if all(t.points is not None for t in targets):
        names.append("points")
    columns: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in targets]) for name in names}
    return Target(**columns)


def mosaic_of(
    samples: Sequence[Sample],
    size: tuple[int, int],
    rng: np.random.Generator,
    place: Placer,
    *,
    fill: int,
    min_visible: float,
) -> Sample:
    """Four images around a random point of one (Bochkovskiy et al., "YOLOv4", 2020, section 3.4).

    Each is resampled once, straight into its place. Image id and path are those of the first.

    Args:
        samples: Four, without proposals.
        size: (height, width) of the output.
        rng: Draws the point.
        place: (sample, quadrant's size, rng) to where in its quadrant an image goes.
        fill: Grey of what no image covers.
        min_visible: See ``detkit.data.warp.visible``.
    """
    if len(samples) != 4:
        raise ValueError(f"a mosaic joins 4 images, got {len(samples)}")
    if any(sample.proposals is not None for sample in samples):
        raise ValueError("a mosaic cannot carry proposals: switch augment.mosaic off for this family")
    height, width = size
    x, y = (int(side * rng.uniform(0.3, 0.7)) for side in (width, height))
    quadrants = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    image = np.empty((height, width, 3), np.uint8)
    targets = []
    for sample, (x1, y1, x2, y2) in zip(samples, quadrants, strict=True):
        warp = place(sample, (y2 - y1, x2 - x1), rng)
        warp.image(sample.image, image[y1:y2, x1:x2], fill)
        place_of = Geometry(x2 - x1, y2 - y1, left=x1, top=y1)
        targets.append(moved_target(warp.target(sample.target, min_visible), place_of))
    return samples[0].replace(image=image, target=joined(targets))


def mixup_of(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Two images of one size blended, with the objects of both (Zhang et al., Bag of Freebies, 2019, section 3.1).

    The share of each is drawn from Beta(1.5, 1.5) and is the weight of its objects in the loss.
    """
    if first.proposals is not None or second.proposals is not None:
        raise ValueError("mixup cannot carry proposals: switch augment.mixup off for this family")
    share = float(rng.beta(1.5, 1.5))
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    parts = [
        replace(sample.target, weight=sample.target.weight * np.float32(weight))
        for sample, weight in ((first, share), (second, 1 - share))
    ]
    return first.replace(image=image, target=joined(parts))
