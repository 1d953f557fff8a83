"""Weighted boxes fusion: several models' detections of one image become one set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.arrays import Array, Either, as_numpy
from detkit.ops.inputs import (
    as_kind,
    behaved,
    box_array,
    check_same_kind,
    check_shares,
    label_array,
    same_dtype,
    score_array,
)
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

    One entry a model in each list: boxes (N_i, 4) xyxy in any one unit, scores (N_i,), labels (N_i,); ``weights``: one
    a model, default 1 each. Best score first, each box joins the cluster of its label whose mean box it overlaps most,
    if by IoU > ``threshold``, or starts its own. A cluster's box is the score-weighted mean of its boxes; its score is
    their mean score times min(boxes, models) / (sum of weights), so what few models saw counts less.

    Boxes with a score below ``min_score``, of 0 or below, with a NaN coordinate or a NaN score are left out.
    Returns boxes (K, 4), scores (K,), labels (K,) int64, best first, in the float type and kind of the input. Tensors
    go through the CPU. Raises ValueError for lists of different lengths or weights that are negative or all 0.
    """
    models = len(boxes_list)
    if not models or len(scores_list) != models or len(labels_list) != models:
        raise ValueError(
            "boxes, scores and labels need one entry a model, at least one: "
            f"got {models}, {len(scores_list)} and {len(labels_list)}"
        )
    factors = np.ones(models) if weights is None else np.asarray(weights, np.float64)
    if factors.shape != (models,) or not (np.isfinite(factors) & (factors >= 0)).all() or not factors.sum() > 0:
        raise ValueError(f"weights must be {models} numbers >= 0, not all 0, got {weights}")
    check_shares(threshold=threshold)
    check_same_kind(*boxes_list, *scores_list, *labels_list)

    columns = [_columns(*parts, min_score) for parts in zip(boxes_list, scores_list, labels_list, strict=True)]
    boxes = np.concatenate([model[0] for model in columns])
    scores = np.concatenate([model[1] * factor for model, factor in zip(columns, factors, strict=True)])
    labels = np.concatenate([model[2] for model in columns])
    fused = _fuse(boxes.astype(np.float64), scores, labels, models, float(factors.sum()), threshold)

    first = boxes_list[0]
    return (
        as_kind(fused[0].astype(boxes.dtype), first),
        as_kind(fused[1].astype(boxes.dtype), first),
        as_kind(fused[2], first),
    )


def _columns(
    boxes: Either, scores: Either, labels: Either, min_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One model's usable rows: boxes in their own float type, scores float64, labels int64."""
    boxes = box_array(boxes)
    scores = score_array(scores, len(boxes))
    labels = as_numpy(label_array(labels, len(boxes)))
    boxes, scores = same_dtype(as_numpy(boxes), as_numpy(scores))
    usable = ~np.isnan(boxes).any(1) & (scores >= min_score) & (scores > 0)
    return boxes[usable], scores[usable].astype(np.float64), labels[usable]


def _fuse(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, models: int, total: float, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from detkit.ops.fusion_kernels import fuse

    order = descending(scores)
    order = order[scores[order] > 0]  # a model of weight 0 has no say
    clusters, members = fuse(behaved(boxes[order]), scores[order], labels[order], float(threshold))
    means = clusters[:, 4] / clusters[:, 5] * np.minimum(clusters[:, 5], models) / total
    # Equal scores stay in the order in which their clusters began.
    best = descending(means)
    _, starts = np.unique(members, return_index=True)
    return clusters[best, :4], means[best], labels[order][starts][best]
