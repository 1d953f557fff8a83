"""Sliding windows: every box of some sizes and shapes on a grid, as detectors looked before proposals were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from detkit.interfaces import ProposalSource

if TYPE_CHECKING:
    from torch import Tensor

    from detkit.structures import Batch

WINDOWS = (64, 128, 256)
ASPECTS = (0.5, 1.0, 2.0)


def sliding_windows(
    size: Sequence[int], *, windows: Sequence[float] = WINDOWS, aspects: Sequence[float] = ASPECTS, stride: float = 0.25
) -> np.ndarray:
    """All windows that lie inside an image.

    Windows start at the upper left corner, so one of width w has floor((W - w) / step) + 1 places in a row; one that is
    larger than the image has none. Sides and steps are whole pixels.

    Args:
        size: Height and width of the image in pixels.
        windows: Side in pixels of the square of the same area.
        aspects: Width / height.
        stride: Steps as a share of the window's own width and height, at least one pixel.

    Returns:
        (N, 4) float32 xyxy, in the order windows, aspects, rows, columns.

    Raises:
        ValueError: A size, window, aspect or stride that is not above 0, or a stride above 1 (it would leave gaps).
    """
    if len(size) != 2 or any(side < 1 for side in size):
        raise ValueError(f"size must be (height, width), both at least 1, got {tuple(size)}")
    for name, values in (("windows", windows), ("aspects", aspects)):
        if not len(values) or not all(0 < value < np.inf for value in values):
            raise ValueError(f"{name} must be numbers above 0, got {list(values)}")
    if not 0 < stride <= 1:
        raise ValueError(f"stride must lie above 0 and up to 1, got {stride}")
    found = [np.zeros((0, 4), np.float32)]
    for side in windows:
        for aspect in aspects:
            w, h = (max(round(float(side * factor)), 1) for factor in (aspect**0.5, aspect**-0.5))
            xs = np.arange(0, size[1] - w + 1, max(round(stride * w), 1))
            ys = np.arange(0, size[0] - h + 1, max(round(stride * h), 1))
            x, y = (grid.ravel() for grid in np.meshgrid(xs, ys))
            found.append(np.stack([x, y, x + w, y + h], axis=1).astype(np.float32))
    return np.concatenate(found)


class Windows(ProposalSource):
    """Sliding windows of each image's part of the input as proposals.

    Args:
        channels: Not used.
        strides: Not used.
        windows: As for ``sliding_windows``.
        aspects: As for ``sliding_windows``.
        stride: As for ``sliding_windows``.
        max: Windows kept per image, evenly chosen from all (0: all of them).
    """

    def __init__(
        self,
        channels: Sequence[int] = (),
        strides: Sequence[int] = (),
        *,
        windows: tuple[float, ...] = WINDOWS,
        aspects: tuple[float, ...] = ASPECTS,
        stride: float = 0.25,
        max: int = 0,
    ) -> None:
        if max < 0:
            raise ValueError(f"max must be 0 or more, got {max}")
        self.windows = partial(sliding_windows, windows=windows, aspects=aspects, stride=stride)
        self.max_proposals = max
        self.of_size(1, 1)  # checks the arguments

    def of_size(self, height: int, width: int) -> np.ndarray:
        """(N, 4) float32: the windows of an image of ``height`` x ``width`` pixels."""
        boxes = self.windows((height, width))
        if not self.max_proposals or len(boxes) <= self.max_proposals:
            return boxes
        return boxes[np.arange(self.max_proposals) * len(boxes) // self.max_proposals]

    def propose(self, batch: Batch, features: list[Tensor], training: bool) -> tuple[list[Tensor], None]:
        """The windows of each image, in input pixels, on the batch's device."""
        import torch

        made = {size: torch.from_numpy(self.of_size(*size)) for size in set(map(tuple, batch.sizes.tolist()))}
        return [made[tuple(size)].to(batch.pixels.device) for size in batch.sizes.tolist()], None
