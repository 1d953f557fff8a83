"""Several views of an image (mirrored, rescaled, cropped: test-time augmentation) and several models (an ensemble).

All views are fused in one pass, by weighted boxes fusion (Solovyev, Wang and Gabruseva 2021). A view in which nothing
is found at a place counts as a score of 0 there, so a score is the mean over all views and stays comparable with those
of a single model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from detkit.data.names import match_classes
from detkit.data.warp import cropped, swapped, turned
from detkit.errors import DetkitError
from detkit.geometry import UsualSizes
from detkit.ops.boxes import iou
from detkit.ops.fusion import weighted_boxes_fusion
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

TTA = ("flip", "scales", "crops")
SCALES = (0.8, 1.25)  # of the model's own input size, besides it
CROP = 0.875  # of the image's sides: AlexNet's 224 of 256 (Krizhevsky et al. 2012, section 4.1), besides the whole
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
# Above the usual 0.5 of the views' own NMS, so that two boxes of one view seldom meet in a cluster and dilute it.
_SAME = 0.6
_ANSWERS = {"coco": "boxes", "points": "box and points"}  # by protocol


class _View(NamedTuple):
    """What a model is shown of an image: a crop, mirrored or not.

    corner: None for the whole image, or the shares of what the crop leaves out that lie above and left of it.
    """

    predictor: Predictor
    corner: tuple[float, float] | None
    mirrored: bool
    labels: np.ndarray  # (C,) the ensemble's label by the model's own

    def of(self, sample: Sample) -> Sample:
        if self.corner is not None:
            whole = np.array(sample.image.shape[:2])
            height, width = kept = np.maximum(np.rint(whole * CROP), 1).astype(int)
            top, left = np.rint(self.corner * (whole - kept)).astype(int)
            sample = cropped(sample, (left, top, left + width, top + height), 0)
        return turned(sample, self.mirrored, False)

    def put_back(self, found: Detections, image: np.ndarray, classes: tuple[str, ...]) -> Detections:
        """Detections in the view as such in the image, with the ensemble's labels."""
        if other := [name for name in found.extra if name != "points"]:
            what = f"{', '.join(other)} of several views cannot be fused"
            raise DetkitError(what, "--tta, --ensemble", "only boxes and points can: use this model by itself")
        (height, width), boxes, extra = image.shape[:2], found.boxes, dict(found.extra)
        if self.corner is not None:  # a classifier's answer is for the whole image
            boxes = np.tile(np.array([0, 0, width, height], np.float32), (len(found), 1))
        elif self.mirrored:
            boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (width, 0, width, 0)
            if "points" in extra:
                extra["points"] = swapped(extra["points"], self.predictor.flip_pairs)
                extra["points"][..., 0] = width - extra["points"][..., 0]
        return Detections(boxes, found.scores, self.labels[found.labels], classes, extra)


class Ensemble(Predictor):
    """Several models and, or, several views of each image, fused to one set of detections.

    A box's score is the mean over all views, 0 where a view has no such box. ``iou`` of the limits is that of each
    view's NMS. Threshold and ``iou`` are the mean of the models'.

    Args:
        models: One or more, of the same class names (in any order).
        tta: Of ``TTA``: "flip" adds mirrored views, "scales" larger and smaller ones, "crops" those of a classifier at
            the four corners and the centre; several together every combination of them.

    Raises:
        DetkitError: The models know different classes or answer differently (boxes, points, the image's class), an
            unknown kind of view, a model of fixed input size, or crops for a model that answers with boxes.
    """

    def __init__(self, models: Sequence[Predictor], tta: Sequence[str] = ()) -> None:
        for name in tta:
            if name not in TTA:
                raise DetkitError(f"there is no test-time augmentation {name!r}", "--tta", f"choose {', '.join(TTA)}")
        if "crops" in tta and any(model.protocol != "classify" for model in models):
            do = "take scales: larger views show small objects as well"
            raise DetkitError("crops are for classifiers: they would cut objects in two", "--tta", do)
        if not models:
            raise DetkitError("no model is named", do="name one or more")
        first = models[0]
        if len({model.protocol for model in models}) > 1:
            answers = ", ".join(_ANSWERS.get(model.protocol, "classes of whole images") for model in models)
            where, do = f"they give, in this order: {answers}", "name models of one kind, or one at a time"
            raise DetkitError("the models of an ensemble must answer alike", where, do)
        self.classes, self.class_ids = first.classes, first.class_ids
        self.threshold = sum(model.threshold for model in models) / len(models)
        self.iou = sum(model.iou for model in models) / len(models)
        self.protocol, self.flip_pairs = first.protocol, first.flip_pairs
        self._views: list[_View] = []
        for model in models:
            labels = _labels_by_name(first, model)
            sizes = [model, *(model.rescaled(scale) for scale in SCALES if "scales" in tta)]
            corners = (None, *(_CORNERS if "crops" in tta else ()))
            mirrored = (False, True) if "flip" in tta else (False,)
            self._views += [_View(*one, labels) for one in product(sizes, corners, mirrored)]

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The first model's."""
        return self._views[0].predictor.input_size

    @property
    def usual_sizes(self) -> UsualSizes | None:
        """The first model's."""
        return self._views[0].predictor.usual_sizes

    def __len__(self) -> int:
        """How many views of each image there are."""
        return len(self._views)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels.

        Points are the mean of those of the views' boxes that agree with a fused one, weighted by their scores.

        Raises:
            DetkitError: A model's detections carry more than boxes and points (masks), which cannot be fused.
        """
        # What one view alone is sure of may end below conf, and what all are unsure of does not: the views are taken
        # as evaluation takes them, and conf is asked of the mean.
        usual = Limits.evaluation()
        conf, many = min(limits.conf, usual.conf), max(limits.max_detections, usual.max_detections)
        found = []
        for view in self._views:
            own = None
            if limits.classes is not None:
                own = tuple(np.flatnonzero(np.isin(view.labels, limits.classes)).tolist())
            shown = [view.of(sample) for sample in samples]
            seen = view.predictor.predict_samples(shown, Limits(conf, limits.iou, many, own))
            pairs = zip(samples, seen, strict=True)
            found.append([view.put_back(detections, sample.image, self.classes) for sample, detections in pairs])
        return [fused(views, limits) for views in zip(*found, strict=True)]


def fused(views: Sequence[Detections], limits: Limits) -> Detections:
    """Several detections (numpy) of one image as one set.

    Args:
        views: Of the same classes.
        limits: Of the scores and number that come out.
    """
    columns = ([getattr(view, name) for view in views] for name in ("boxes", "scores", "labels"))
    boxes, scores, labels = weighted_boxes_fusion(*columns, threshold=_SAME)
    keep = np.flatnonzero(scores >= limits.conf)[: limits.max_detections]
    extra = {}
    if all("points" in view.extra for view in views):
        extra["points"] = _fused_points(boxes[keep], labels[keep], views)
    return Detections(boxes[keep], np.minimum(scores[keep], 1), labels[keep], views[0].classes, extra)


def _fused_points(boxes: np.ndarray, labels: np.ndarray, views: Sequence[Detections]) -> np.ndarray:
    """(N, K, 2): of each fused box the mean points of the views' boxes that it was made of, or else of the nearest."""
    every = [np.concatenate([getattr(view, name) for view in views]) for name in ("boxes", "labels", "scores")]
    points = np.concatenate([view.extra["points"] for view in views])
    if not len(boxes):
        return points[:0]
    overlap = np.where(labels[:, None] == every[1], iou(boxes, every[0]), -1.0)
    part = overlap >= np.minimum(_SAME, overlap.max(axis=1))[:, None]
    weight = part * np.maximum(every[2], 1e-6)
    return np.einsum("nm,mkc->nkc", weight / weight.sum(axis=1, keepdims=True), points).astype(np.float32)


def _labels_by_name(first: Predictor, other: Predictor) -> np.ndarray:
    """(C,) int64: the first model's label for each of the other's."""
    table = match_classes(other.classes, first.classes)
    lacks = [name for i, name in enumerate(first.classes) if i not in table]
    adds = [name for name, i in zip(other.classes, table, strict=True) if i < 0]
    said = {"does not know": lacks, "also knows": adds}
    differences = [f"{verb} {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for verb, names in said.items() if names]
    if differences:
        where = f"one of them, unlike the first, {' and '.join(differences)}"
        do = "name models of the same classes, or one at a time"
        raise DetkitError("the models of an ensemble must know the same classes", where, do)
    return np.array(table, dtype=np.int64)
