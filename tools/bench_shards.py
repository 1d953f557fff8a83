"""What ``detect --shards`` costs beyond detection: speed against a bare loop, speed-up by processes, memory.

    python tools/bench_shards.py speed PHOTOS [--images 400] [--rounds 3]
    python tools/bench_shards.py memory [--images 100000]
    python tools/bench_shards.py parts PHOTOS [--images 400]

``speed``: images per second of ``predict`` on images that lie decoded in memory, then of the command itself with one
process and with two, one thread each, taking turns; PHOTOS is a folder whose photos are repeated under new names.
``memory``: the most that a process held with a tenth of the images and with all of them, tiny ones, by a detector
that finds nothing, so that only what is detkit's own is counted. ``parts``: milliseconds of one core per image, of each
part of the work, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detkit import api
from detkit.io.images import image_bytes, paths_in, read_image
from detkit.io.shards import Shards
from detkit.predictor import Predictor
from detkit.sharding import Job, detect_shards
from detkit.structures import Detections, Limits, Sample


class Nothing(Predictor):
    """Finds nothing."""

    classes = ("thing",)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Nothing, of each."""
        return [Detections.empty(self.classes)] * len(samples)


def made(folder: Path, out: Path, job: partial[Predictor], workers: int, size: int) -> float:
    """Seconds that the shards of a folder take."""
    begun = time.perf_counter()
    names = [str(folder)]
    detect_shards(names, Job(out=str(out), load=job), names=names, settings={}, size=size, workers=workers)
    return time.perf_counter() - begun


def speed(photos: Path, count: int, rounds: int) -> None:
    """Prints images per second, loading the model left out of the bare loop only."""
    load, paths = partial(api.load, threads=1), paths_in(photos)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for i in range(count):
            shutil.copy(paths[i % len(paths)], folder / f"{i:06d}{paths[i % len(paths)].suffix}")
        predictor, images = load(), [read_image(path) for path in paths_in(folder)]
        found: dict[str, list[float]] = {"bare loop": [], "1 process": [], "2 processes": []}
        for turn in range(rounds):
            begun = time.perf_counter()
            for image in images:
                predictor.predict(image)
            found["bare loop"].append(time.perf_counter() - begun)
            for workers, name in ((1, "1 process"), (2, "2 processes")):
                found[name].append(made(folder, Path(place, f"{turn}-{workers}"), load, workers, max(count // 8, 1)))
        for name, seconds in found.items():
            print(f"{name:<12} {count / statistics.median(seconds):8.2f} images per second")


def parts(photos: Path, count: int) -> None:
    """Prints milliseconds of one core per image."""
    paths = paths_in(photos)
    predictor, chosen = api.load(threads=1), [paths[i % len(paths)] for i in range(count)]
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.process_time()
        answer = call()
        spent[name] = 1000 * (time.process_time() - begun) / count
        return answer

    cv2.setNumThreads(0)
    predictor.predict(paths[0])
    images = timed("read and decode", lambda: [read_image(path) for path in chosen])
    found = timed("detect", lambda: [predictor.predict(image) for image in images])
    with tempfile.TemporaryDirectory() as place:
        shards = Shards(str(Path(place, "out")))
        names = [(f"photos/{i:09d}.jpg", 100_000) for i in range(count)]
        timed("manifest", lambda: shards.begin(names, 5000, ["photos"], {}))
        size = {"width": 500, "height": 375, "error": None}
        rows = [
            {"source": name, **size, "detections": one.to_records()}
            for (name, _), one in zip(names, found, strict=True)
        ]
        timed("rows", lambda: shards.write(0, rows))
        stored = Path(shards.path(0)).stat().st_size / count
    for name, cost in spent.items():
        print(f"{name:<16} {cost:8.3f} ms per image")
    print(f"{stored:.0f} bytes per row, {sum(map(len, found)) / count:.1f} detections per image")


def memory(count: int) -> None:
    """Prints the most that a process of its own held, in MB, for each number of images."""
    with tempfile.TemporaryDirectory() as place:
        folder, data = Path(place, "photos"), image_bytes(np.zeros((8, 8, 3), np.uint8), ".png", 0)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:07d}.png").write_bytes(data)
            if i + 1 in (count // 10, count):
                child = [sys.executable, __file__, "child", str(folder), "--out", str(Path(place, f"out{i}"))]
                print(
                    i + 1, subprocess.run(child, check=True, capture_output=True, text=True).stdout.strip(), flush=True
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "parts", "child"])
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.photos, given.images or 400, given.rounds)
    elif given.what == "parts":
        parts(given.photos, given.images or 400)
    elif given.what == "memory":
        memory(given.images or 100_000)
    else:
        seconds = made(given.photos, given.out, partial(Nothing), 1, 5000)
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
