"""Top-1 and top-5 of classified images: the answers are detections, one a class, ranked by their scores.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, section 4.1 (as shares that are right).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detkit.errors import DetkitError
from detkit.metrics.tables import GroundTruth, Results

DEPTHS = {"top1": 1, "top5": 5}


@dataclass(slots=True, frozen=True, eq=False)
class ClassificationResult:
    """metrics: the shares of the images whose label is the first answer, or among the first five; per_class: the same
    of each class (NaN where there is no image) and objects, the number of its images."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]


def evaluate(gt: GroundTruth, dt: Results, *, iou: float | None = None) -> ClassificationResult:
    """Top-1 and top-5 accuracy. An image without an answer counts as wrong; boxes are not looked at.

    Raises:
        DetkitError: images that do not have exactly one label. ValueError: an ``iou``, since nothing is matched.
    """
    if iou is not None:
        raise ValueError("classification matches no boxes, so it takes no iou")
    place, label = ranks(gt, dt)
    hits = {name: place < depth for name, depth in DEPTHS.items()}
    per_class = {}
    for k, name in enumerate(gt.classes):
        mine = label == k
        shares = {n: float(hit[mine].mean()) if mine.any() else np.nan for n, hit in hits.items()}
        per_class[name] = {**shares, "objects": int(mine.sum())}
    metrics = {name: float(hit.mean()) if gt.images else -1.0 for name, hit in hits.items()}
    return ClassificationResult(metrics, per_class)


def refuse_other_than_one_label(gt: GroundTruth) -> None:
    """Raises DetkitError for images that do not have exactly one label."""
    counts = np.bincount(gt.image, minlength=gt.images)
    if (wrong := np.flatnonzero(counts != 1)).size:
        what = f"{len(wrong)} of {gt.images} images do not have exactly one label"
        do = "detkit data crops DATA --out FOLDER cuts out the objects of a detection set"
        raise DetkitError(what, f"image {int(wrong[0])} has {int(counts[wrong[0]])} objects", do)


def ranks(gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: the place (images,) int64 of its label among its answers, best first from 0 (of equal scores the
    one that is named first); the number of all answers, plus five, where it is not among them. And its label (images,).

    Raises:
        DetkitError: images that do not have exactly one label.
    """
    refuse_other_than_one_label(gt)
    label = np.empty(gt.images, np.int64)
    label[gt.image] = gt.label
    order = np.lexsort((-dt.score, dt.image))
    image = dt.image[order]
    within = np.arange(len(image)) - np.searchsorted(image, image)
    right = dt.label[order] == label[image]
    place = np.full(gt.images, len(dt) + max(DEPTHS.values()), np.int64)
    np.minimum.at(place, image[right], within[right])
    return place, label


def resampler(
    gt: GroundTruth, dt: Results, metric: str = "top1", iou: float | None = None
) -> Callable[[np.ndarray], float]:
    """A function from image weights (images,) int64 to the metric on that many copies of each image.

    Raises ValueError for an unknown metric.
    """
    if metric not in DEPTHS:
        raise ValueError(f"no metric {metric!r} of classification; there are {', '.join(DEPTHS)}")
    hit = ranks(gt, dt)[0] < DEPTHS[metric]
    return lambda weights: float(np.average(hit, weights=weights)) if weights.any() else np.nan
