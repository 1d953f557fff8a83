"""Semantic segmentation judged pixel by pixel (Long et al. 2015, arXiv 1411.4038, section 5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detkit.errors import DetkitError
from detkit.interfaces import Metric
from detkit.tables import Evaluation, GroundTruth, Results


class Pixels(Metric):
    """IoU of each class over all pixels of the data set, and shares of the pixels that are right.

    With n_ij pixels of class i answered as j and t_i = sum_j n_ij: accuracy sum_i n_ii / sum_i t_i, mean accuracy the
    mean of n_ii / t_i, IoU n_ii / (t_i + sum_j n_ji - n_ii), mIoU its mean and fwIoU its mean weighted by t_i. The
    means are over the classes that the labels have, background among them where pixels are labelled so; what the
    labels leave out counts nowhere.
    """

    answers = "pixels"
    scores = ("mIoU", "accuracy", "mean_accuracy", "fwIoU")
    shown = ("mIoU", "accuracy")
    rules = "pixels of the whole data set (mean over the classes that it has; ignored pixels left out)"
    takes_iou = False

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """The four numbers, and of each class IoU and accuracy (NaN where the labels have no pixel of it)."""
        total = _counts(dt).sum(0)
        metrics, each, shares = _scores(total)
        objects = np.bincount(gt.label, minlength=len(gt.classes))
        per_class = {
            name: {"IoU": float(each[k]), "accuracy": float(shares[k]), "objects": int(objects[k])}
            for k, name in enumerate(gt.classes)
        }
        if total[-1].any():
            per_class["background"] = {"IoU": float(each[-1]), "accuracy": float(shares[-1])}
        return Evaluation(metrics, per_class)

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str = "mIoU", *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to the number on that many copies of each image."""
        if score not in self.scores:
            raise ValueError(f"no metric {score!r} of pixels; there are {', '.join(self.scores)}")
        counts = _counts(dt)
        return lambda weights: _scores(np.tensordot(weights, counts, 1))[0][score]


def _counts(dt: Results) -> np.ndarray:
    if dt.pixels is None:
        do = "evaluate a model with head segment, or its boxes with --protocol coco"
        raise DetkitError("these answers say nothing of single pixels", "--protocol pixels", do)
    return dt.pixels


def _scores(counts: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The numbers of Long et al., IoU and accuracy of each class (C + 1,), of counts (C + 1, C + 1)."""
    right, labelled = counts.diagonal().astype(float), counts.sum(1).astype(float)
    there = labelled > 0
    with np.errstate(invalid="ignore"):
        iou, accuracy = np.where(there, [right / (labelled + counts.sum(0) - right), right / labelled], np.nan)
        mean_iou, mean_accuracy = np.nansum([iou, accuracy], axis=1) / there.sum()
        shares = right.sum() / labelled.sum(), np.nansum(iou * labelled) / labelled.sum()
    values = mean_iou, shares[0], mean_accuracy, shares[1]
    return dict(zip(Pixels.scores, map(float, values), strict=True)), iou, accuracy
