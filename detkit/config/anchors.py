"""Anchors for a training set: computed from its boxes, or kept from the weights that training starts from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from detkit import zoo
from detkit.config.build import build_body, input_resize
from detkit.config.experiment import Config
from detkit.data.anchors import object_sizes
from detkit.data.dataset import Dataset
from detkit.errors import DetkitError
from detkit.heads.yolo import split_anchors
from detkit.ops.anchors import average_iou, kmeans_anchors

_NEARLY = 0.95  # of the best anchors' IoU


def anchors_for(
    config: Config, dataset: Dataset, tell: Callable[[str], None] = lambda text: None
) -> list[list[float]] | None:
    """Anchors for ``build_detector``, by k-means with 1 - IoU on the training set's boxes, but crowds.

    Where ``model.weights`` has as many on each level, and the boxes' mean best IoU with them is within 5 % of that, or
    there are too few boxes to compute any, those are kept: its head has learned to answer from them.

    Args:
        config: Its ``model.head.anchors`` asks for them by ``auto``.
        dataset: The training set.
        tell: Gets a sentence on which of the two it is.

    Returns:
        (w, h) pairs in input pixels; None where the config does not ask for any.

    Raises:
        DetkitError: No boxes and nothing to keep, or ``model.weights`` cannot be had.
    """
    model = config.model
    if model["head"].get("anchors") != "auto":
        return None
    with torch.device("meta"):
        _, neck, _ = build_body(model, config.place, "none")
    wh = object_sizes(dataset.annotations, input_resize(model, neck)).wh
    each = model["head"]["anchors_per_level"]
    file = None if model["weights"] == "none" else zoo.model_file(model["weights"])
    kept = None if file is None else _anchors_of(file, model["head"]["name"], neck.strides, each)
    if file is None or kept is None:
        return _best_anchors(wh, each, len(neck.strides), tell)
    if len(np.unique(wh, axis=0)) < each * len(neck.strides):
        tell(f"anchors: those of {file.name} are kept, since there are too few boxes to compute others")
        return kept
    new = _best_anchors(wh, each, len(neck.strides), tell)
    old_iou, new_iou = (average_iou(wh, np.asarray(anchors)) for anchors in (kept, new))
    if old_iou >= _NEARLY * new_iou:
        tell(f"anchors: those of {file.name} are kept, mean best IoU {old_iou:.3f} (computed anew: {new_iou:.3f})")
        return kept
    tell(f"anchors: computed anew, mean best IoU {new_iou:.3f} (those of {file.name}: {old_iou:.3f})")
    return new


def _best_anchors(wh: np.ndarray, each: int, levels: int, tell: Callable[[str], None]) -> list[list[float]]:
    """``each`` anchors per level for sizes (N, 2), sorted by area, rounded; fewer where there are fewer sizes.

    Raises:
        DetkitError: There is no box.
    """
    different = len(np.unique(wh, axis=0))
    if not different:
        do = "label some, or give model.head.anchors as [[w, h], ...]"
        raise DetkitError("there are no boxes to find anchors from", "model.head.anchors: auto", do)
    anchors = kmeans_anchors(wh, min(each * levels, different))
    if different < each * levels:
        # As many per level as there are sizes for, and one at least: then several levels look for the same size.
        count = max(different // levels, 1) * levels
        anchors = kmeans_anchors(wh, count) if count <= different else np.resize(anchors, (count, 2))
        anchors = anchors[np.argsort(anchors.prod(1), kind="stable")]
        tell(f"anchors: {count} instead of {each * levels}, since the boxes have {different} different sizes")
    return [[round(float(w), 2), round(float(h), 2)] for w, h in anchors]


def _anchors_of(file: Path, head: str, strides: Sequence[float], each: int) -> list[list[float]] | None:
    """Those of a model file, all levels' together; None if its head is none called ``head`` with ``each`` a level."""
    header = zoo.read_model_header(file)
    other = header["config"].get("model", {}).get("head", {})
    layers = sum(re.fullmatch(r"head\.layers\.\d+\.weight", key) is not None for key in header["tensors"])
    if other.get("name") != head or layers != len(strides):
        return None
    try:
        levels = split_anchors(other["anchors"], strides)
    except (DetkitError, KeyError):
        return None
    pairs = [[w, h] for level in levels for w, h in level]
    # Those that a file deals to the levels itself may lie otherwise than by area.
    fits = all(len(level) == each for level in levels) and split_anchors(pairs, strides) == levels
    return pairs if fits else None
