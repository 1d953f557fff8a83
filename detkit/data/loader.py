"""Samples to batches, in worker processes beside training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detkit.data.resize import Resize
from detkit.structures import Batch, Geometry, Sample, Target


def collate(samples: Sequence[Sample], resize: Resize) -> tuple[Batch, list[Target]]:
    """Samples (any sizes) as one Batch of ``resize.input_size`` and their targets in input pixels (torch, CPU).

    ``Batch.pixels`` is (B, 3, H, W) uint8 in channels_last strides: each picture is written once, straight into its
    place. Boxes are those of the samples, moved with their pictures; sizes are the contents' (height, width).
    """
    height, width = resize.input_size
    pixels = torch.empty((len(samples), height, width, 3), dtype=torch.uint8)
    rows = pixels.numpy()
    restore: list[Geometry] = []
    sizes = np.empty((len(samples), 2), np.int64)
    targets = []
    for i, sample in enumerate(samples):
        sizes[i] = resize.content(*sample.image.shape[:2])
        geometry = resize(sample.image, out=rows[i])[1]
        restore.append(geometry)
        targets.append(moved_target(sample.target, geometry).to("cpu"))
    proposals = None
    if any(sample.proposals is not None for sample in samples):
        proposals = [
            torch.from_numpy(g.to_input(s.proposals) if s.proposals is not None else np.zeros((0, 4), np.float32))
            for s, g in zip(samples, restore, strict=True)
        ]
    batch = Batch(
        pixels.permute(0, 3, 1, 2),
        torch.from_numpy(sizes),
        tuple(restore),
        tuple(s.image_id for s in samples),
        tuple(s.path for s in samples),
        proposals,
    )
    return batch, targets


def moved_target(target: Target, geometry: Geometry) -> Target:
    """``target`` (numpy, original pixels) in input pixels: boxes, areas and points."""
    boxes = geometry.to_input(target.boxes)
    area = target.area * np.float32(geometry.scale_x * geometry.scale_y)
    points = target.points
    if points is not None:
        points = points.copy()
        points[..., 0] = points[..., 0] * geometry.scale_x + geometry.left
        points[..., 1] = points[..., 1] * geometry.scale_y + geometry.top
    return replace(target, boxes=boxes, area=area, points=points)
