"""Times detkit's selective search against OpenCV contrib's on the same photos, in turns, and compares what they find.

``python tools/bench_selective_search.py DATA --peer-python PATH``: DATA is a labelled set (VOC folder, COCO json, ...),
PATH the Python of an environment that holds opencv-contrib-python-headless (its own: it cannot live beside
opencv-python-headless). Each photo is searched by both, one after the other, in two processes that take turns, and the
ratio is the median of the photos' ratios. Reading and decoding are not timed. ``--side 500`` resizes the photos, boxes
and all, to that longer side first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detkit.data.dataset import Dataset, read
from detkit.metrics.proposals import best_overlaps
from detkit.proposals.search import selective_search
from detkit.structures import Sample

PEER = """
import json, sys, time
import cv2
threads = int(sys.argv[1])
if threads: cv2.setNumThreads(threads)
print(json.dumps(cv2.__version__), flush=True)
for line in sys.stdin:
    plan, path = json.loads(line)
    image = cv2.imread(path)
    begun = time.perf_counter(), time.process_time()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    (search.switchToSelectiveSearchFast if plan == "fast" else search.switchToSelectiveSearchQuality)()
    boxes = search.process()
    spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
    boxes[:, 2:] += boxes[:, :2]
    print(json.dumps([spent, boxes.tolist()]), flush=True)
"""


class Peer:
    """OpenCV contrib in a process of its own environment."""

    def __init__(self, python: str, threads: int) -> None:
        command = [python, "-c", PEER, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit("the peer ended: does its environment hold opencv-contrib-python-headless?")
        return json.loads(line)

    def __call__(self, plan: str, path: str) -> tuple[tuple[float, float], np.ndarray]:
        print(json.dumps([plan, path]), file=self.process.stdin, flush=True)
        spent, boxes = self._answer()
        return tuple(spent), np.asarray(boxes, np.float32)


def resized(sample: Sample, side: int, path: Path) -> Sample:
    """The sample with a longer side of ``side`` pixels, its image kept without loss at ``path``."""
    height, width = sample.image.shape[:2]
    factor = side / max(height, width)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = cv2.resize(sample.image, (round(width * factor), round(height * factor)), interpolation=how)
    cv2.imwrite(str(path), image[..., ::-1])
    scale = np.float32([image.shape[1] / width, image.shape[0] / height] * 2)
    target = replace(sample.target, boxes=sample.target.boxes * scale)
    return sample.replace(image=image, target=target, path=str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--split")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--images", type=int, default=20, help="how many photos, evenly chosen (default 20)")
    parser.add_argument("--side", type=int, help="longer side of the photos in pixels (default: as they are)")
    parser.add_argument("--plans", nargs="+", default=["fast", "quality"])
    parser.add_argument("--threads", type=int, default=1, help="of both; 0: each side's own choice (default 1)")
    options = parser.parse_args()
    cv2.setNumThreads(options.threads or cv2.getNumThreads())
    dataset = Dataset(read(options.data, split=options.split))
    chosen = np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(int)
    samples = [dataset.load(int(i)) for i in chosen]
    folder = tempfile.TemporaryDirectory()
    if options.side:
        samples = [resized(s, options.side, Path(folder.name) / f"{i}.png") for i, s in enumerate(samples)]
    peer = Peer(options.peer_python, options.threads)
    names = (f"OpenCV contrib {peer.version}", "detkit")
    for plan in options.plans:
        selective_search(samples[0].image, plan)  # compiles
        rows: dict[str, list[tuple[float, float, np.ndarray]]] = {name: [] for name in names}
        for sample in samples:
            spent, boxes = peer(plan, sample.path)
            rows[names[0]].append((*spent, boxes))
            begun = time.perf_counter(), time.process_time()
            boxes = selective_search(sample.image, plan, threads=options.threads or None)
            rows[names[1]].append((time.perf_counter() - begun[0], time.process_time() - begun[1], boxes))
        print(f"\n{plan}, {len(samples)} photos, threads {options.threads or 'as they choose'}")
        heads = ("ms", "CPU ms", "faster", "boxes", "recall@.5", "recall@.7", "MABO")
        print(" " * 22 + "".join(f"{head:>10}" for head in heads))
        labels = np.concatenate([sample.target.labels for sample in samples])
        for name, found in rows.items():
            ratio = statistics.median(a[0] / b[0] for a, b in zip(rows[names[0]], found, strict=True))
            overlap = np.concatenate(
                [best_overlaps(s.target.boxes, boxes) for s, (_, _, boxes) in zip(samples, found, strict=True)]
            )
            mabo = np.mean([overlap[labels == label].mean() for label in np.unique(labels)])
            wall, cpu = (statistics.median(f[i] for f in found) * 1e3 for i in (0, 1))
            count, at_half, at_most = (
                np.mean([len(f[2]) for f in found]),
                (overlap > 0.5).mean(),
                (overlap > 0.7).mean(),
            )
            print(
                f"{name:22}{wall:10.1f}{cpu:10.1f}{ratio:10.1f}{count:10.0f}{at_half:10.4f}{at_most:10.4f}{mabo:10.4f}"
            )


if __name__ == "__main__":
    main()
