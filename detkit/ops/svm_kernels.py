"""The kernel that trains a linear support vector machine."""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel


@kernel
def descend(
    x: np.ndarray,
    signs: np.ndarray,
    limits: np.ndarray,
    alpha: np.ndarray,
    weight: np.ndarray,
    seed: int,
    tolerance: float,
    epochs: int,
) -> int:
    """Dual coordinate descent (Hsieh et al. 2008, "A Dual Coordinate Descent Method for Large-scale Linear SVM",
    algorithm 1) for min |w|^2 / 2 + sum_i limits_i max(0, 1 - signs_i w x_i); returns the passes it took.

    x (N, D) float32; signs (N,) float32, 1 or -1; limits (N,) float32; alpha (N,) float32 and weight (D,) float32, the
    sum of alpha_i signs_i x_i, are where it starts, and are changed in place. tolerance: largest difference of the
    projected gradients; epochs: passes at most.
    """
    count = len(x)
    squares = np.empty(count, np.float32)
    for i in range(count):
        squares[i] = np.dot(x[i], x[i])
    order = np.arange(count)
    np.random.seed(seed)  # noqa: NPY002 (the compiled generator, not numpy's)
    for epoch in range(epochs):
        for i in range(count - 1, 0, -1):
            j = np.random.randint(0, i + 1)  # noqa: NPY002
            order[i], order[j] = order[j], order[i]
        highest, lowest = -np.inf, np.inf
        for row in order:
            if squares[row] <= 0:
                continue
            gradient = signs[row] * np.dot(weight, x[row]) - 1
            if alpha[row] <= 0:
                projected = min(gradient, 0.0)
            elif alpha[row] >= limits[row]:
                projected = max(gradient, 0.0)
            else:
                projected = gradient
            highest, lowest = max(highest, projected), min(lowest, projected)
            if projected != 0:
                old = alpha[row]
                alpha[row] = min(max(old - gradient / squares[row], 0.0), limits[row])
                step = (alpha[row] - old) * signs[row]
                for d in range(len(weight)):
                    weight[d] += step * x[row, d]
        if highest - lowest <= tolerance:
            return epoch + 1
    return epochs
