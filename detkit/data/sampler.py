"""Which image stands at which position of an epoch, for every process of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

# One batch to be loaded: of each image its position in the epoch and its index.
Slots = list[tuple[int, int]]


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


@dataclass(eq=False)
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
        identities: (I,) int64, what each image shows; a batch then has ``per_identity`` images of each that it has (P x
            K sampling, Hermans et al. 2017, arXiv 1703.07737, section 2), twice the same where there are too few.
        per_identity: K, a divisor of ``batch``.
    """

    count: int
    _: KW_ONLY
    batch: int
    seed: int = 0
    shuffle: bool = False
    rank: int = 0
    world: int = 1
    weights: np.ndarray | None = None
    identities: np.ndarray | None = None
    per_identity: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.count < 1:
            what = "a sampler needs at least one image and a batch of at least 1"
            raise ValueError(f"{what}, got {self.count} and {self.batch}")
        if self.identities is not None and self.batch % self.per_identity:
            raise ValueError(f"batch must be a multiple of per_identity, got {self.batch} and {self.per_identity}")

    def order(self, epoch: int) -> np.ndarray:
        """(L,) int64: the image at each position of this epoch."""
        if not self.shuffle:
            return np.arange(self.count)
        rng = np.random.default_rng([self.seed, epoch])
        if self.identities is not None:
            images = np.argsort(self.identities, kind="stable")
            groups = np.split(images, np.flatnonzero(np.diff(self.identities[images])) + 1)
            turns = np.resize(rng.permutation(len(groups)), len(self) * self.batch * self.world // self.per_identity)
            drawn = [
                rng.choice(g, self.per_identity, len(g) < self.per_identity) for g in map(groups.__getitem__, turns)
            ]
            return np.concatenate(drawn)
        chosen = np.arange(self.count)
        if self.weights is not None:
            # Systematic sampling: everyone is drawn its expected number of times, rounded up or down.
            edges = np.cumsum(self.weights) * (self.count / self.weights.sum())
            chosen = np.searchsorted(edges, np.arange(self.count) + rng.random()).clip(max=self.count - 1)
        return np.resize(rng.permutation(chosen), max(self.count, self.batch * self.world))

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        together = self.batch * self.world
        if self.shuffle:
            return max(self.count // together, 1)
        return len(range(self.rank * self.batch, self.count, together))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Slots]:
        """This process's batches from number ``start`` on."""
        order = self.order(epoch)
        for step in range(start, len(self)):
            first = (step * self.world + self.rank) * self.batch
            yield list(enumerate(order[first : first + self.batch].tolist(), first))
