"""What ``detect --shards`` costs beyond detection: speed against a bare loop, speed-up by processes, memory.

    python tools/bench_shards.py speed PHOTOS [--images 400] [--rounds 3]
    python tools/bench_shards.py machine PHOTOS [--rounds 3]
    python tools/bench_shards.py memory [--images 100000]
    python tools/bench_shards.py parts PHOTOS [--images 400]

``speed``: images per second of ``predict`` on images that lie decoded in memory, then of the command itself with one
process and with two, one thread each, taking turns, after each process's first shard (what starting takes is shown by
itself); then what ``machine`` does. PHOTOS is a folder whose photos are repeated under new names. ``machine``: how much
faster two processes of nothing but loops are than one, of the same detector on a decoded image, of a matrix product and
of plain Python: what the machine's two cores give anyone.
``memory``: the most that a process held with a tenth of the images and with all of them, tiny ones, by a detector
that finds nothing, so that only what is detkit's own is counted. ``parts``: milliseconds of one core per image, of each
part of the work, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import multiprocessing
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
import torch

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


def made(folder: Path, out: Path, job: partial[Predictor], workers: int, size: int) -> list[float]:
    """When each shard of a folder was done, in seconds from the start."""
    begun, names, times = time.perf_counter(), [str(folder)], list[float]()

    def done(number: int, total: int) -> None:
        times.extend([time.perf_counter() - begun] * bool(number))

    how = Job(out=str(out), load=job)
    detect_shards(names, how, names=names, settings={}, size=size, workers=workers, on_progress=done)
    return times


def loops(photo: Path, gate: Any, told: Any, seconds: float) -> None:
    """Rounds per second of each kind of loop, all processes beginning each kind together."""
    predictor, image = api.load(threads=1), read_image(photo)
    square = torch.ones(256, 256)
    kinds: dict[str, Callable[[], Any]] = {
        "network": lambda: predictor.predict(image),
        "matmul": lambda: square @ square,
        "python": lambda: sum(range(10_000)),
    }
    rates = {}
    for name, call in kinds.items():
        call()
        gate.wait()
        begun, rounds = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds:
            call()
            rounds += 1
        rates[name] = rounds / spent
    told.put(rates)


def machine(photo: Path, rounds: int, seconds: float = 3.0) -> None:
    """Prints what two processes that share nothing do, over what one does."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        rates = []
        for count in (1, 2):
            gate, told = context.Barrier(count), context.Queue()
            processes = [context.Process(target=loops, args=(photo, gate, told, seconds)) for _ in range(count)]
            for process in processes:
                process.start()
            answers = [told.get() for _ in processes]
            for process in processes:
                process.join()
            rates.append({name: sum(answer[name] for answer in answers) for name in answers[0]})
        for name, rate in rates[1].items():
            found.setdefault(name, []).append(rate / rates[0][name])
    shown = ", ".join(f"{name} {statistics.median(ratios):.2f}x" for name, ratios in found.items())
    print(f"this machine's own two loops against one: {shown}", flush=True)


def speed(photos: Path, count: int, rounds: int) -> None:
    """Prints images per second, and what the first shards took beyond that."""
    load, paths = partial(api.load, threads=1), paths_in(photos)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for i in range(count):
            shutil.copy(paths[i % len(paths)], folder / f"{i:06d}{paths[i % len(paths)].suffix}")
        predictor, images = load(), [read_image(path) for path in paths_in(folder)]
        found: dict[str, list[float]] = {"bare loop": [], "1 process": [], "2 processes": []}
        size, starts = max(count // 16, 1), dict[str, float]()
        for turn in range(rounds):
            begun = time.perf_counter()
            for image in images:
                predictor.predict(image)
            found["bare loop"].append(count / (time.perf_counter() - begun))
            for workers, name in ((1, "1 process"), (2, "2 processes")):
                times = made(folder, Path(place, f"{turn}-{workers}"), load, workers, size)
                rate = (count - workers * size) / (times[-1] - times[workers - 1])
                found[name].append(rate)
                starts[name] = times[workers - 1] - workers * size / rate
        for name, rates in found.items():
            more = f", after {starts[name]:.1f} s to start" if name in starts else ""
            print(f"{name:<12} {statistics.median(rates):8.2f} images per second{more}", flush=True)
        one, two = (statistics.median(found[name]) for name in ("1 process", "2 processes"))
        print(f"2 processes are {two / one:.2f}x one", flush=True)
    machine(paths[0], rounds)


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
    parser.add_argument("what", choices=["speed", "machine", "memory", "parts", "child"])
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.photos, given.images or 400, given.rounds)
    elif given.what == "machine":
        machine(paths_in(given.photos)[0], given.rounds)
    elif given.what == "parts":
        parts(given.photos, given.images or 400)
    elif given.what == "memory":
        memory(given.images or 100_000)
    else:
        seconds = made(given.photos, given.out, partial(Nothing), 1, 5000)[-1]
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
