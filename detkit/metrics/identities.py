"""How alike vectors are, and matching judged by it: is the nearest image of the same identity, are two of one?"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from scipy.spatial.distance import cdist

from detkit.errors import DetkitError
from detkit.interfaces import Metric
from detkit.metrics.classification import Classification
from detkit.tables import Evaluation, GroundTruth, Results

Measure = Literal["cosine", "absolute", "chi_square"]
FALSE_ACCEPTS = 0.01  # of verification, where nothing else is asked for
_MOST = 3000  # images whose pairs are looked at


def likeness(a: np.ndarray, b: np.ndarray, measure: Measure = "cosine") -> np.ndarray:
    """Of every pair, the more alike the higher.

    Args:
        a: (N, D), for the cosine of length 1, for chi-square 0 or more.
        b: (M, D).
        measure: The cosine sum a b, minus the absolute difference sum |a - b|, or minus chi-square sum (a - b)^2 /
            (a + b) (Taigman et al., "DeepFace", 2014, section 4.1).

    Returns:
        (N, M) float64.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if measure == "cosine":
        return np.asarray(a @ b.T)
    if measure == "absolute":
        return np.asarray(-cdist(a, b, "cityblock"))
    each = [((b - vector) ** 2 / np.maximum(b + vector, 1e-12)).sum(1) for vector in a]
    return np.asarray(-np.reshape(each, (len(a), len(b))))


class Match(Metric):
    """Identification and verification of images by their vectors; identities need not be those of the training.

    rank1: the share of images whose nearest other image is of their identity (of those that have another). Verification
    asks of every pair whether it is of one identity: AUC of its ROC curve, TAR, the share of pairs of one identity that
    are accepted from that ``threshold`` on that accepts at most 1 % of the others, and EER, where as many are refused
    as are wrongly accepted. At most 3000 images, evenly chosen.
    """

    answers = "labels"
    scores = ("rank1", "AUC", "TAR")
    shown = ("rank1", "TAR")
    rules = "identities (nearest other image; pairs of images, TAR where 1 % of the different ones are accepted)"
    takes_iou = False
    measure: ClassVar[Measure] = "cosine"

    def check(self, gt: GroundTruth) -> None:
        """Raises DetkitError for images that do not have exactly one label, and where no identity has two images."""
        Classification().check(gt)
        if np.bincount(gt.label).max(initial=0) < 2:
            do = "give folders of two images or more"
            raise DetkitError("no identity has two images: there are no pairs to judge", f"{gt.images} images", do)

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """rank1, AUC, TAR, threshold and EER, and rank1 of each identity (NaN where it has one image)."""
        Classification().check(gt)
        labels, alike = self._alike(gt, dt)
        several = np.bincount(labels)[labels] > 1
        hidden = np.where(np.eye(len(labels), dtype=bool), -np.inf, alike)
        hit = np.where(several, labels[hidden.argmax(1)] == labels, np.nan)
        rank1, per_class = float(np.nanmean(hit)) if several.any() else np.nan, {}
        for k, count in zip(*np.unique(gt.label, return_counts=True), strict=True):
            mine = hit[labels == k]
            per_class[gt.classes[k]] = {"rank1": float(mine.mean()) if len(mine) else np.nan, "objects": int(count)}
        return Evaluation({"rank1": rank1, **verification(*_split(labels, alike))}, per_class)

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
        false_accepts: The share of ``different`` that may be accepted for TAR.
    """
    if not len(same) or not len(different):
        return dict.fromkeys(("AUC", "TAR", "threshold", "EER"), np.nan)
    at = threshold_at(different, false_accepts)
    accepted, refused = roc(same, different)[:2]
    area = np.trapezoid(1 - np.append(1, refused), np.append(0, accepted))
    equal = (accepted + refused)[np.abs(accepted - refused).argmin()] / 2
    return {"AUC": float(area), "TAR": float((same >= at).mean()), "threshold": at, "EER": float(equal)}


def threshold_at(different: np.ndarray, false_accepts: float) -> float:
    """The likeness from which on at most a share of pairs of different identities are accepted: the next float above
    the first of them that is not.

    Args:
        different: (N,) their likenesses.
        false_accepts: The share.
    """
    return float(np.nextafter(np.quantile(different, 1 - false_accepts, method="inverted_cdf"), np.inf))


def roc(same: np.ndarray, different: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each threshold, falling: the shares of different pairs accepted and of same pairs refused; the threshold."""
    thresholds = np.unique(np.concatenate([same, different]))[::-1]
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    return accepted, refused, thresholds
