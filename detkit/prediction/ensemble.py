"""Several looks at one image: mirrored, rescaled and cropped views (test-time augmentation), several models (an
ensemble).

All looks are fused in one pass, by weighted boxes fusion (Solovyev, Wang and Gabruseva 2021). A look that finds
nothing at a place counts as a score of 0 there, so a score is the mean over all looks and stays comparable with those
of a single model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from detkit.data.names import match_classes
from detkit.data.warp import swapped
from detkit.errors import DetkitError
from detkit.ops.boxes import iou
from detkit.ops.fusion import weighted_boxes_fusion
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

TTA = ("flip", "scales", "crops")
SCALES = (0.8, 1.25)  # of the model's own input size, besides it
CROP = 0.875  # of the image's sides: AlexNet's 224 of 256 (Krizhevsky et al. 2012, section 4.1), besides the whole
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
# Above the usual 0.5 of the looks' own NMS, so that two boxes of one look seldom meet in a cluster and dilute it.
_SAME = 0.6


class _Look(NamedTuple):
    predictor: Predictor
    corner: tuple[float, float] | None  # of a crop: the shares of what it leaves out that lie above and left of it
    mirrored: bool
    labels: np.ndarray  # (C,) the ensemble's label by the model's own


class Combined(Predictor):
    """Several models and, or, several views of each image, fused to one set of detections.

    A box's score is the mean over all looks, 0 where a look has no such box. ``iou`` of the limits is that of each
    look's NMS. The threshold is the mean of the models'.
    """

    def __init__(self, models: Sequence[Predictor], tta: Sequence[str] = ()) -> None:
        """models: one or more, of the same class names (in any order); tta: of ``TTA``: "flip" adds mirrored views,
        "scales" larger and smaller ones, "crops" a classifier's looks at the four corners and the centre; several
        together every combination of them.

        Raises:
            DetkitError: the models know different classes or answer differently (boxes, points, the image's class),
                an unknown kind of view, a model of fixed input size, or crops for a model that answers with boxes.
        """
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
            kinds, what = {"coco": "boxes", "points": "box and points"}, "the models of an ensemble must answer alike"
            answers = ", ".join(kinds.get(model.protocol, "classes of whole images") for model in models)
            raise DetkitError(what, f"they give, in this order: {answers}", "name models of one kind, or one at a time")
        self.classes, self.class_ids = first.classes, first.class_ids
        self.threshold = sum(model.threshold for model in models) / len(models)
        self.protocol, self.flip_pairs = first.protocol, first.flip_pairs
        self._looks: list[_Look] = []
        for model in models:
            labels = _labels_by_name(first, model)
            views = [model, *(model.rescaled(scale) for scale in SCALES if "scales" in tta)]
            corners = (None, *(_CORNERS if "crops" in tta else ()))
            mirrored = (False, True) if "flip" in tta else (False,)
            self._looks += [_Look(*one, labels) for one in product(views, corners, mirrored)]

    def __len__(self) -> int:
        """How often each image is looked at."""
        return len(self._looks)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels.

        Points are the mean of those of the looks' boxes that agree with a fused one, weighted by their scores.

        Raises:
            DetkitError: a model's detections carry more than boxes and points (masks), which cannot be fused.
        """
        # What one look alone is sure of may end below conf, and what all are unsure of does not: the looks are taken
        # as evaluation takes them, and conf is asked of the mean.
        many = max(limits.max_detections, Limits.evaluation().max_detections)
        conf = min(limits.conf, Limits.evaluation().conf)
        found: list[list[Detections]] = [[] for _ in samples]
        views: dict[tuple[Any, ...], list[Sample]] = {}  # models and scales look at the same ones
        for look in self._looks:
            own = None
            if limits.classes is not None:
                own = tuple(np.flatnonzero(np.isin(look.labels, limits.classes)).tolist())
            asked = Limits(conf, limits.iou, many, own)
            view = look.corner, look.mirrored
            if view not in views:
                views[view] = [_view(sample, *view) for sample in samples]
            seen = look.predictor.predict_samples(views[view], asked)
            for i, detections in enumerate(seen):
                found[i].append(self._put_back(detections, look, samples[i].image.shape[:2]))
        return [self._fused(looks, limits) for looks in found]

    def _put_back(self, found: Detections, look: _Look, size: Sequence[int]) -> Detections:
        if other := [name for name in found.extra if name != "points"]:
            what = f"{', '.join(other)} of several views cannot be fused"
            raise DetkitError(what, "--tta, --ensemble", "only boxes and points can: use this model by itself")
        (height, width), boxes, extra = size, found.boxes, dict(found.extra)
        if look.corner is not None:  # a classifier's answer is for the whole image
            boxes = np.tile(np.array([0, 0, width, height], np.float32), (len(found), 1))
        elif look.mirrored:
            boxes = _mirrored_boxes(boxes, width)
            if "points" in extra:
                points = swapped(extra["points"], look.predictor.flip_pairs)
                points[..., 0] = width - points[..., 0]
                extra["points"] = points
        return Detections(boxes, found.scores, look.labels[found.labels], self.classes, extra)

    def _fused(self, looks: list[Detections], limits: Limits) -> Detections:
        columns: list[Any] = [[getattr(look, name) for look in looks] for name in ("boxes", "scores", "labels")]
        boxes, scores, labels = weighted_boxes_fusion(*columns, threshold=_SAME)
        keep = np.flatnonzero(scores >= limits.conf)[: limits.max_detections]
        extra = {}
        if all("points" in look.extra for look in looks):
            extra["points"] = _fused_points(boxes[keep], labels[keep], looks)
        return Detections(boxes[keep], np.minimum(scores[keep], 1), labels[keep], self.classes, extra)


def _fused_points(boxes: np.ndarray, labels: np.ndarray, looks: list[Detections]) -> np.ndarray:
    """(N, K, 2): of each fused box the mean points of the looks' boxes that it was made of, or else of the nearest."""
    every = [np.concatenate([getattr(look, name) for look in looks]) for name in ("boxes", "labels", "scores")]
    points = np.concatenate([look.extra["points"] for look in looks])
    if not len(boxes):
        return points[:0]
    overlap = np.where(labels[:, None] == every[1], iou(boxes, every[0]), -1.0)
    part = overlap >= np.minimum(_SAME, overlap.max(axis=1))[:, None]
    weight = part * np.maximum(every[2], 1e-6)
    return np.einsum("nm,mkc->nkc", weight / weight.sum(axis=1, keepdims=True), points).astype(np.float32)


def _view(sample: Sample, corner: tuple[float, float] | None, mirrored: bool) -> Sample:
    """What of the image the model is shown; see ``_Look``."""
    image, proposals = sample.image, sample.proposals
    if corner is not None:
        height, width = (max(round(side * CROP), 1) for side in image.shape[:2])
        top, left = round(corner[0] * (image.shape[0] - height)), round(corner[1] * (image.shape[1] - width))
        image = image[top : top + height, left : left + width]
    if mirrored:
        image = image[:, ::-1]
        proposals = None if proposals is None else _mirrored_boxes(proposals, image.shape[1])
    return sample.replace(image=np.ascontiguousarray(image), proposals=proposals)


def _mirrored_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _labels_by_name(first: Predictor, other: Predictor) -> np.ndarray:
    """(C,) int64: the first model's label for each of the other's."""
    table = match_classes(other.classes, first.classes)
    lacks = [name for i, name in enumerate(first.classes) if i not in table]
    adds = [name for name, i in zip(other.classes, table, strict=True) if i < 0]
    said = {"does not know": lacks, "also knows": adds}
    differences = [f"{verb} {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for verb, names in said.items() if names]
    if differences:
        raise DetkitError(
            "the models of an ensemble must know the same classes",
            f"one of them, unlike the first, {' and '.join(differences)}",
            "name models of the same classes, or one at a time",
        )
    return np.array(table, dtype=np.int64)
