"""R-CNN's later stages (Girshick et al. 2014, arXiv 1311.2524): linear SVMs and ridge regression on fixed features.

The network is trained first; what it makes of every region is kept (``Embedded``), and these functions read it image
by image, so that it need not fit into memory. Numbers in capitals are those of the paper and of its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from detkit.heads.dense import gather_objects
from detkit.ops.assign import label_regions
from detkit.ops.coder import encode_deltas
from detkit.ops.inputs import check_positive
from detkit.structures import Target

NORM = 20.0  # features are scaled to this mean length, so that cost and ridge mean the same for every network
NEGATIVE = 0.3  # section 2.3: regions with less IoU are negative examples
NEAR = 0.6  # appendix C: regions from this IoU on teach the box regression
BIAS = 10.0  # a feature of this value in place of an offset that is not regularised
POSITIVE_WEIGHT = 2.0  # of positive examples in the SVM's loss
HARD, EASY = -1.0, -1.2  # margins from which a negative is taken as hard, and below which it is put back
RETRAIN = 2000  # new hard negatives after which a class's SVM is trained again
TOLERANCE, PASSES = 0.1, 1000  # at which training an SVM ends, as in LIBLINEAR
_BINS = np.linspace(-8, 8, 1025)  # of margins, for their probabilities
_NEVER = -20.0  # the logit of a class without examples


@dataclass(frozen=True, kw_only=True)
class LaterStages:
    """What follows the training of a RoI head.

    Attributes:
        classifier: ``softmax``: nothing. ``svm``: R-CNN's later stages: the head trains as ever, then ``fit`` puts a
            linear SVM per class in the place of the softmax and ridge regression in that of the boxes.
        svm_cost: C of the SVMs.
        ridge: Lambda of the box regression.

    Raises:
        ValueError: A number that is not above 0.
    """

    classifier: Literal["softmax", "svm"] = "softmax"
    svm_cost: float = 1e-3
    ridge: float = 1000.0

    def __post_init__(self) -> None:
        check_positive(svm_cost=self.svm_cost, ridge=self.ridge)


class Embedded(NamedTuple):
    """The regions of one image.

    Attributes:
        features: (R, D) float16.
        boxes: (R, 4) float32 in input pixels.
        target: Torch, CPU; its own N boxes are the first N regions.
    """

    features: np.ndarray
    boxes: Tensor
    target: Target


class FittedStages(NamedTuple):
    """What was learned, float32.

    Attributes:
        svm: (C, D), of logits of features.
        svm_bias: (C,).
        boxes: (C, 4, D), of deltas of features.
        boxes_bias: (C, 4).
        regressed: (C,) bool: classes that had regions to learn boxes from.
        rounds: (C,) int64: SVMs trained.
    """

    svm: np.ndarray
    svm_bias: np.ndarray
    boxes: np.ndarray
    boxes_bias: np.ndarray
    regressed: np.ndarray
    rounds: np.ndarray


@dataclass
class _Class:
    """What is known of one class: examples, each an image and a row of its regions, and its SVM's multipliers."""

    positive: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    negative: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    near: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # with the deltas (n, 4) to learn
    alpha: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    fresh: int = 0  # negatives since it was trained
    rounds: int = 0


def fit_stages(
    data: Sequence[Embedded], classes: int, options: LaterStages, positive: float, weights: Sequence[float]
) -> FittedStages:
    """Trains the stages of ``classes`` classes.

    Section 2.3 and appendix B: an SVM per class, its positives the labelled objects, its negatives the regions that
    overlap none of the class by ``NEGATIVE``, mined in one pass over the images. Margins leave as logits of the
    probability that a region overlaps an object of the class (Platt 1999), on the same images. Appendix C: box
    regression on regions that overlap an object by ``NEAR``. A class without objects gets a probability near 0. Crowds
    and difficult objects are neither positive nor negative.

    Args:
        data: Read four times, and a class's examples once more each time that its SVM is trained.
        classes: C.
        options: The SVMs' cost and ridge's lambda.
        positive: IoU with an object from which a region shows it.
        weights: Of the deltas.

    Raises:
        ValueError: No images.
    """
    if not len(data):
        raise ValueError("there are no images to fit on")
    fit = _Fit(data, classes, positive, weights)
    fit.mine(options.svm_cost)
    slope, shift = fit.probabilities()
    learnt = np.array([len(one.positive) > 0 for one in fit.classes])
    svm = np.where(learnt[:, None], slope[:, None] * fit.model[:, :-1] * fit.scale, 0)
    svm_bias = np.where(learnt, slope * fit.model[:, -1] * BIAS + shift, _NEVER)
    boxes, boxes_bias = np.zeros((classes, 4, svm.shape[1]), np.float32), np.zeros((classes, 4), np.float32)
    for label, one in enumerate(fit.classes):
        if one.near:
            boxes[label], boxes_bias[label] = fit.ridge(one, options.ridge)
    regressed, rounds = np.array([bool(one.near) for one in fit.classes]), np.array([one.rounds for one in fit.classes])
    return FittedStages(svm.astype(np.float32), svm_bias.astype(np.float32), boxes, boxes_bias, regressed, rounds)


def _picks(image: int, rows: np.ndarray) -> np.ndarray:
    """(n, 2): an image and rows of it."""
    return np.stack((np.full(len(rows), image), rows), axis=1)


class _Fit:
    """All classes' examples and SVMs.

    overlaps: of each image, by class, the IoU (R,) of its regions with it, -1 where that does not count; scale: of the
    features; model (C, D + 1): the SVMs of scaled features, the bias last.
    """

    def __init__(self, data: Sequence[Embedded], classes: int, positive: float, weights: Sequence[float]) -> None:
        self.data, self.positive = data, positive
        self.classes = [_Class() for _ in range(classes)]
        self.overlaps: list[dict[int, np.ndarray]] = [{} for _ in data]
        length, count = 0.0, 0
        for i, item in enumerate(data):
            length += float(np.linalg.norm(item.features.astype(np.float32), axis=1).sum())
            count += len(item.features)
            objects = gather_objects([item.target], "cpu")
            for label in objects.labels.unique().tolist():
                one, mine = self.classes[label], objects.labels == label
                shown = label_regions(item.boxes, objects.rows(mine), positive)
                self.overlaps[i][label] = shown.iou.masked_fill(shown.ignore, -1).half().numpy()
                own = (objects.real & mine).nonzero().squeeze(1)
                one.positive = np.concatenate((one.positive, _picks(i, own.numpy())))
                near = (shown.iou >= NEAR).nonzero().squeeze(1)
                if len(near):
                    deltas = encode_deltas(objects.boxes[mine][shown.row[near]], item.boxes[near], weights)
                    one.near.append((i, near.numpy(), deltas.numpy()))
        self.scale = NORM * max(count, 1) / max(length, 1e-9)
        self.model = np.zeros((classes, data[0].features.shape[1] + 1), np.float32)

    def margins(self, item: Embedded) -> np.ndarray:
        """(R, C) of an image's regions."""
        return item.features.astype(np.float32) @ (self.model[:, :-1].T * self.scale) + self.model[:, -1] * BIAS

    def mine(self, cost: float) -> None:
        """Trains on all positives and on the negatives that are hard for the SVMs, in one pass."""
        known = [(label, one) for label, one in enumerate(self.classes) if len(one.positive)]
        for i, item in enumerate(self.data):
            margins = self.margins(item)
            for label, one in known:
                overlap = self.overlaps[i].get(label, np.zeros(len(margins), np.float16))
                rows = np.flatnonzero((margins[:, label] > HARD) & (overlap >= 0) & (overlap < NEGATIVE))
                one.negative = np.concatenate((one.negative, _picks(i, rows)))
                one.fresh += len(rows)
                if one.fresh >= RETRAIN:
                    self.train(label, cost)
        for label, one in known:
            if one.fresh or not one.rounds:
                self.train(label, cost)

    def train(self, label: int, cost: float) -> None:
        """Trains one class's SVM on its examples, from where it stood, and puts easy negatives back."""
        from detkit.ops.svm_kernels import descend

        one, model = self.classes[label], self.model[label]
        signs = np.repeat(np.array([1, -1], np.float32), [len(one.positive), len(one.negative)])
        picks = np.concatenate((one.positive, one.negative))
        x = np.full((len(picks), self.model.shape[1]), BIAS, np.float32)
        for image in np.unique(picks[:, 0]):
            mine = picks[:, 0] == image
            x[mine, :-1] = self.data[image].features[picks[mine, 1]].astype(np.float32) * np.float32(self.scale)
        limits = np.where(signs > 0, cost * POSITIVE_WEIGHT, cost).astype(np.float32)
        alpha = np.zeros(len(x), np.float32)
        alpha[: len(one.alpha)] = one.alpha
        model[:] = (alpha * signs) @ x
        descend(x, signs, limits, alpha, model, one.rounds, TOLERANCE, PASSES)
        one.rounds, one.fresh = one.rounds + 1, 0
        kept = (signs > 0) | (x @ model >= EASY) | (alpha > 0)
        one.alpha, one.negative = alpha[kept], one.negative[kept[len(one.positive) :]]

    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) a and b of the logits a margin + b, for each class, with Platt's smoothed targets."""
        from scipy.optimize import minimize
        from scipy.special import expit

        counts = np.zeros((2, len(self.model), len(_BINS) - 1))
        for i, item in enumerate(self.data):
            margins = np.clip(self.margins(item), _BINS[0], _BINS[-1])
            for label in range(len(self.model)):
                overlap = self.overlaps[i].get(label, np.zeros(len(margins), np.float16))
                shows = overlap >= self.positive
                counts[0, label] += np.histogram(margins[(overlap >= 0) & ~shows, label], _BINS)[0]
                counts[1, label] += np.histogram(margins[shows, label], _BINS)[0]
        centres = (_BINS[1:] + _BINS[:-1]) / 2

        def loss(pair: np.ndarray, wanted: np.ndarray, total: np.ndarray) -> tuple[float, np.ndarray]:
            logits = pair[0] * centres + pair[1]
            value = (total * np.logaddexp(0, logits) - wanted * logits).sum()
            error, scaled = total * expit(logits) - wanted, max(total.sum(), 1)
            return value / scaled, np.array([(error * centres).sum(), error.sum()]) / scaled

        found = []
        for without, having in zip(*counts, strict=True):
            high, low = (having.sum() + 1) / (having.sum() + 2), 1 / (without.sum() + 2)
            arguments, bounds = (high * having + low * without, having + without), [(0.1, 100), (-100, 100)]
            found.append(minimize(loss, [1.0, 0.0], arguments, jac=True, method="L-BFGS-B", bounds=bounds).x)
        slope, shift = np.array(found).T
        return slope, shift

    def ridge(self, one: _Class, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (4, D) and bias (4,) of one class's box regression; the bias is not regularised."""
        y = np.concatenate([deltas for _, _, deltas in one.near]).astype(np.float64)
        mean_y, width = y.mean(0), self.model.shape[1] - 1
        mean_x, left, right = np.zeros(width), np.eye(width) * ridge, np.zeros((width, 4))
        for i, near, _ in one.near:
            mean_x += self.data[i].features[near].astype(np.float64).sum(0) * self.scale / len(y)
        for i, near, deltas in one.near:
            x = self.data[i].features[near].astype(np.float64) * self.scale - mean_x
            left += x.T @ x
            right += x.T @ (deltas - mean_y)
        weight = np.linalg.solve(left, right)
        return (weight.T * self.scale).astype(np.float32), (mean_y - mean_x @ weight).astype(np.float32)
