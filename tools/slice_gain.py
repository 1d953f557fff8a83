"""What ``--slice`` finds on large images, and how long it takes, beside SAHI and supervision with the same detector.

    python tools/slice_gain.py DATA [--split val] [--model MODEL] [--images 8]

Four tests, for which ``pip install sahi supervision`` beside detkit. **many**: what merging 100,000 boxes of 108 tiles
takes. **touching**: boxes side by side without a gap,
"detected" by an oracle that knows what a tile shows of them and gives a cut one any score that a whole one may have.
**photos**: the data's photos side by side on 4000 x 3000 pixels, objects as they are. **aerial**: its objects shrunk to
8 to 24 pixels, scattered over 2000 x 1500 of noise. All look at tiles of the same size with a fifth of overlap, and
keep what scores 0.1 or more; what differs is how tiles are laid, what the whole image adds and how boxes are merged. AP
counts 1000 objects per image and class; small objects are those of less than 32 x 32 pixels. All is given over all
images, and AP and the recall as mean of the images with an interval of 95 % (Student's t), too; the seconds are the
CPU's, the detector's among them.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
from scipy.stats import t as student

from detkit import api
from detkit.data.dataset import Dataset, read
from detkit.data.names import match_classes
from detkit.metrics import evaluate_results
from detkit.ops.boxes import clip, iou
from detkit.prediction.slicing import Sliced, SlicePlan, merge_windows, tile_grid
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample, Target
from detkit.tables import results_of, truth_of

Detect = Callable[[np.ndarray], Detections]
LIMITS = Limits(conf=0.1, iou=0.5, max_detections=10_000)
OVERLAP = 0.2


def photos(dataset: Dataset, labels: np.ndarray, rng: np.random.Generator) -> Sample:
    """Photos in rows, each as it is, until 4000 x 3000 pixels are full."""
    canvas = np.full((3000, 4000, 3), 114, np.uint8)
    targets: list[Target] = []
    y = 0
    while y < 3000:
        x, row = 0, 0
        while x < 4000:
            sample = dataset.load(int(rng.integers(len(dataset))))
            height, width = sample.image.shape[:2]
            if x + width <= 4000 and y + height <= 3000:
                canvas[y : y + height, x : x + width] = sample.image
                targets.append(moved(sample.target, labels, (x, y)))
            x, row = x + width, max(row, height)
        y += row
    return Sample(canvas, joined(targets))


def aerial(dataset: Dataset, labels: np.ndarray, rng: np.random.Generator) -> Sample:
    """400 objects of 8 to 24 pixels on noise, one in each of 400 cells."""
    noise = rng.integers(90, 140, (47, 63, 3)).astype(np.uint8)
    canvas = cv2.resize(noise, (2000, 1500), interpolation=cv2.INTER_CUBIC)
    targets: list[Target] = []
    for cell in range(400):
        while True:
            sample = dataset.load(int(rng.integers(len(dataset))))
            whole = np.flatnonzero(~sample.target.ignore & (labels[sample.target.labels] >= 0))
            if len(whole) == 1 == len(sample.target):
                break
        box = sample.target.boxes[0].astype(int)
        side = rng.uniform(8, 24)
        scale = side / np.sqrt(np.prod(box[2:] - box[:2]))
        x1, y1, x2, y2 = box
        small = cv2.resize(sample.image[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = small.shape[:2]
        x = 100 * (cell % 20) + int(rng.integers(0, max(1, 100 - width)))
        y = 75 * (cell // 20) + int(rng.integers(0, max(1, 75 - height)))
        height, width = min(height, 1500 - y), min(width, 2000 - x)
        canvas[y : y + height, x : x + width] = small[:height, :width]
        label = labels[sample.target.labels]
        targets.append(Target(np.array([[x, y, x + width, y + height]]), label))
    return Sample(canvas, joined(targets))


def touching(wide: int, high: int) -> Target:
    """Boxes of one class, side by side without a gap, over 2000 x 1500 pixels."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 2000 - wide, wide), np.arange(0, 1500 - high, high)))
    return Target(np.stack([x, y, x + wide, y + high], axis=1), np.zeros(len(x)))


class Oracle(Predictor):
    """Finds what a tile shows of known boxes, if it is a fifth of them, give or take 2 % of their sides.

    A tile's first pixel says where it lies, see ``coded``.
    """

    classes = ("block",)

    def __init__(self, target: Target) -> None:
        self.target = target

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        return [self.one(sample.image) for sample in samples]

    def one(self, image: np.ndarray) -> Detections:
        a, b, c = (int(value) for value in image[0, 0])
        corner, boxes = np.array([a << 4 | b >> 4, (b & 15) << 8 | c] * 2), self.target.boxes
        rng = np.random.default_rng(corner[:2].tolist())
        shown = clip(boxes - corner, image.shape[:2])
        areas = np.prod(shown[:, 2:] - shown[:, :2], axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        shown = shown[areas >= 0.2]
        sides = np.tile(shown[:, 2:] - shown[:, :2], 2)
        shown = clip(shown + sides * rng.normal(0, 0.02, sides.shape), image.shape[:2])
        return Detections(shown, rng.uniform(0.5, 1, len(shown)), np.zeros(len(shown)), self.classes)


def coded(height: int, width: int) -> np.ndarray:
    """Pixels that say where they are: 12 bits of x, 12 of y."""
    y, x = np.indices((height, width))
    return np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], axis=2).astype(np.uint8)


def moved(target: Target, labels: np.ndarray, corner: tuple[int, int]) -> Target:
    """The objects of a photo whose left upper corner lies there, with the model's labels."""
    label = labels[target.labels]
    ignored = target.ignore | (label < 0)
    return Target(target.boxes + np.array(corner * 2, np.float32), label.clip(0), difficult=ignored)


def joined(targets: list[Target]) -> Target:
    """All objects of one composite."""
    columns = ("boxes", "labels", "difficult")
    boxes, labels, difficult = (np.concatenate([getattr(one, name) for one in targets]) for name in columns)
    return Target(boxes, labels, difficult=difficult)


class Clocked(Predictor):
    """A predictor, and how long it was asked."""

    def __init__(self, inner: Predictor) -> None:
        self.inner, self.classes, self.seconds, self.looks = inner, inner.classes, 0.0, 0

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        began = time.process_time()
        found = self.inner.predict_samples(samples, limits)
        self.seconds, self.looks = self.seconds + time.process_time() - began, self.looks + len(samples)
        return found


def sahi(model: Predictor, tile: int, how: tuple[str, str] = ("GREEDYNMM", "IOS")) -> Detect:
    """SAHI with its own defaults: the whole image too, boxes joined by their intersection over the smaller one."""
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    class Ours(DetectionModel):
        def set_model(self, model: Any, **_: object) -> None:
            self.model, self.category_mapping = model, dict(enumerate(model.classes))

        def perform_inference(self, image: np.ndarray) -> None:
            self.perform_batch_inference([image])

        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            self._original_predictions = self.model.predict_samples([Sample(image) for image in images], LIMITS)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
        ) -> None:
            if not isinstance(shift_amount_list[0], (list, tuple)):
                shift_amount_list = [shift_amount_list]
            if full_shape_list is not None and not isinstance(full_shape_list[0], (list, tuple)):
                full_shape_list = [full_shape_list]
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        score=score,
                        category_name=self.model.classes[label],
                        shift_amount=list(shift),
                        full_shape=None if full_shape_list is None else full_shape_list[i],
                    )
                    for box, label, score in zip(
                        one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(), strict=True
                    )
                ]
                for i, (one, shift) in enumerate(zip(self._original_predictions, shift_amount_list, strict=True))
            ]

    wrapped = Ours(model=model, confidence_threshold=LIMITS.conf)

    def detect(image: np.ndarray) -> Detections:
        found = get_sliced_prediction(
            image,
            wrapped,
            slice_height=tile,
            slice_width=tile,
            overlap_height_ratio=OVERLAP,
            overlap_width_ratio=OVERLAP,
            postprocess_type=how[0],
            postprocess_match_metric=how[1],
            batch_size=8,
            verbose=0,
        ).object_prediction_list
        boxes = np.array([one.bbox.to_xyxy() for one in found], np.float32).reshape(-1, 4)
        return Detections(boxes, [one.score.value for one in found], [one.category.id for one in found], model.classes)

    return detect


def supervision(model: Predictor, tile: int) -> Detect:
    """supervision's slicer with its own defaults: NMS."""
    from supervision import Detections as Theirs, InferenceSlicer

    def ask(images: list[np.ndarray]) -> list[Theirs]:
        found = model.predict_samples([Sample(np.ascontiguousarray(image)) for image in images], LIMITS)
        return [Theirs(xyxy=one.boxes, confidence=one.scores, class_id=one.labels.astype(int)) for one in found]

    slicer = InferenceSlicer(ask, slice_wh=tile, overlap_wh=round(tile * OVERLAP), iou_threshold=0.5, batch_size=8)

    def detect(image: np.ndarray) -> Detections:
        found = slicer(image)
        return Detections(found.xyxy.astype(np.float32), found.confidence, found.class_id, model.classes)

    return detect


def their_tiles(model: Predictor, tile: int) -> Detect:
    """supervision's tiles, merged as ``--slice`` does."""
    from supervision import InferenceSlicer

    def detect(image: np.ndarray) -> Detections:
        size, overlap = image.shape[1::-1], (round(tile * OVERLAP),) * 2
        windows = np.array(InferenceSlicer._generate_offset(size, (tile, tile), overlap))
        shown = [Sample(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in windows]
        found = [one for i in range(0, len(shown), 8) for one in model.predict_samples(shown[i : i + 8], LIMITS)]
        return merge_windows(found, SlicePlan(windows, False, ""), LIMITS.iou)

    return detect


def unsliced(model: Predictor, tile: int) -> Detect:
    """The image as it is."""
    return lambda image: model.predict_samples([Sample(image)], LIMITS)[0]


def detkit(model: Predictor, tile: int) -> Detect:
    """``--slice``."""
    sliced = Sliced(model, tile, overlap=OVERLAP, tell=lambda text: print(f"  {text}"))
    return lambda image: sliced.predict_samples([Sample(image)], LIMITS)[0]


CONTESTANTS = {
    "detkit": detkit,
    "SAHI": sahi,
    "SAHI, NMS": partial(sahi, how=("NMS", "IOU")),
    "supervision": supervision,
    "its tiles": their_tiles,
}


def compare(model: Predictor, samples: list[Sample], tile: int) -> Iterator[str]:
    """A line per contestant: scores, seconds per image, of these those outside the detector, looks."""
    truth = truth_of([sample.target for sample in samples], model.classes)
    titles = f"{'AP':>6} {'AP50':>6} {'small':>6} {'AP by image':>15} {'small by image':>15}"
    yield f"  {'':12} {titles} {'s/image':>8} {'of it merging':>14} {'looks':>6}"
    for name, make in {"whole image": unsliced, **CONTESTANTS}.items():
        clocked = Clocked(model)
        detect = make(clocked, tile)
        detect(samples[0].image)  # warm
        clocked.seconds, clocked.looks, began = 0.0, 0, time.process_time()
        found = [detect(sample.image) for sample in samples]
        spent, n = time.process_time() - began, len(samples)
        scores = evaluate_results(truth, results_of(found), max_detections=1000).metrics
        each = [
            evaluate_results(truth_of([sample.target], model.classes), results_of([one]), max_detections=1000).metrics
            for sample, one in zip(samples, found, strict=True)
        ]
        numbers = " ".join(f"{scores[key]:6.3f}" for key in ("AP", "AP50", "ARs"))
        numbers += "".join(f" {interval([one[key] for one in each]):>15}" for key in ("AP", "ARs"))
        yield f"  {name:12} {numbers} {spent / n:8.2f} {(spent - clocked.seconds) / n:14.3f} {clocked.looks / n:6.0f}"


def interval(values: list[float]) -> str:
    """The mean, and what lies on both sides of it with 95 % confidence."""
    n = len(values)
    spread = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return f"{np.mean(values):.3f} ± {spread:.3f}"


def many() -> str:
    """What merging 100,000 boxes takes: seconds of CPU and memory beside them."""
    rng, windows = np.random.default_rng(0), tile_grid(3000, 4000, (416, 416), OVERLAP)
    each = -(-100_000 // len(windows))
    corners = rng.uniform(0, 400, (len(windows), each, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 60, corners.shape)], axis=2).clip(0, 416)
    parts = [Detections(one, rng.uniform(0.1, 1, each), rng.integers(0, 20, each)) for one in boxes]
    plan = SlicePlan(windows, False, "")
    merge_windows(parts, plan, 0.5)  # compiles
    began = time.process_time()
    left = len(merge_windows(parts, plan, 0.5))
    spent = time.process_time() - began
    tracemalloc.start()
    merge_windows(parts, plan, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = each * len(windows)
    return f"many, {total} boxes of {len(windows)} tiles: {left} left, {spent:.2f} s, {peak / 1e6:.0f} MB beside them"


def mistakes(found: Detections, target: Target) -> str:
    """How many objects are missed or found twice, and how many boxes hold two objects or are no object."""
    overlap = iou(found.boxes, target.boxes)
    x1, y1 = np.maximum(found.boxes[:, None, :2], target.boxes[:, :2]).transpose(2, 0, 1)
    x2, y2 = np.minimum(found.boxes[:, None, 2:], target.boxes[:, 2:]).transpose(2, 0, 1)
    inside = (x2 - x1).clip(0) * (y2 - y1).clip(0) / target.area
    hits = (overlap >= 0.5).sum(axis=0)
    glued, none = int(((inside > 0.5).sum(axis=1) > 1).sum()), int((overlap < 0.5).all(axis=1).sum())
    return f"{int((hits == 0).sum())} missed, {int((hits > 1).sum())} twice, {glued} glued, {none} no object"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--split")
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(many(), flush=True)
    for wide, high in ((60, 60), (120, 80), (250, 220)):
        target = touching(wide, high)
        print(f"touching, {len(target)} boxes of {wide} x {high}, tiles of 416:")
        for name, make in CONTESTANTS.items():
            print(f"  {name:12} {mistakes(make(Oracle(target), 416)(coded(1500, 2000)), target)}", flush=True)
    model = api.load(options.model, device="cpu")
    dataset = Dataset(read(options.data, split=options.split))
    labels = np.array(match_classes(dataset.annotations.classes, model.classes))
    for make, tile in ((photos, 416), (aerial, 208)):
        rng = np.random.default_rng(options.seed)
        samples = [make(dataset, labels, rng) for _ in range(options.images)]
        height, width = samples[0].image.shape[:2]
        print(f"{make.__name__}, {len(samples)} of {width} x {height}, tiles of {tile}:")
        for line in compare(model, samples, tile):
            print(line, flush=True)


if __name__ == "__main__":
    main()
