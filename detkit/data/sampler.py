"""Which image stands at which position of an epoch, for every process of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Slots(NamedTuple):
    """One batch to be loaded: (B,) positions in the epoch and the (B,) indices of the images that stand there."""

    positions: np.ndarray
    indices: np.ndarray


def repeat_factors(labels: Sequence[np.ndarray], num_classes: int, threshold: float) -> np.ndarray:
    """How often each image should be drawn, relative to one whose classes are all common: (I,) float64 >= 1.

    A class that is in a share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest factor
    of its classes (Gupta et al., "LVIS", 2019, section 4.2).

    Args:
        labels: Of each image's objects.
        num_classes: How many there are.
        threshold: Share of the images from which on a class is common.
    """
    present = [np.unique(np.asarray(row, dtype=np.int64)) for row in labels]
    counts = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]), minlength=num_classes)
    share = counts / max(len(present), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    return np.array([factor[row].max() if len(row) else 1.0 for row in present])


class EpochSampler:
    """Batches of an epoch as a function of (seed, epoch), whatever the number of workers and processes.

    The batches of ``world`` processes side by side are those of one process with ``world * batch`` images.

    Args:
        count: Images.
        batch: Images per batch and process.
        seed: Of the order.
        shuffle: False keeps the order and the last, partial batch, for evaluation. True is for training: a new order
            each epoch and full batches only, so that all processes take the same number of steps; a set smaller than
            one batch is gone through as often as fills it.
        rank: This process.
        world: How many processes.
        weights: (I,) relative frequencies for training; an epoch stays ``count`` positions long. None: all the same.
    """

    def __init__(
        self,
        count: int,
        *,
        batch: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if batch < 1 or count < 1:
            raise ValueError(f"a sampler needs at least one image and a batch of at least 1, got {count} and {batch}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
        if weights is not None and len(weights) != count:
            raise ValueError(f"weights must be ({count},), got {len(weights)}")
        self.count, self.batch, self.seed, self.shuffle = count, batch, seed, shuffle
        self.rank, self.world, self.weights = rank, world, weights

    def order(self, epoch: int) -> np.ndarray:
        """(L,) int64: the image at each position of this epoch."""
        if not self.shuffle:
            return np.arange(self.count)
        rng = np.random.default_rng([self.seed, epoch])
        chosen = np.arange(self.count)
        if self.weights is not None:
            # Systematic sampling: everyone is drawn its expected number of times, rounded up or down.
            edges = np.cumsum(self.weights) * (self.count / self.weights.sum())
            chosen = np.searchsorted(edges, np.arange(self.count) + rng.random()).clip(max=self.count - 1)
        order = rng.permutation(chosen)
        return np.resize(order, max(self.count, self.batch * self.world))

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        together = self.batch * self.world
        if self.shuffle:
            return max(self.count // together, 1)
        full, rest = divmod(self.count, together)
        return full + (rest > self.rank * self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Slots]:
        """This process's batches from number ``start`` on."""
        order = self.order(epoch)
        for step in range(start, len(self)):
            first = (step * self.world + self.rank) * self.batch
            positions = np.arange(first, min(first + self.batch, len(order)))
            yield Slots(positions, order[positions])
