"""How alike vectors are, for matching: cosine, and the differences that a siamese network weighs."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

Measure = Literal["cosine", "absolute", "chi_square"]


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
