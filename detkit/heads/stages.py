"""R-CNN's later stages (Girshick et al. 2014, arXiv 1311.2524): linear SVMs and ridge regression on fixed features.

The network is trained first; what it makes of every region is kept (``Embedded``), and these functions read it image
by image, so that it need not fit into memory. Numbers in capitals are those of the paper and of its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from detkit.heads.dense import gather_objects
from detkit.ops.assign import label_regions
from detkit.ops.coder import encode_deltas
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


class Embedded(NamedTuple):
    """One image: features (R, D) float16 of its regions, boxes (R, 4) float32 in input pixels, and its target (torch,
    CPU), whose own N boxes are the first N regions."""

    features: np.ndarray
    boxes: Tensor
    target: Target


class Stages(NamedTuple):
    """svm (C, D) and svm_bias (C,): logits of features; boxes (C, 4, D) and boxes_bias (C, 4): deltas of them; all
    float32. regressed (C,) bool: classes that had regions to learn boxes from; rounds (C,) int64: SVMs trained."""

    svm: np.ndarray
    svm_bias: np.ndarray
    boxes: np.ndarray
    boxes_bias: np.ndarray
    regressed: np.ndarray
    rounds: np.ndarray


Picks = list[tuple[int, np.ndarray]]  # regions: an image and rows of it


@dataclass
class _Class:
    """What is known of one class: examples, and its SVM on scaled features, bias last."""

    positive: Picks = field(default_factory=list)
    negative: Picks = field(default_factory=list)
    near: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # and the deltas (n, 4) to learn
    alpha: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    fresh: int = 0  # negatives since it was trained
    rounds: int = 0


def fit_stages(
    data: Sequence[Embedded],
    classes: int,
    *,
    cost: float,
    ridge: float,
    positive: float,
    weights: tuple[float, float, float, float],
) -> Stages:
    """Trains the stages of ``classes`` classes on ``data``, which is read four times, and a class's examples once more
    each time that its SVM is trained.

    Section 2.3 and appendix B: an SVM a class, its positives the labelled objects, its negatives the regions that
    overlap none of the class by ``NEGATIVE``, mined in one pass over the images; cost: C. Margins leave as logits of
    the probability that a region overlaps an object of the class by ``positive`` (Platt 1999), on the same images.
    Appendix C: box regression on regions that overlap an object by ``NEAR``; ridge: lambda; weights: of the deltas.

    A class without objects gets a probability near 0. Crowds and difficult objects are neither positive nor negative.

    Raises:
        ValueError: no images.
    """
    if not len(data):
        raise ValueError("there are no images to fit on")
    table = [_Class() for _ in range(classes)]
    overlaps, scale, width = _label(data, table, positive, weights)
    model = np.zeros((classes, width + 1), np.float32)
    _mine(data, table, overlaps, model, scale, cost)
    slope, shift = _probabilities(data, overlaps, model, scale, positive)
    learnt = np.array([bool(one.positive) for one in table])
    svm = np.where(learnt[:, None], slope[:, None] * model[:, :-1] * scale, 0)
    svm_bias = np.where(learnt, slope * model[:, -1] * BIAS + shift, _NEVER)
    boxes, boxes_bias = np.zeros((classes, 4, width), np.float32), np.zeros((classes, 4), np.float32)
    for number, one in enumerate(table):
        if one.near:
            boxes[number], boxes_bias[number] = _ridge(data, one, scale, ridge)
    regressed, rounds = np.array([bool(one.near) for one in table]), np.array([one.rounds for one in table])
    return Stages(svm.astype(np.float32), svm_bias.astype(np.float32), boxes, boxes_bias, regressed, rounds)


Overlaps = dict[int, np.ndarray]  # class: IoU (R,) of an image's regions with it, -1 where that does not count


def _label(
    data: Sequence[Embedded], table: list[_Class], positive: float, weights: tuple[float, float, float, float]
) -> tuple[list[Overlaps], float, int]:
    """Fills positives and near regions; returns the overlaps, the features' scale and their number."""
    overlaps: list[Overlaps] = []
    length, count, width = 0.0, 0, 0
    for i, item in enumerate(data):
        length += float(np.linalg.norm(item.features.astype(np.float32), axis=1).sum())
        count, width = count + len(item.features), item.features.shape[1]
        objects = gather_objects([item.target], "cpu")
        overlaps.append({})
        for label in objects.labels.unique().tolist():
            mine = objects.labels == label
            shown = label_regions(item.boxes, objects.rows(mine), positive)
            overlaps[i][label] = shown.iou.masked_fill(shown.ignore, -1).half().numpy()
            own = (objects.real & mine).nonzero().squeeze(1)
            if len(own):
                table[label].positive.append((i, own.numpy()))
            near = (shown.iou >= NEAR).nonzero().squeeze(1)
            if len(near):
                wanted = objects.boxes[mine][shown.row[near]]
                deltas = encode_deltas(wanted, item.boxes[near], weights)
                table[label].near.append((i, near.numpy(), deltas.numpy()))
    return overlaps, NORM * max(count, 1) / max(length, 1e-9), width


def _margins(item: Embedded, model: np.ndarray, scale: float) -> np.ndarray:
    """(R, C) of an image's regions."""
    return item.features.astype(np.float32) @ (model[:, :-1].T * scale) + model[:, -1] * BIAS


def _mine(
    data: Sequence[Embedded],
    table: list[_Class],
    overlaps: list[Overlaps],
    model: np.ndarray,
    scale: float,
    cost: float,
) -> None:
    """Trains ``model`` (C, D + 1) on all positives and on the negatives that are hard for it, in one pass."""
    for i, item in enumerate(data):
        margins = _margins(item, model, scale)
        for label, one in enumerate(table):
            if not one.positive:
                continue
            hard = margins[:, label] > HARD
            if label in overlaps[i]:
                hard &= (overlaps[i][label] >= 0) & (overlaps[i][label] < NEGATIVE)
            rows = np.flatnonzero(hard)
            if len(rows):
                one.negative.append((i, rows))
                one.fresh += len(rows)
            if one.fresh >= RETRAIN:
                _train(data, one, model[label], scale, cost)
    for label, one in enumerate(table):
        if one.positive and (one.fresh or not one.rounds):
            _train(data, one, model[label], scale, cost)


def _train(data: Sequence[Embedded], one: _Class, model: np.ndarray, scale: float, cost: float) -> None:
    """Trains one class's SVM on its examples, from where it stood, and puts easy negatives back."""
    from detkit.ops.svm_kernels import descend

    positives, negatives = _features(data, one.positive), _features(data, one.negative, model.size - 1)
    x = np.concatenate((positives, negatives)) * np.float32(scale)
    x = np.concatenate((x, np.full((len(x), 1), BIAS, np.float32)), axis=1)
    signs = np.where(np.arange(len(x)) < len(positives), 1, -1).astype(np.float32)
    limits = np.where(signs > 0, cost * POSITIVE_WEIGHT, cost).astype(np.float32)
    alpha = np.zeros(len(x), np.float32)
    alpha[: len(one.alpha)] = one.alpha
    model[:] = (alpha * signs) @ x
    descend(x, signs, limits, alpha, model, one.rounds, TOLERANCE, PASSES)
    one.rounds, one.fresh = one.rounds + 1, 0
    kept = np.ones(len(x), bool)
    kept[len(positives) :] = (x[len(positives) :] @ model >= EASY) | (alpha[len(positives) :] > 0)
    one.alpha, at = alpha[kept], len(positives)
    left: Picks = []
    for i, rows in one.negative:
        rest = rows[kept[at : at + len(rows)]]
        at += len(rows)
        if len(rest):
            left.append((i, rest))
    one.negative = left


def _features(data: Sequence[Embedded], picks: Picks, width: int = 0) -> np.ndarray:
    """(N, D) float32 of the regions ``picks``, in their order."""
    parts = [data[i].features[rows].astype(np.float32) for i, rows in picks]
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


def _probabilities(
    data: Sequence[Embedded], overlaps: list[Overlaps], model: np.ndarray, scale: float, positive: float
) -> tuple[np.ndarray, np.ndarray]:
    """(C,) a and b of the logits a margin + b, for each class, with Platt's smoothed targets."""
    from scipy.optimize import minimize
    from scipy.special import expit

    counts = np.zeros((2, len(model), len(_BINS) - 1))
    for i, item in enumerate(data):
        margins = np.clip(_margins(item, model, scale), _BINS[0], _BINS[-1])
        for label in range(len(model)):
            overlap = overlaps[i].get(label, np.zeros(len(margins), np.float16))
            shows, valid = overlap >= positive, overlap >= 0
            for kind, rows in enumerate((valid & ~shows, shows)):
                counts[kind, label] += np.histogram(margins[rows, label], _BINS)[0]
    centres = (_BINS[1:] + _BINS[:-1]) / 2
    slope, shift = np.ones(len(model)), np.zeros(len(model))
    for label in range(len(model)):
        without, having = counts[:, label]
        high, low = (having.sum() + 1) / (having.sum() + 2), 1 / (without.sum() + 2)
        wanted, total = high * having + low * without, having + without

        def loss(pair: np.ndarray, wanted: np.ndarray = wanted, total: np.ndarray = total) -> tuple[float, np.ndarray]:
            logits = pair[0] * centres + pair[1]
            value = (total * np.logaddexp(0, logits) - wanted * logits).sum()
            error = total * expit(logits) - wanted
            scaled = max(total.sum(), 1)
            return value / scaled, np.array([(error * centres).sum(), error.sum()]) / scaled

        found = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0.1, 100), (-100, 100)])
        slope[label], shift[label] = found.x
    return slope, shift


def _ridge(data: Sequence[Embedded], one: _Class, scale: float, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (4, D) and bias (4,) of one class's box regression; the bias is not regularised."""
    rows = sum(len(near) for _, near, _ in one.near)
    mean_x: np.ndarray = sum(data[i].features[near].astype(np.float64).sum(0) for i, near, _ in one.near) * scale / rows  # type: ignore[assignment]
    mean_y: np.ndarray = sum(wanted.astype(np.float64).sum(0) for _, _, wanted in one.near) / rows  # type: ignore[assignment]
    left, right = np.eye(len(mean_x)) * ridge, np.zeros((len(mean_x), 4))
    for i, near, wanted in one.near:
        x = data[i].features[near].astype(np.float64) * scale - mean_x
        left += x.T @ x
        right += x.T @ (wanted - mean_y)
    weight = np.linalg.solve(left, right)
    return (weight.T * scale).astype(np.float32), (mean_y - mean_x @ weight).astype(np.float32)
