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
FILTERS = {
    "vertical": np.outer([1, 1, 1], _STEP),
    "horizontal": np.outer(_STEP, [1, 1, 1]),
    "sobel": np.outer([1, 2, 1], _STEP),
    "scharr": np.outer([3, 10, 3], _STEP),
    "red": np.outer([1, 1, 1], _STEP)[..., None] * _RED,
}


def example() -> np.ndarray:
    """(6, 6) float64: the textbook's image, 10 in its left half and 0 in its right."""
    return np.repeat([[10.0, 10, 10, 0, 0, 0]], 6, axis=0)


def response(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H - f + 1, W - f + 1) float64: what a filter answers at every place where it lies inside the image.

    image: (H, W) or (H, W, 3), in any units; weights: (f, f), which see the mean of the colours, or (f, f, 3).

    Raises:
        ValueError: the filter is larger than the image, or wants colours that a grey image has not.
    """
    return _windows(image, weights) @ weights.ravel()


class Learned(NamedTuple):
    """weights: as the filter to be found; error: root of the mean square of the answers' differences, as a share of
    the right answers' own; steps: of gradient descent."""

    weights: np.ndarray
    error: float
    steps: int


def learn(image: np.ndarray, wanted: np.ndarray, *, steps: int = 20_000, seed: int = 0) -> Learned:
    """A filter of ``wanted``'s shape, found from its answers to the image alone: gradient descent with Nesterov's
    momentum on the mean squared error, from random weights until the gradient is gone, at most ``steps`` steps.

    The error is quadratic in the weights, so it is summed up once: a step costs f^4 numbers whatever the image's
    size. In an image that does not vary in every direction several filters answer alike, and one of them is found.

    Raises:
        ValueError: as ``response``.
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
    return Learned(now.reshape(wanted.shape), error, step)


def as_image(answers: np.ndarray) -> np.ndarray:
    """Answers (H, W) as uint8 (H, W, 3): grey is 0, white the largest size of any answer, black minus that."""
    scaled = answers / max(float(np.abs(answers).max(initial=0)), 1e-12)
    return np.repeat(np.rint(127.5 + 127.5 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def _windows(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H - f + 1, W - f + 1, f * f * channels) float64, in the order of ``weights.ravel()``."""
    image = np.asarray(image, np.float64)
    if image.ndim == 3 and weights.ndim == 2:
        image = image.mean(axis=2)
    if image.ndim != weights.ndim or image.shape[2:] != weights.shape[2:]:
        raise ValueError(f"a filter {weights.shape} does not fit an image {image.shape}")
    if min(image.shape[:2]) < len(weights):
        raise ValueError(f"an image {image.shape} is smaller than the filter {weights.shape}")
    found = np.lib.stride_tricks.sliding_window_view(image, weights.shape[:2], axis=(0, 1))
    found = np.moveaxis(found, 2, -1) if weights.ndim == 3 else found
    return found.reshape(*found.shape[:2], weights.size)
