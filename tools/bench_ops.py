"""Times IoU, NMS and anchor k-means against torchvision (k-means: a version built on its IoU) in one process.

Candidates take turns, round by round, and the figure is the median of the rounds' ratios, so whatever else the machine
does falls on all alike. ``python tools/bench_ops.py [iou] [nms] [kmeans]``; set OMP_NUM_THREADS for torch's threads.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detkit.ops import average_iou, batched_nms, iou, kmeans_anchors, nms, soft_nms

Candidates = dict[str, Callable[[], object]]


def random_boxes(n: int, seed: int, clusters: int | None = None) -> np.ndarray:
    """(n, 4) float32 in a 640-pixel picture, spread evenly or around cluster centres as a detector's raw output is."""
    rng = np.random.default_rng(seed)
    if clusters is None:
        centres, sizes = rng.uniform(0, 640, (n, 2)), np.exp(rng.normal(4, 1, (n, 2)))
    else:
        of = rng.integers(0, clusters, n)
        sizes = np.exp(rng.normal(4, 0.7, (clusters, 2)))[of] * np.exp(rng.normal(0, 0.15, (n, 2)))
        centres = rng.uniform(0, 640, (clusters, 2))[of] + rng.normal(0, 0.15, (n, 2)) * sizes
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32)


def compare(title: str, candidates: Candidates, rounds: int = 7, least: float = 0.01) -> None:
    """Prints each candidate's median time and its ratio to the first one's."""
    repeats: dict[str, int] = {}
    for name, call in candidates.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, min(2000, int(least / (time.perf_counter() - start))))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    first = seconds[next(iter(candidates))]
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        print(f"{title:28} {name:28} {statistics.median(times) * 1e6:12.1f} us   {ratio:8.2f} x as fast")


def bench_iou() -> None:
    for n, m in ((100, 100), (1000, 1000), (8732, 50), (10000, 1000)):
        a, b = random_boxes(n, 0), random_boxes(m, 1)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        same = np.array_equal(torchvision.ops.box_iou(ta, tb).numpy(), iou(a, b))
        calls: Candidates = {
            "torchvision.box_iou": lambda ta=ta, tb=tb: torchvision.ops.box_iou(ta, tb),
            "detkit.iou, numpy": lambda a=a, b=b: iou(a, b),
            "detkit.iou, torch": lambda ta=ta, tb=tb: iou(ta, tb),
        }
        compare(f"IoU {n} x {m} (bit-equal {same})", calls)


def bench_nms() -> None:
    for n in (100, 1000, 8732, 20000):
        for name, clusters in (("clustered", max(n // 30, 1)), ("uniform", None)):
            rng = np.random.default_rng(n)
            boxes, scores = random_boxes(n, 2, clusters), rng.random(n).astype(np.float32)
            labels = rng.integers(0, 80, n)
            tb, ts, tl = torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)
            same = np.array_equal(torchvision.ops.nms(tb, ts, 0.5).numpy(), nms(boxes, scores, 0.5))
            rounds = 7 if n < 5000 else 3
            greedy: Candidates = {
                "torchvision.nms": lambda tb=tb, ts=ts: torchvision.ops.nms(tb, ts, 0.5),
                "detkit.nms": lambda b=boxes, s=scores: nms(b, s, 0.5),
            }
            compare(f"NMS {name} {n} (equal {same})", greedy, rounds)
            per_class: Candidates = {
                "torchvision.batched_nms": lambda tb=tb, ts=ts, tl=tl: torchvision.ops.batched_nms(tb, ts, tl, 0.5),
                "detkit.batched_nms": lambda b=boxes, s=scores, c=labels: batched_nms(b, s, c, 0.5),
            }
            compare(f"80 classes {name} {n}", per_class, rounds)
    boxes, scores = random_boxes(1000, 2, 33), np.random.default_rng(0).random(1000).astype(np.float32)
    compare("soft-NMS 1000", {"detkit.soft_nms": lambda: soft_nms(boxes, scores)})


def torch_kmeans(wh: np.ndarray, k: int, rounds: int, seed: int) -> np.ndarray:
    """Lloyd's k-means with 1 - IoU from torchvision's IoU and medians: what one would write without a kernel."""
    sizes = torch.from_numpy(np.pad(wh, ((0, 0), (2, 0))).astype(np.float32))
    centres = sizes[torch.from_numpy(np.random.default_rng(seed).choice(len(wh), k, replace=False))]
    labels = torch.full((len(wh),), -1)
    for _ in range(rounds):
        nearest = torchvision.ops.box_iou(sizes, centres).argmax(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        groups = [sizes[labels == c] for c in range(k)]
        centres = torch.stack([g.median(0).values if len(g) else centres[c] for c, g in enumerate(groups)])
    return centres[:, 2:].numpy().astype(np.float64)


def bench_kmeans() -> None:
    rng = np.random.default_rng(0)
    wh = np.exp(rng.normal(4, 0.8, (40000, 2)))
    print(f"average IoU, k = 9: torch {average_iou(wh, torch_kmeans(wh, 9, 300, 0)):.4f}, ", end="")
    print(f"detkit, best of 5 {average_iou(wh, kmeans_anchors(wh, 9)):.4f}")
    calls: Candidates = {
        "torch, one run": lambda: torch_kmeans(wh, 9, 300, 0),
        "detkit, one run": lambda: kmeans_anchors(wh, 9, restarts=1),
        "detkit, best of 5": lambda: kmeans_anchors(wh, 9),
    }
    compare("k-means 40000 sizes, k = 9", calls, rounds=3)


def main() -> None:
    parts = {"iou": bench_iou, "nms": bench_nms, "kmeans": bench_kmeans}
    print(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
