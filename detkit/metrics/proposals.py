"""How good proposals are: which objects they reach, before any of them is classified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.ops.boxes import iou

COUNTS = (100, 200, 500, 1000, 2000)


def best_overlaps(boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """How well each box is proposed.

    Args:
        boxes: (N, 4) xyxy.
        proposals: (R, 4) xyxy.

    Returns:
        (N,) IoU with the proposal that fits best; 0 where there is none.
    """
    return np.asarray(iou(boxes, proposals).max(axis=1, initial=0))


class RecallMeter:
    """Gathers how good the first proposals are, image by image; the best ones come first.

    Args:
        counts: Numbers of proposals.
        thresholds: IoU.
    """

    def __init__(self, counts: Sequence[int] = COUNTS, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        self.counts, self.thresholds = tuple(counts), tuple(thresholds)
        self._labels = [np.zeros(0, np.int64)]
        self._overlaps = [np.zeros((len(self.counts), 0))]
        self._sizes: list[int] = []

    def add(self, boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray) -> None:
        """One image: its objects (N, 4) and (N,), and its proposals (R, 4)."""
        self._labels.append(np.asarray(labels))
        self._overlaps.append(np.stack([best_overlaps(boxes, proposals[:count]) for count in self.counts]))
        self._sizes.append(len(proposals))

    @property
    def objects(self) -> int:
        """Objects so far."""
        return sum(map(len, self._labels))

    def results(self) -> list[dict[str, float]]:
        """For each of ``counts``: ``count`` and ``proposals``, how many an image had on average; ``recall@0.5`` and so
        on by threshold; ``mabo``, the mean over classes of the average best overlap (Uijlings et al. 2013, section
        5.1). NaN where there is no object."""
        labels, found = np.concatenate(self._labels), []
        for count, overlap in zip(self.counts, np.concatenate(self._overlaps, axis=1), strict=True):
            row = {"count": count, "proposals": float(np.mean(np.minimum(self._sizes or 0, count)))}
            for threshold in self.thresholds:
                row[f"recall@{threshold:g}"] = float((overlap >= threshold).mean()) if len(overlap) else np.nan
            classes = [overlap[labels == label].mean() for label in np.unique(labels)]
            found.append({**row, "mabo": float(np.mean(classes)) if classes else np.nan})
        return found
