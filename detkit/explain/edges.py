"""Edge filters made by hand, and one that gradient descent finds from what they answer.

Networks call it a convolution, but the kernel is not flipped: it is a cross-correlation, and so it is here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_STEP = np.array([1.0, 0.0, -1.0])  # bright at the left, dark at the right
_RED = np.array([1.0, 0.0, 0.0])

# (3, 3), or (3, 3, 3: red, green, blue) for one that tells colours apart. Sobel weighs the middle row twice as much,
# Scharr (2000, "Optimal Operators in Digital Image Processing", chapter 9) so that edges of any angle answer alike.
EDGE_FILTERS = {
    "vertical": np.outer([1, 1, 1], _STEP),
    "horizontal": np.outer(_STEP, [1, 1, 1]),
    "sobel": np.outer([1, 2, 1], _STEP),
    "scharr": np.outer([3, 10, 3], _STEP),
    "red": np.outer([1, 1, 1], _STEP)[..., None] * _RED,
}
# (6, 6) float64: the textbook's image, 10 in its left half and 0 in its right.
TEXTBOOK_IMAGE = np.repeat([[10.0, 10, 10, 0, 0, 0]], 6, axis=0)


def filter_response(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What a filter answers at every place where it lies inside the image.

    Args:
        image: (H, W) or (H, W, 3), in any units.
        weights: (f, f), which see the mean of the colours, or (f, f, 3).

    Returns:
        (H - f + 1, W - f + 1) float64.

    Raises:
        ValueError: The filter is larger than the image, or wants colours that a grey image has not.
    """
    return _windows(image, weights) @ weights.ravel()


class LearnedFilter(NamedTuple):
    """What gradient descent found.

    Attributes:
        weights: In the shape of the filter to be found.
        error: Root of the mean square of the answers' differences, as a share of the right answers' own.
        steps: Of gradient descent.
    """

    weights: np.ndarray
    error: float
    steps: int


def learn_filter(image: np.ndarray, wanted: np.ndarray, *, steps: int = 20_000, seed: int = 0) -> LearnedFilter:
    """Finds a filter from its answers to the image alone.

    Gradient descent with Nesterov's momentum on the mean squared error, from random weights until the gradient is gone.
    The error is quadratic in the weights, so it is summed up once: a step costs f^4 numbers whatever the image's
    size. In an image that does not vary in every direction several filters answer alike, and one of them is found.

    Args:
        image: As for ``filter_response``.
        wanted: The filter whose answers are shown.
        steps: At most so many.
        seed: Of the first weights.

    Raises:
        ValueError: As ``filter_response``.
    """
    windows = _windows(image, wanted).reshape(-1, wanted.size)
    hessian = windows.T @ windows / len(windows)
    target = hessian @ wanted.ravel()
    rate = 1 / max(float(np.linalg.norm(hessian, 2)), 1e-12)
    now = before = np.random.default_rng(seed).normal(size=wanted.size)
    step = 0
    for step in range(1, steps + 1):
        ahead = now + (step - 1) / (step + 2) * (now - before)
        gradient = hessian @ ahead - target
        now, before = ahead - rate * gradient, now
        if np.linalg.norm(gradient) <= 1e-11 * np.linalg.norm(target):
            break
    off, size = windows @ (now - wanted.ravel()), windows @ wanted.ravel()
    error = float(np.sqrt((off**2).mean() / max((size**2).mean(), 1e-12)))
    return LearnedFilter(now.reshape(wanted.shape), error, step)


def _windows(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H - f + 1, W - f + 1, f * f * channels) float64, in the order of ``weights.ravel()``."""
    image = np.asarray(image, np.float64)
    if image.ndim == 3 and weights.ndim == 2:
        image = image.mean(axis=2)
    if image.ndim != weights.ndim or image.shape[2:] != weights.shape[2:]:
        raise ValueError(f"a filter {weights.shape} does not fit an image {image.shape}")
    if min(image.shape[:2]) < len(weights):
        raise ValueError(f"an image {image.shape} is smaller than the filter {weights.shape}")
    found = np.lib.stride_tricks.sliding_window_view(image, weights.shape)
    return found.reshape(*found.shape[:2], weights.size)
