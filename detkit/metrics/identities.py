"""Matching judged by vectors: is the nearest image of the same identity, and are two images of one?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from detkit.errors import DetkitError
from detkit.interfaces import Metric
from detkit.metrics.classification import Classification
from detkit.ops.similarity import Measure, likeness
from detkit.tables import Evaluation, GroundTruth, Results

FALSE_ACCEPTS = 0.01  # of verification, where nothing else is asked for
_MOST = 3000  # images whose pairs are looked at


class Match(Metric):
    """Identification and verification of images by their vectors; identities need not be those of the training.

    rank1: the share of images whose nearest other image is of their identity (of those that have another). Verification
    asks of every pair whether it is of one identity: AUC of its ROC curve, TAR, the share of pairs of one identity that
    are accepted at the ``threshold`` that accepts 1 % of the others, and EER, where as many are refused as are wrongly
    accepted. At most 3000 images, evenly chosen.
    """

    answers = "labels"
    scores = ("rank1", "AUC", "TAR")
    shown = ("rank1", "TAR")
    rules = "identities (nearest other image; pairs of images, TAR where 1 % of the different ones are accepted)"
    takes_iou = False
    measure: ClassVar[Measure] = "cosine"

    def check(self, gt: GroundTruth) -> None:
        """Raises DetkitError for images that do not have exactly one label."""
        Classification().check(gt)

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """rank1, AUC, TAR, threshold and EER, and rank1 of each identity (NaN where it has one image)."""
        if iou is not None:
            raise ValueError("matching matches no boxes, so it takes no iou")
        self.check(gt)
        labels, alike = self._alike(gt, dt)
        same = labels[:, None] == labels
        hidden = np.where(np.eye(len(labels), dtype=bool), -np.inf, alike)
        several = same.sum(1) > 1
        hit = np.where(several, labels[hidden.argmax(1)] == labels, np.nan)
        yes, no = _split(labels, alike)
        metrics = {"rank1": float(np.nanmean(hit)) if several.any() else np.nan, **verification(yes, no)}
        rows = {int(k): hit[(labels == k) & several] for k in np.unique(gt.label)}
        per_class = {
            gt.classes[k]: {"rank1": float(mine.mean()) if len(mine) else np.nan, "objects": int((gt.label == k).sum())}
            for k, mine in rows.items()
        }
        return Evaluation(metrics, per_class)

    def _alike(self, gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
        """Labels (M,) and likenesses (M, M) of the images."""
        if dt.embedding is None:
            raise DetkitError("these answers are no vectors", "--protocol match", "take head embed")
        label = np.empty(gt.images, np.int64)
        label[gt.image] = gt.label
        rows = np.unique(np.linspace(0, len(dt) - 1, min(_MOST, len(dt))).astype(int))
        vectors = dt.embedding[rows]
        return label[dt.image[rows]], likeness(vectors, vectors, self.measure)

    def pairs(self, gt: GroundTruth, dt: Results) -> tuple[np.ndarray, np.ndarray]:
        """Likenesses of the pairs of one identity, and of the others."""
        return _split(*self._alike(gt, dt))


class MatchAbsolute(Match):
    """By weighted absolute differences."""

    measure = "absolute"


class MatchChiSquare(Match):
    """By chi-square differences."""

    measure = "chi_square"


def _split(labels: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.triu_indices(len(labels), 1)
    same, found = labels[first] == labels[second], alike[first, second]
    return found[same], found[~same]


def verification(same: np.ndarray, different: np.ndarray, false_accepts: float = FALSE_ACCEPTS) -> dict[str, float]:
    """AUC, TAR with its threshold, and EER of the likenesses of pairs; NaN where there are none.

    Args:
        same: (P,) of pairs of one identity.
        different: (N,) of the others.
        false_accepts: The share of ``different`` that is accepted for TAR.
    """
    if not len(same) or not len(different):
        return dict.fromkeys(("AUC", "TAR", "threshold", "EER"), np.nan)
    at = np.quantile(different, 1 - false_accepts)
    accepted, refused = roc(same, different)[:2]
    area = np.trapezoid(1 - np.append(1, refused), np.append(0, accepted))
    equal = (accepted + refused)[np.abs(accepted - refused).argmin()] / 2
    return {"AUC": float(area), "TAR": float((same > at).mean()), "threshold": float(at), "EER": float(equal)}


def roc(same: np.ndarray, different: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each threshold, falling: the shares of different pairs accepted and of same pairs refused; the threshold."""
    thresholds = np.unique(np.concatenate([same, different]))[::-1]
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    return accepted, refused, thresholds
