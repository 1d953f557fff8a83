"""What ``--appearance`` is good for: photos' crops walk across each other's ways and hide behind a board in the middle.

    python tools/track_looks.py                                   # crops of installed photos
    python tools/track_looks.py --data DATA --split val --label person
    python tools/track_looks.py --data DATA --cut cuts; then train embed; --looks RUN   # docs/track.md
    python tools/track_looks.py --video crossing.mp4 --seed 2     # only the film, for detkit track

Behind the board some turn round, so that their ways say nothing of who comes out where. The default model detects; the
tracker's HOTA, IDF1 and switches are measured with and without the detector's maps, on the same detections.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import cv2
import numpy as np

import detkit
from detkit.cli.quickstart import installed_photos
from detkit.data.dataset import Dataset, read
from detkit.detector import Detector
from detkit.io.detections.mot import MotTable
from detkit.io.images import read_image, write_image
from detkit.io.video import VideoWriter
from detkit.metrics.tracks import track_scores, track_sums
from detkit.prediction.appearance import WithAppearance
from detkit.structures import Sample

WIDTH, HEIGHT, BOARD, FRAMES, FPS = 640, 400, 170, 150, 25
TALL = 120  # pixels of a crop


def shrunk(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (round(image.shape[1] * TALL / image.shape[0]), TALL), interpolation=cv2.INTER_AREA)


def labelled_crops(data_path: str, split: str | None, label: str) -> list[np.ndarray]:
    """The large objects of one class, each with a tenth of its surroundings."""
    data = Dataset(read(data_path, split=split))
    kept = []
    for i in np.unique(data.annotations.image_index[data.annotations.labels == data.classes.index(label)]):
        sample = data.load(int(i))
        target = sample.target
        assert target is not None
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        good = (sides.min(1) > 90) & (target.labels == data.classes.index(label)) & ~target.ignore
        for x1, y1, x2, y2 in target.boxes[good][:1]:
            more = 0.1 * (y2 - y1)
            left, top = max(0, round(x1 - more)), max(0, round(y1 - more))
            kept.append(shrunk(sample.image[top : round(y2 + more), left : round(x2 + more)]))
    return [one for one in kept if 50 < one.shape[1] < 150]


def film(crops: list[np.ndarray], seed: int) -> tuple[list[np.ndarray], MotTable]:
    """Frames, and where the crops are in them while half of each is seen."""
    rng = np.random.default_rng(seed)
    number = len(crops)
    ground = cv2.GaussianBlur(rng.integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 3)
    left, right = (WIDTH - BOARD) // 2, (WIDTH + BOARD) // 2
    side = np.where(np.arange(number) % 2, 1.0, -1.0)  # where each begins, right or left
    rows, speed = rng.permutation(number), rng.uniform(5, 7, number)
    turns, other = rng.random(number) < 0.5, rng.permutation(number)
    pitch = (HEIGHT - TALL) / max(number - 1, 1)
    frames, truth = [], []
    for frame in range(FRAMES):
        image, depth = ground.copy(), []
        for k, crop in enumerate(crops):
            way = speed[k] * frame - WIDTH / 2 + crop.shape[1] / 2  # from the middle, on the way there or beyond it
            x = WIDTH / 2 + side[k] * (-way if way < 0 or not turns[k] else way)
            y = pitch * (rows[k] if way < 0 else other[k])
            depth.append((y, k, round(x - crop.shape[1] / 2), round(y)))
        hidden = np.zeros((HEIGHT, WIDTH), bool)
        hidden[:, left:right] = True
        for _, k, x, y in sorted(depth, reverse=True):  # the nearest, lowest, hides those behind it
            x1, x2 = max(0, x), min(WIDTH, x + crops[k].shape[1])
            if x2 - x1 > 1:
                seen = ~hidden[y : y + TALL, x1:x2]
                image[y : y + TALL, x1:x2][seen] = crops[k][:, x1 - x : x2 - x][seen]
                if seen.mean() * (x2 - x1) > 0.5 * crops[k].shape[1]:
                    truth.append((frame + 1, k, x1, y, x2 - x1, TALL))
                hidden[y : y + TALL, x1:x2] = True
        image[:, left:right] = (70, 75, 80)
        frames.append(image)
    columns = np.array(truth, np.float64)
    return frames, MotTable(columns[:, 0].astype(int), columns[:, 1].astype(int), columns[:, 2:], np.ones(len(columns)))


def write_cuts(crops: list[np.ndarray], folder: Path, number: int = 24) -> None:
    """Windows of four fifths of each crop's sides and more, a sixth of them to validate on."""
    rng = np.random.default_rng(0)
    for k, crop in enumerate(crops):
        for i in range(number):
            (height, width), (a, b, c, d) = crop.shape[:2], rng.uniform(0, 0.1, 4)
            cut = crop[round(a * height) : round((1 - b) * height), round(c * width) : round((1 - d) * width)]
            file = folder / ("val" if i % 6 == 0 else "train") / f"crop{k}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_image(file, cut)


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Labelled images whose objects walk.")
    parser.add_argument("--split")
    parser.add_argument("--label", default="person")
    parser.add_argument("--seed", type=int, default=0, help="Of the first film.")
    parser.add_argument("--films", type=int, default=5)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--looks", help="A model with head embed, measured too.")
    parser.add_argument(
        "--cut", type=Path, help="Only write cuts of the crops, a folder each, to train such a model on."
    )
    given = parser.parse_args()
    if given.data:
        crops = labelled_crops(given.data, given.split, given.label)
    else:
        crops = [shrunk(read_image(path)) for path in installed_photos()]
    if given.cut:
        write_cuts(crops, given.cut)
        return 0
    if given.video:
        with VideoWriter(given.video, FPS) as writer:
            for image in film(crops[: given.crops], given.seed)[0]:
                writer.write(image)
        return 0
    ways = [
        (f"{way} appearance", WithAppearance(detkit.load(device="cpu")), at)
        for way, at in (("without", None), ("with", 0.5))
    ]
    if given.looks:
        looks = detkit.load(given.looks, device="cpu")
        assert isinstance(looks, Detector)
        ways.append(("with the model's vectors", WithAppearance(detkit.load(device="cpu"), looks), 0.5))
    got: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seed, given.seed + given.films):
        chosen = [crops[i] for i in np.random.default_rng(seed).permutation(len(crops))[: given.crops]]
        frames, truth = film(chosen, seed)
        for name, detector, appearance in ways:
            found = [detector.predict_samples([Sample(image)], detector.limits(0.1))[0] for image in frames]
            tracker, rows = detkit.Tracker(fps=FPS, high=detector.threshold, appearance=appearance, lost=3), []
            for number, one in enumerate(found, 1):
                tracked = tracker.update(one)
                ids = tracked.extra["track_id"]
                rows.append(np.column_stack([np.full(len(ids), number), ids, tracked.xywh]))
            r = np.concatenate(rows).astype(np.float64)
            tracks = MotTable(r[:, 0].astype(int), r[:, 1].astype(int), r[:, 2:], np.ones(len(r)))
            scores = track_scores(track_sums(truth, tracks))
            got.setdefault(name, []).append({key: scores[key] for key in ("HOTA", "IDF1", "IDSW", "FN", "FP")})
            print(f"film {seed}, {name}:", *(f"{key} {v:.3g}" for key, v in got[name][-1].items()), flush=True)
    for name, runs in got.items():
        print(f"all, {name}:", *(f"{key} {statistics.mean(one[key] for one in runs):.3f}" for key in runs[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
