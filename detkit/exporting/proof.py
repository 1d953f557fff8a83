"""Whether an exported detector answers as the one that it was made of, on photographs and, if given, on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from detkit.data.dataset import Dataset
from detkit.data.resize import Resize
from detkit.detector import Detector
from detkit.engine.evaluator import detect_dataset
from detkit.errors import DetkitError
from detkit.exporting.header import proof_lines
from detkit.exporting.predictor import ExportedDetector
from detkit.geometry import Geometry
from detkit.io.images import read_image
from detkit.metrics import evaluate_results, find_metric
from detkit.ops.boxes import iou
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

BATCHES = (1, 4)
_PER_IMAGE = 10  # detections to compare at least, where the model has so many
_MOST = 0.05  # of scores below it nothing is asked, where there are enough above
_SAME = 0.5  # IoU from which two boxes of one class are one object's
_OTHERS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_TIE = 1e-3  # distance of an IoU from the NMS threshold at which rounding decides which boxes stay


@dataclass(frozen=True)
class Tolerance:
    """How far answers may differ.

    Attributes:
        box: A side, in input pixels.
        score: A score, or a logit.
        pixels: The share of the pixels that are of another class.
    """

    box: float = 0.05
    score: float = 1e-3
    pixels: float = 1e-4


@dataclass(frozen=True)
class Agreement:
    """What is the same, and what differs, at one batch size.

    Attributes:
        batch: Images at a time.
        images: Compared.
        detections: Of the model.
        matched: Those of them that the exported model has, too, one for one.
        extra: What the exported model alone finds.
        ties: Those without a partner, of either, that NMS keeps or drops by rounding.
        box: Largest difference of a side, in input pixels.
        score: Largest difference of a score.
        input: Width x height in pixels.
    """

    batch: int
    images: int
    detections: int
    matched: int
    extra: int
    ties: int
    box: float
    score: float
    input: str = ""

    def within(self, tolerance: Tolerance) -> bool:
        """True if the two are equal for all that a user sees."""
        alone = self.detections - self.matched + self.extra
        return alone == self.ties and self.box <= tolerance.box and self.score <= tolerance.score


@dataclass(frozen=True)
class PixelAgreement:
    """Of a segmentation.

    Attributes:
        batch: Images at a time.
        images: Compared.
        pixels: Of the images as the network sees them.
        same: Those of them that are of one class in both.
        logit: Largest difference of a logit.
        input: Width x height in pixels.
    """

    batch: int
    images: int
    pixels: int
    same: int
    logit: float
    input: str

    def within(self, tolerance: Tolerance) -> bool:
        """True if the two are equal for all that a user sees."""
        return self.pixels - self.same <= tolerance.pixels * self.pixels and self.logit <= tolerance.score


@dataclass(frozen=True)
class Proof:
    """All comparisons of a model and its exported form.

    Attributes:
        differences: One per batch size.
        tolerance: What they may be.
        lowest: The score from which detections are compared; of pixels all are.
        scores: What both reach on the data, where some was given: by the metric's name the model's and the file's.
        loss: What the file may lose of AP50, or of the first where there is none; None: it is not judged by scores.
    """

    differences: Sequence[Agreement] | Sequence[PixelAgreement]
    tolerance: Tolerance
    lowest: float
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    loss: float | None = None

    @property
    def passed(self) -> bool:
        """True if all are within the tolerance."""
        if self.loss is not None:
            ours, theirs = self.scores.get("AP50", next(iter(self.scores.values())))
            if ours - theirs > self.loss:
                return False
        return all(one.within(self.tolerance) for one in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}

    def lines(self) -> list[str]:
        """A table."""
        return proof_lines(self.to_dict())


def prove(
    detector: Predictor,
    exported: Predictor,
    images: Sequence[np.ndarray],
    tolerance: Tolerance,
    *,
    resize: Resize,
    most: int = 1000,
) -> Proof:
    """Compares the answers of two predictors, which go through the same code otherwise.

    Args:
        detector: The model.
        exported: What was made of it.
        images: uint8 (H, W, 3) RGB.
        tolerance: How far they may differ.
        resize: The model's, for the size of an input pixel.
        most: Detections per image at most.

    Raises:
        DetkitError: The model finds nothing to compare.
    """
    samples, limits = [Sample(image) for image in images], Limits(0.001, detector.iou, most)
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
        ours, theirs = (
            [found for k in starts for found in one.predict_samples(samples[k : k + batch], limits)]
            for one in (detector, exported)
        )
        pairs = zip(ours, theirs, scales, strict=True)
        rows = np.array([_compared(*pair, lowest, detector.iou) for pair in pairs])
        counts, widest = rows[:, :4].sum(0).astype(int).tolist(), rows[:, 4:].max(0).tolist()
        size = "{1} x {0}".format(*resize.input_size)
        differences.append(replace(Agreement(batch, len(images), *counts, *widest), input=size))
    return Proof(differences, tolerance, lowest)


def prove_pixels(
    detector: Detector, exported: ExportedDetector, images: Sequence[np.ndarray], tolerance: Tolerance
) -> Proof:
    """Compares the logits of a segmentation and of its file, and the class of each pixel of the input.

    Args:
        detector: The model, in evaluation mode.
        exported: What was made of it.
        images: uint8 (H, W, 3) RGB.
        tolerance: How far they may differ.
    """
    samples, differences = [Sample(image) for image in images], []
    for batch in BATCHES:
        same, widest = [], []
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            given = exported.input_of(part)
            with torch.inference_mode():
                ours = detector.raw(detector.batch_of(part).pixels)["pixels"].numpy()
            (theirs,) = exported.engine.run(exported.feed(given))
            widest.append(np.abs(ours - theirs).max())
            equal = ours.argmax(1) == theirs.argmax(1)
            same += [one[:height, :width].ravel() for one, (height, width) in zip(equal, given.sizes, strict=True)]
        pixels, size = np.concatenate(same), "{1} x {0}".format(*detector.resize.input_size)
        counts = len(images), len(pixels), int(pixels.sum())
        differences.append(PixelAgreement(batch, *counts, float(np.max(widest)), size))
    return Proof(differences, tolerance, 0.0)


def _compared(
    ours: Detections, theirs: Detections, scale: Geometry, lowest: float, threshold: float
) -> tuple[int, int, int, int, float, float]:
    """Our detections from the score ``lowest``, those of them that both have, what only they have, how many without a
    partner are ties at NMS's IoU ``threshold``, the largest difference of a side and of a score; pairs are one for one,
    of the largest IoU in all."""
    overlap = np.where(ours.labels[:, None] == theirs.labels, iou(ours.boxes, theirs.boxes), 0.0)
    mine, other = linear_sum_assignment(overlap, maximize=True)
    same = overlap[mine, other] >= _SAME
    mine, other = mine[same], other[same]
    judged, seen = ours.scores >= lowest, theirs.scores >= lowest
    extra = int(seen.sum() - seen[other].sum())
    tied = np.abs(overlap - threshold) < _TIE
    lost, strange = judged & tied.any(1), seen & tied.any(0)
    lost[mine], strange[other] = False, False
    ties = int(lost.sum() + strange.sum())
    pairs = judged[mine] | seen[other]
    mine, other, matched = mine[pairs], other[pairs], int(judged[mine].sum())
    if not len(mine):
        return int(judged.sum()), 0, extra, ties, 0.0, 0.0
    sides = np.abs(ours.boxes[mine] - theirs.boxes[other]) * np.array([scale.scale_x, scale.scale_y] * 2)
    scores = np.abs(ours.scores[mine] - theirs.scores[other])
    return int(judged.sum()), matched, extra, ties, float(sides.max()), float(scores.max())


def score_both(detector: Predictor, exported: Predictor, dataset: Dataset) -> dict[str, tuple[float, float]]:
    """What the two reach, by the metric's first two names."""
    found = [detect_dataset(one, dataset) for one in (detector, exported)]
    ours, theirs = (evaluate_results(truth, results, detector.protocol).metrics for truth, results, _ in found)
    names = find_metric(detector.protocol).scores[:2]
    return {name: (float(ours[name]), float(theirs[name])) for name in names}


def photos() -> list[np.ndarray]:
    """The photographs that lie in installed packages (matplotlib's, scikit-image's), and views of the first, which is
    mirrored and cut, until there are eight images."""
    image = read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    package = find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package and package.origin else Path()
    others = [read_image(folder / name) for name in _OTHERS if package and (folder / name).is_file()]
    height, width = image.shape[:2]
    y, x = height // 3, width // 3
    corners = [image[place] for place in product((slice(-y), slice(y, None)), (slice(-x), slice(x, None)))]
    views = [image[:, ::-1], *corners, image[y:-y], image[:, x:-x]]
    return [image, *others, *(np.ascontiguousarray(view) for view in views[: 7 - len(others)])]
