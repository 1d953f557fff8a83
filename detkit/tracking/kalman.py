"""A Kalman filter of constant velocity for many boxes at once.

Motion and noise of centre x, centre y, width and height are independent of each other, so that each is a filter of two
numbers, place and velocity, whose covariance is three: no matrix is ever inverted. Noise grows with the box, as in
SORT (Bewley et al. 2016) and BoT-SORT (Aharon et al. 2022, section 3.1).
"""

from __future__ import annotations

import numpy as np

_PLACE, _VELOCITY = 1 / 20, 1 / 160  # standard deviations, as parts of the width or height

# centre, width, height; their velocities per unit of time; variance of place, covariance, variance of velocity
STATE = [("x", "f8", 4), ("v", "f8", 4), ("p", "f8", (3, 4))]


def start(states: np.ndarray, boxes: np.ndarray) -> None:
    """Sets states to boxes (N, 4: centre, width, height) that were seen for the first time and may move anyhow."""
    size = _size(boxes)
    states["x"], states["v"] = boxes, 0
    states["p"][:, 0], states["p"][:, 1], states["p"][:, 2] = (2 * _PLACE * size) ** 2, 0, (10 * _VELOCITY * size) ** 2


def predict(states: np.ndarray, time: float) -> None:
    """Moves states on by ``time`` units, and widens their covariance."""
    place, both, velocity = (states["p"][:, i] for i in range(3))
    size = _size(states["x"])
    states["x"] += states["v"] * time
    states["x"][:, 2:] = np.maximum(states["x"][:, 2:], 1e-3)
    place += 2 * time * both + time**2 * velocity + time * (_PLACE * size) ** 2
    both += time * velocity
    velocity += time * (_VELOCITY * size) ** 2


def update(states: np.ndarray, boxes: np.ndarray) -> None:
    """Corrects states by the boxes (N, 4: centre, width, height) that were seen."""
    place, both, velocity = (states["p"][:, i] for i in range(3))
    total = place + (_PLACE * _size(states["x"])) ** 2
    gain, gain_v, error = place / total, both / total, boxes - states["x"]
    states["x"] += gain * error
    states["v"] += gain_v * error
    velocity -= gain_v * both
    both *= 1 - gain
    place *= 1 - gain


def _size(boxes: np.ndarray) -> np.ndarray:
    """Width, height, width, height of each."""
    return np.maximum(boxes[:, [2, 3, 2, 3]], 1.0)
