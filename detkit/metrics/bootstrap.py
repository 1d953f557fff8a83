"""Bootstrap over images: how far a metric, or the difference of two models, may be chance.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sections 10.2 (bias) and 13.3 (percentile intervals).
Images are drawn with replacement; detections are matched once, a draw only changes how many times each image counts.

A draw repeats images and loses thin classes, which lifts AP: on a set with few objects a class, the plain percentiles
can lie wholly above the value itself. So the draws are shifted by their bias (their mean minus the value on the data).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from detkit.metrics import protocol_module
from detkit.metrics.tables import GroundTruth, Results


@dataclass(slots=True, frozen=True)
class Difference:
    """Metric of the second model minus the first: its value, the interval, and whether 0 lies outside it."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """True if the interval does not hold 0."""
        return self.low > 0 or self.high < 0


def interval(
    gt: GroundTruth,
    dt: Results,
    metric: str = "AP50",
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    protocol: str = "coco",
    iou: float | None = None,
) -> tuple[float, float]:
    """The bias-corrected percentile interval (low, high) of a metric over ``samples`` draws of the images.

    ``iou`` is the matching threshold, as in ``evaluate``. (NaN, NaN) where no draw has an object to find. Raises
    ValueError for an unknown metric or protocol, fewer than one sample or a level outside (0, 1).
    """
    value = _resampler(gt, dt, metric, protocol, iou)
    drawn = [value(weights) for weights in _draws(gt.images, samples, seed, level)]
    return _percentiles(drawn, value(np.ones(gt.images, np.int64)), level)


def paired_difference(
    gt: GroundTruth,
    first: Results,
    second: Results,
    metric: str = "AP50",
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    protocol: str = "coco",
    iou: float | None = None,
) -> Difference:
    """Second minus first on the same draws of the images, so that what both find hard cancels out."""
    values = [_resampler(gt, dt, metric, protocol, iou) for dt in (first, second)]
    drawn = [values[1](w) - values[0](w) for w in _draws(gt.images, samples, seed, level)]
    once = np.ones(gt.images, np.int64)
    value = values[1](once) - values[0](once)
    return Difference(value, *_percentiles(drawn, value, level))


def _resampler(
    gt: GroundTruth, dt: Results, metric: str, protocol: str, iou: float | None
) -> Callable[[np.ndarray], float]:
    module, options = protocol_module(protocol)
    if iou is not None:
        options = {**options, "iou": iou}
    return module.resampler(gt, dt, metric, **options)


def _draws(images: int, samples: int, seed: int, level: float) -> Iterator[np.ndarray]:
    """How many times each image is drawn: (images,) int64 a sample."""
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap needs samples >= 1 and a level in (0, 1), got {samples} and {level}")
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(0, images, images), minlength=images) if images else np.zeros(0, np.int64)


def _percentiles(drawn: list[float], value: float, level: float) -> tuple[float, float]:
    valid = np.array([one for one in drawn if not np.isnan(one)])
    if not valid.size:
        return float("nan"), float("nan")
    low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2]) - (valid.mean() - value)
    return float(low), float(high)
