"""Whether an exported detector answers as the one that it was made of, on photographs and, if given, on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from detkit.data.dataset import Dataset
from detkit.engine.evaluator import detect_dataset
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.io.images import read_image
from detkit.metrics import evaluate_results, find_metric
from detkit.ops.boxes import iou
from detkit.predictor import Predictor
from detkit.printed import aligned
from detkit.structures import Detections, Limits, Sample

BATCHES = (1, 4)
_PER_IMAGE = 10  # detections to compare at least, where the model has so many
_MOST = 0.05  # of scores below it nothing is asked, where there are enough above
_SAME = 0.5  # IoU from which two boxes of one class are one object's
_LOST = 0.01  # share of detections that may have no partner: NMS turns over ties


@dataclass(frozen=True)
class Tolerance:
    """How far answers may differ.

    Attributes:
        box: A side, in input pixels.
        score: A score.
    """

    box: float = 0.05
    score: float = 1e-3


@dataclass(frozen=True)
class Difference:
    """What differs at one batch size.

    Attributes:
        batch: Images at a time.
        images: Compared.
        detections: Of the model.
        matched: Those of them that the exported model has, too.
        box: Largest difference of a side, in input pixels.
        score: Largest difference of a score.
    """

    batch: int
    images: int
    detections: int
    matched: int
    box: float
    score: float

    def within(self, tolerance: Tolerance) -> bool:
        """True if the two are equal for all that a user sees."""
        enough = self.matched >= self.detections * (1 - _LOST)
        return enough and self.box <= tolerance.box and self.score <= tolerance.score


@dataclass(frozen=True)
class Proof:
    """All comparisons of a model and its exported form.

    Attributes:
        differences: One per batch size.
        tolerance: What they may be.
        lowest: The score from which detections are compared.
        scores: What both reach on the data, where some was given: the metric's name, the model's, the file's.
    """

    differences: Sequence[Difference]
    tolerance: Tolerance
    lowest: float
    scores: tuple[str, float, float] | None = None

    @property
    def passed(self) -> bool:
        """True if all are within the tolerance."""
        return all(one.within(self.tolerance) for one in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}

    def lines(self) -> list[str]:
        """A table."""
        head = ["batch", "images", "detections", "matched", "box px", "score"]
        rows = [
            [str(d.batch), str(d.images), str(d.detections), str(d.matched), f"{d.box:.5f}", f"{d.score:.6f}"]
            for d in self.differences
        ]
        allowed = f"allowed: {self.tolerance.box:g} px of the input, {self.tolerance.score:g} of a score"
        lines = [*aligned([head, *rows]), f"{allowed}; scores from {self.lowest:.3f}"]
        if self.scores is not None:
            name, ours, theirs = self.scores
            lines.append(f"{name} on the data: {ours:.4f} of the model, {theirs:.4f} of the exported one")
        return lines


def prove(
    detector: Predictor, exported: Predictor, images: Sequence[np.ndarray], tolerance: Tolerance, *, resize: Any
) -> Proof:
    """Compares the answers of two predictors, which go through the same code otherwise.

    Args:
        detector: The model.
        exported: What was made of it.
        images: uint8 (H, W, 3) RGB.
        tolerance: How far they may differ.
        resize: The model's, for the size of an input pixel.

    Raises:
        DetkitError: The model finds nothing to compare.
    """
    samples, limits = [Sample(image) for image in images], Limits(0.001, detector.iou, 1000)
    scales = [resize.geometry(*image.shape[:2]) for image in images]
    truth = detector.predict_samples(samples, limits)
    scores = np.sort(np.concatenate([found.scores for found in truth]))[::-1]
    if not len(scores):
        do = "give images of what it knows: --data DATA"
        raise DetkitError("the model finds nothing on the photos, so nothing can be compared", do=do)
    lowest = min(_MOST, float(scores[min(len(scores), _PER_IMAGE * len(images)) - 1]))
    differences = []
    for batch in BATCHES:
        starts = range(0, len(samples), batch)
        pairs = [
            pair
            for start in starts
            for pair in zip(
                detector.predict_samples(samples[start : start + batch], limits),
                exported.predict_samples(samples[start : start + batch], limits),
                strict=True,
            )
        ]
        rows = np.array([_compared(*pair, scale, lowest) for pair, scale in zip(pairs, scales, strict=True)])
        counts, most = rows[:, :2].sum(0).astype(int).tolist(), rows[:, 2:].max(0).tolist()
        differences.append(Difference(batch, len(images), *counts, *most))
    return Proof(differences, tolerance, lowest)


def _compared(ours: Detections, theirs: Detections, scale: Geometry, lowest: float) -> tuple[int, int, float, float]:
    """Detections from the score ``lowest``, those of them that both have, largest difference of a side and a score."""
    ours = ours.filter(lowest)
    if not len(ours) or not len(theirs):
        return len(ours), 0, 0.0, 0.0
    overlap = np.where(ours.labels[:, None] == theirs.labels, iou(ours.boxes, theirs.boxes), -1.0)
    partner, there = overlap.argmax(1), overlap.max(1) >= _SAME
    mine, other = ours[there], theirs[partner[there]]
    if not len(mine):
        return len(ours), 0, 0.0, 0.0
    sides = np.abs(mine.boxes - other.boxes) * np.array([scale.scale_x, scale.scale_y] * 2)
    return len(ours), len(mine), float(sides.max()), float(np.abs(mine.scores - other.scores).max())


def score_both(detector: Predictor, exported: Predictor, dataset: Dataset) -> tuple[str, float, float]:
    """The name of the metric, and what the two reach."""
    metric = find_metric(detector.protocol)
    values = []
    for predictor in (detector, exported):
        truth, results, _ = detect_dataset(predictor, dataset)
        values.append(float(evaluate_results(truth, results, detector.protocol).metrics[metric.scores[0]]))
    return metric.scores[0], values[0], values[1]


def photos() -> list[np.ndarray]:
    """Eight views of a photograph that comes with matplotlib: whole, mirrored, and parts."""
    image = read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    height, width = image.shape[:2]
    y, x = height // 3, width // 3
    parts = [image[:-y, :-x], image[:-y, x:], image[y:, :-x], image[y:, x:], image[y:-y], image[:, x:-x]]
    return [np.ascontiguousarray(view) for view in (image, image[:, ::-1], *parts)]
