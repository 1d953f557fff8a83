"""How good proposals are: which objects they reach, before any of them is classified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.ops.boxes import iou

COUNTS = (100, 200, 500, 1000, 2000)


def best_overlaps(boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """(N,) IoU of each box (N, 4) xyxy with the proposal (R, 4) that fits it best; 0 where there is none."""
    if not len(boxes) or not len(proposals):
        return np.zeros(len(boxes), np.float32)
    return np.asarray(iou(boxes, proposals)).max(axis=1)


@dataclass(frozen=True)
class Recall:
    """Of the first ``count`` proposals of each image: ``recall`` by IoU threshold, ``mabo`` and ``proposals``.

    mabo: the mean over classes of the average best overlap (Uijlings et al. 2013, section 5.1); proposals: how many an
    image had on average. NaN where there is no object.
    """

    count: int
    proposals: float
    recall: dict[float, float]
    mabo: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        recall = {f"recall@{threshold:g}": value for threshold, value in self.recall.items()}
        return {"count": self.count, "proposals": self.proposals, **recall, "mabo": self.mabo}


class RecallMeter:
    """Gathers ``Recall`` for several numbers of proposals, image by image; the best proposals come first."""

    def __init__(self, counts: Sequence[int] = COUNTS, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        self.counts, self.thresholds = tuple(counts), tuple(thresholds)
        self._labels: list[np.ndarray] = []
        self._overlaps: list[list[np.ndarray]] = [[] for _ in self.counts]
        self._used: list[list[int]] = [[] for _ in self.counts]

    def add(self, boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray) -> None:
        """One image: its objects (N, 4) and (N,), and its proposals (R, 4)."""
        self._labels.append(np.asarray(labels))
        for count, overlaps, used in zip(self.counts, self._overlaps, self._used, strict=True):
            overlaps.append(best_overlaps(boxes, proposals[:count]))
            used.append(min(count, len(proposals)))

    @property
    def objects(self) -> int:
        """Objects so far."""
        return sum(len(labels) for labels in self._labels)

    def results(self) -> list[Recall]:
        """One entry a count."""
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        found = []
        for count, parts, used in zip(self.counts, self._overlaps, self._used, strict=True):
            overlap = np.concatenate([np.zeros(0), *parts])
            recall = {t: float((overlap >= t).mean()) if len(overlap) else np.nan for t in self.thresholds}
            classes = [overlap[labels == label].mean() for label in np.unique(labels)]
            mabo = float(np.mean(classes)) if classes else np.nan
            found.append(Recall(count, float(np.mean(used)) if used else 0.0, recall, mabo))
        return found
