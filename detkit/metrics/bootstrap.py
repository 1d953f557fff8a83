"""Bootstrap over images: how far a metric, or the difference of two models, may be chance.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sections 10.2 (bias) and 13.3 (percentile intervals).
Images are drawn with replacement; detections are matched once, a draw only changes how many times each image counts.

A draw repeats images and loses thin classes, which lifts AP: on a set with few objects per class, the plain percentiles
can lie wholly above the value itself. So the draws are shifted by their bias (their mean minus the value on the data).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics import find_metric
from detkit.tables import GroundTruth, Results


@dataclass(slots=True, frozen=True)
class Difference:
    """A number of one model minus that of another.

    Attributes:
        value: On the data.
        low: Of the interval.
        high: Of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """True if the interval does not hold 0."""
        return self.low > 0 or self.high < 0


@dataclass(slots=True, frozen=True, eq=False)
class Draws:
    """A number on the data and on draws of its images; the same seed draws the same images.

    Attributes:
        value: On the data.
        drawn: (S,) float64, on the draws.
        lowest: The least it can be; the most is 1. No interval goes beyond, however few the objects are.
    """

    value: float
    drawn: np.ndarray
    lowest: float = 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The bias-corrected percentile interval (low, high); (NaN, NaN) where no draw has an object to find.

        Args:
            level: The share of the draws that it holds.

        Raises:
            ValueError: A level that does not lie between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, got {level}")
        valid = self.drawn[~np.isnan(self.drawn)]
        if not valid.size:
            return float("nan"), float("nan")
        low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2]) - (valid.mean() - self.value)
        return max(float(low), self.lowest), min(float(high), 1.0)

    def minus(self, other: Draws) -> Difference:
        """This number less the other's on the same draws, so that what both find hard cancels out."""
        difference = Draws(self.value - other.value, self.drawn - other.drawn, lowest=-1.0)
        return Difference(difference.value, *difference.interval())


def draws(
    gt: GroundTruth,
    dt: Results,
    metric: str = "AP50",
    *,
    samples: int = 1000,
    seed: int = 0,
    protocol: str = "coco",
    iou: float | None = None,
    max_detections: int = 100,
) -> Draws:
    """A number of a metric over draws of the images.

    Args:
        gt: The labels.
        dt: The detections.
        metric: Name of the number.
        samples: Draws.
        seed: Of the draws: the same seed draws the same images.
        protocol: As in ``detkit.metrics.evaluate_results``.
        iou: As there.
        max_detections: As there.

    Raises:
        ValueError: An unknown number, or fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"bootstrap needs samples >= 1, got {samples}")
    value = find_metric(protocol).resampler(gt, dt, metric, iou=iou, max_detections=max_detections)
    rng = np.random.default_rng(seed)
    images = gt.images
    drawn = [value(np.bincount(rng.integers(0, max(images, 1), images), minlength=images)) for _ in range(samples)]
    return Draws(value(np.ones(images, np.int64)), np.array(drawn, float))
