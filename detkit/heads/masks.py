"""From the class of each pixel to detections, with masks; in numpy, for a model and for its exported file."""

from __future__ import annotations

import numpy as np

from detkit.ops.order import descending
from detkit.structures import Detections, Limits


def class_regions(score: np.ndarray, label: np.ndarray, classes: int, limits: Limits) -> Detections:
    """A detection per class of an image, best first, without class names; see ``detkit.heads.segment.Segment``.

    Args:
        score: (H, W) float32, probability of each pixel's class.
        label: (H, W) int64, that class; the number ``classes`` is the background.
        classes: How many there are.
        limits: Of the detections, by mean probability.
    """
    counts = np.bincount(label.ravel(), minlength=classes)
    sums = np.bincount(label.ravel(), score.ravel(), minlength=classes)
    labels = np.flatnonzero(counts[:classes])
    if limits.classes is not None:
        labels = labels[np.isin(labels, limits.classes)]
    means = (sums[labels] / counts[labels]).astype(np.float32)
    order = descending(means)
    order = order[means[order] >= limits.conf][: limits.max_detections]
    masks = label == labels[order][:, None, None]
    sides = [[np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (0, 1)] for mask in masks]
    boxes = [(x[0], y[0], x[1] + 1, y[1] + 1) for x, y in sides]
    return Detections(np.reshape(boxes, (-1, 4)), means[order], labels[order], extra={"masks": masks})
