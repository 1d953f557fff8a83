"""A Kalman filter of constant velocity for many boxes at once.

Motion and noise of centre x, centre y, width and height are independent of each other, so that each is a filter of two
numbers, place and velocity, whose covariance is three: no matrix is ever inverted. Noise grows with the box, as in
SORT (Bewley et al. 2016) and BoT-SORT (Aharon et al. 2022, section 3.1; there 1/20 instead of 1/30 for the place).

States are float64 (N, 5, 4), C-contiguous: place, velocity per unit of time, variance of place, covariance, variance of
velocity, each of centre x, centre y, width and height. Compiled: in numpy a tracker spends most of its time here.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

SHAPE = (5, 4)
_PLACE, _VELOCITY = 1 / 30, 1 / 160  # standard deviations, as parts of the width or height


def start(boxes: np.ndarray) -> np.ndarray:
    """States (N, 5, 4) of boxes (N, 4: centre, width, height) that were seen for the first time and may move anyhow."""
    states, size = np.zeros((len(boxes), *SHAPE)), np.maximum(boxes[:, [2, 3, 2, 3]], 1.0)
    states[:, 0], states[:, 2], states[:, 4] = boxes, (2 * _PLACE * size) ** 2, (10 * _VELOCITY * size) ** 2
    return states


@kernel
def _move(state: np.ndarray, time: float) -> None:
    sizes = max(state[0, 2], 1.0), max(state[0, 3], 1.0)
    for k in range(4):
        size = sizes[k % 2]
        state[0, k] += state[1, k] * time
        state[2, k] += 2 * time * state[3, k] + time**2 * state[4, k] + time * (_PLACE * size) ** 2
        state[3, k] += time * state[4, k]
        state[4, k] += time * (_VELOCITY * size) ** 2
    for k in range(2, 4):
        state[0, k] = max(state[0, k], 1e-3)


@kernel
def _correct(state: np.ndarray, box: np.ndarray) -> None:
    sizes = max(state[0, 2], 1.0), max(state[0, 3], 1.0)
    for k in range(4):
        total = state[2, k] + (_PLACE * sizes[k % 2]) ** 2
        gain, gain_v, error = state[2, k] / total, state[3, k] / total, box[k] - state[0, k]
        state[0, k] += gain * error
        state[1, k] += gain_v * error
        state[4, k] -= gain_v * state[3, k]
        state[3, k] *= 1 - gain
        state[2, k] *= 1 - gain


@kernel
def predict(states: np.ndarray, time: float) -> None:
    """Moves states on by ``time`` units, and widens their covariance."""
    for i in range(len(states)):
        _move(states[i], time)


@kernel
def update(states: np.ndarray, boxes: np.ndarray) -> None:
    """Corrects states by the boxes (N, 4: centre, width, height) that were seen."""
    for i in range(len(states)):
        _correct(states[i], boxes[i])


@kernel
def travel(states: np.ndarray, first: np.ndarray, last: np.ndarray, frames: np.ndarray, time: float) -> None:
    """Moves states on by ``frames`` (N,) times ``time``, as if they had been seen on a straight way.

    From ``first`` to ``last`` (N, 4: centre, width, height), but for the last frame, of which the caller knows.
    """
    for i in range(len(states)):
        for step in range(1, frames[i] + 1):
            _move(states[i], time)
            if step < frames[i]:
                _correct(states[i], first[i] + (last[i] - first[i]) * (step / frames[i]))
