"""The exact, flat float64 tables that the metrics work on, in the file's own xywh: never through float32 xyxy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(slots=True, frozen=True, eq=False)
class GroundTruth:
    """All labelled boxes of a data set, as the metrics read them.

    images: number of images; image (N,) int64 index 0..images-1; label (N,) int64; xywh (N, 4) float64; area (N,)
    float64; crowd, difficult (N,) bool; ids (N,) int64, the annotations' own; classes: names; rows in file order.
    """

    images: int
    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]


@dataclass(slots=True, frozen=True, eq=False)
class Results:
    """Detections on a data set: image (M,) int64 index, label (M,) int64, xywh (M, 4) and score (M,) float64."""

    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)
