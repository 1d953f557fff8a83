"""Labelled images in one grid, also after augmentation."""

from __future__ import annotations

import numpy as np

from detkit.data.dataset import Dataset
from detkit.errors import DetkitError
from detkit.structures import Sample


def choose(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """Up to ``count`` image indices, seeded; images with objects come first."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    empty = np.asarray([len(dataset.labels_of(int(i))) == 0 for i in order], dtype=bool)
    return order[np.argsort(empty, kind="stable")][:count]


def grid(samples: list[Sample], classes: tuple[str, ...], *, tile: int = 320, columns: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) RGB: the samples with their labels drawn, each fitted into ``tile`` x ``tile`` pixels."""
    from detkit.data.resize import Resize, moved_target
    from detkit.io.draw import draw_target, sheet

    resize, drawn = Resize((tile, tile), stride=1), []
    for sample in samples:
        # Drawn after the fit, so that captions are legible whatever the image's size.
        image, geometry = resize(sample.image)
        drawn.append(draw_target(image, moved_target(sample.target, geometry), classes))
    return sheet(drawn, columns=columns)


def labelled(dataset: Dataset, count: int, seed: int = 0) -> tuple[list[Sample], list[str]]:
    """Up to ``count`` samples, and the messages of images that could not be read.

    Raises DetkitError if none could be read.
    """
    samples, failed = [], []
    for i in choose(dataset, count, seed).tolist():
        try:
            samples.append(dataset.load(i))
        except DetkitError as error:
            failed.append(f"{error.where}: {error.what}")
    if not samples:
        where = failed[0] if failed else "the data set is empty"
        raise DetkitError("none of the images could be read", where, "give --images the folder of the images")
    return samples, failed


def augmented(samples: list[Sample], times: int, size: int, seed: int = 0) -> list[Sample]:
    """Each sample as it is, then ``times`` augmented versions at ``size`` x ``size`` pixels with default strengths."""
    from detkit.data.augment import Augment
    from detkit.data.resize import Resize

    augment, resize = Augment(), Resize(size)
    made = []
    for k, sample in enumerate(samples):
        made.append(sample)
        made += [augment(sample, np.random.default_rng([seed, k, n]), resize) for n in range(times)]
    return made
