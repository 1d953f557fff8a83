"""Labelled images in one grid, also after augmentation."""

from __future__ import annotations

import numpy as np

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset
from detkit.data.resize import Resize, moved_target
from detkit.errors import DetkitError
from detkit.io.draw import draw_target, sheet
from detkit.structures import Sample


def sample_grid(samples: list[Sample], classes: tuple[str, ...], *, tile: int = 320, columns: int = 0) -> np.ndarray:
    """The samples with their labels drawn: uint8 (H, W, 3) RGB.

    Args:
        samples: Any sizes.
        classes: Names by label.
        tile: Each sample is fitted into so many pixels along each side.
        columns: 0: somewhat more columns than rows.
    """
    resize, drawn = Resize((tile, tile), stride=1), []
    for sample in samples:
        # Drawn after the fit, so that captions are legible whatever the image's size.
        image, geometry = resize(sample.image)
        drawn.append(draw_target(image, moved_target(sample.target, geometry), classes))
    return sheet(drawn, columns=columns)


def labelled_samples(dataset: Dataset, count: int, seed: int = 0) -> tuple[list[Sample], list[str]]:
    """Up to ``count`` samples (seeded; images with objects come first), and the messages of unreadable images.

    Raises:
        DetkitError: None could be read.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    empty = np.asarray([len(dataset.labels_of(int(i))) == 0 for i in order], dtype=bool)
    failures: list[DetkitError] = []
    readable = dataset.readable(order[np.argsort(empty, kind="stable")][:count].tolist(), failures)
    samples = [sample for _, sample in readable]
    return samples, [f"{failure.where}: {failure.what}" for failure in failures]


def augmented_samples(samples: list[Sample], times: int, size: int, seed: int = 0) -> list[Sample]:
    """Each sample as it is, then ``times`` augmented versions at ``size`` x ``size`` pixels with default strengths."""
    augment, resize = Augment(), Resize(size)
    made = []
    for k, sample in enumerate(samples):
        made.append(sample)
        made += [augment(sample, np.random.default_rng([seed, k, n]), resize) for n in range(times)]
    return made
