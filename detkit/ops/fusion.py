"""Weighted boxes fusion: several models' detections of one image become one set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from detkit.arrays import Array, Either, as_numpy
from detkit.ops import inputs
from detkit.ops.order import descending


def weighted_boxes_fusion(
    boxes_list: Sequence[Array],
    scores_list: Sequence[Array],
    labels_list: Sequence[Array],
    *,
    weights: Sequence[float] | None = None,
    threshold: float = 0.55,
    min_score: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Weighted boxes fusion (Solovyev, Wang and Gabruseva 2021, section 3).

    Best score first, each box joins the cluster of its label whose mean box it overlaps most, if by IoU > threshold, or
    starts its own. A cluster's box is the score-weighted mean of its boxes; its score is their mean score times
    min(boxes, models) / (sum of weights), so what few models saw counts less. Tensors go through the CPU.

    Args:
        boxes_list: Per model, (N_i, 4) xyxy in any one unit.
        scores_list: Per model, (N_i,).
        labels_list: Per model, (N_i,) integers.
        weights: Per model; default 1 each.
        threshold: 0..1.
        min_score: Boxes below it, and those with a score of 0 or below, a NaN score or coordinate, are left out. So are
            boxes without area and inverted ones, whose number a warning tells.

    Returns:
        Boxes (K, 4), scores (K,), labels (K,) int64, best first, in the float type and kind of the input.

    Raises:
        ValueError: Lists of different lengths, or weights that are negative or all 0.
    """
    from detkit.ops.box_kernels import fuse

    models = len(boxes_list)
    if not models or len(scores_list) != models or len(labels_list) != models:
        raise ValueError(
            "boxes, scores and labels need one entry per model, at least one: "
            f"got {models}, {len(scores_list)} and {len(labels_list)}"
        )
    factors = np.ones(models) if weights is None else np.asarray(weights, np.float64)
    if factors.shape != (models,) or not (np.isfinite(factors) & (factors >= 0)).all() or not factors.sum() > 0:
        raise ValueError(f"weights must be {models} numbers >= 0, not all 0, got {weights}")
    inputs.check_shares(threshold=threshold)
    inputs.check_same_kind(*boxes_list, *scores_list, *labels_list)

    columns = [_columns(*parts, min_score) for parts in zip(boxes_list, scores_list, labels_list, strict=True)]
    if flat := sum(model[3] for model in columns):
        warnings.warn(f"weighted_boxes_fusion left out {flat} boxes that are inverted or have no area", stacklevel=2)
    boxes = np.concatenate([model[0] for model in columns])
    scores = np.concatenate([model[1] * factor for model, factor in zip(columns, factors, strict=True)])
    labels = np.concatenate([model[2] for model in columns])
    order = descending(scores)
    order = order[scores[order] > 0]  # a model of weight 0 has no say
    fused, total, members, kinds = fuse(boxes[order].astype(np.float64), scores[order], labels[order], float(threshold))
    means = total / members * np.minimum(members, models) / factors.sum()
    best = descending(means)  # equal scores stay in the order in which their clusters began
    found = (fused[best].astype(boxes.dtype), means[best].astype(boxes.dtype), kinds[best])
    like = boxes_list[0]
    return inputs.as_kind(found[0], like), inputs.as_kind(found[1], like), inputs.as_kind(found[2], like)


def _columns(
    boxes: Either, scores: Either, labels: Either, min_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """One model's usable rows: boxes in their own float type, scores float64, labels int64; how many had no area."""
    boxes = inputs.box_array(boxes)
    scores = inputs.score_array(scores, len(boxes))
    labels = as_numpy(inputs.label_array(labels, len(boxes)))
    boxes, scores = inputs.same_dtype(as_numpy(boxes), as_numpy(scores))
    usable = ~np.isnan(boxes).any(1) & (scores >= min_score) & (scores > 0)
    flat = usable & (boxes[:, 2:] <= boxes[:, :2]).any(1)
    usable &= ~flat
    return boxes[usable], scores[usable].astype(np.float64), labels[usable], int(flat.sum())
