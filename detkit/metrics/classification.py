"""Top-1 and top-5 of classified images: the answers are detections, one per class, ranked by their scores.

And how often a task that is made of the images themselves is answered right.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, section 4.1 (as shares that are right).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detkit.errors import DetkitError
from detkit.interfaces import Metric
from detkit.tables import Evaluation, GroundTruth, Results

DEPTHS = {"top1": 1, "top5": 5}


class Classification(Metric):
    """The shares of the images whose label is the first answer, or among the first five.

    An image without an answer counts as wrong; boxes are not looked at. Images must have exactly one label.
    """

    answers = "labels"
    scores = ("top1", "top5")
    rules = "classification (the image's label is the best answer, or among the best five)"
    takes_iou = False

    def check(self, gt: GroundTruth) -> None:
        """Raises DetkitError for images that do not have exactly one label."""
        counts = np.bincount(gt.image, minlength=gt.images)
        if (wrong := np.flatnonzero(counts != 1)).size:
            what = f"{len(wrong)} of {gt.images} images do not have exactly one label"
            do = "detkit data crops DATA --out FOLDER cuts out the objects of a detection set"
            raise DetkitError(what, f"image {int(wrong[0])} has {int(counts[wrong[0]])} objects", do)

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """Top-1 and top-5 accuracy, also of each class (NaN where there is no image)."""
        self.check(gt)
        place, label = ranks(gt, dt)
        hits = {name: place < depth for name, depth in DEPTHS.items()}
        per_class = {}
        for k, name in enumerate(gt.classes):
            mine = label == k
            shares = {n: float(hit[mine].mean()) if mine.any() else np.nan for n, hit in hits.items()}
            per_class[name] = {**shares, "objects": int(mine.sum())}
        metrics = {name: float(hit.mean()) if gt.images else -1.0 for name, hit in hits.items()}
        return Evaluation(metrics, per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "top1", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to the share on that many copies of each image."""
        if score not in DEPTHS:
            raise ValueError(f"no metric {score!r} of classification; there are {', '.join(DEPTHS)}")
        self.check(gt)
        hit = ranks(gt, dt)[0] < DEPTHS[score]
        return lambda weights: float(np.average(hit, weights=weights)) if weights.any() else np.nan


def ranks(gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
    """Where the answers to each image have its label; each image has exactly one.

    Returns:
        (images,) int64, its place among the image's answers, best first from 0 (of equal scores the one that is named
        first); the number of all answers, plus five, where it is not among them. And the label, (images,) int64.
    """
    label = np.empty(gt.images, np.int64)
    label[gt.image] = gt.label
    order = np.lexsort((-dt.score, dt.image))
    image = dt.image[order]
    within = np.arange(len(image)) - np.searchsorted(image, image)
    right = dt.label[order] == label[image]
    place = np.full(gt.images, len(dt) + max(DEPTHS.values()), np.int64)
    np.minimum.at(place, image[right], within[right])
    return place, label


class Pretext(Metric):
    """The mean over the images of the score of their one answer, the share of an image's views that were told; an image
    without an answer counts as 0."""

    answers = "labels"
    scores = ("accuracy",)
    rules = "pretext task (the share of the views of the images that are answered right)"
    takes_iou = False

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """The accuracy; labels are not looked at, so there is nothing to say of classes."""
        return Evaluation({"accuracy": float(np.sum(dt.score)) / gt.images if gt.images else -1.0}, {})
