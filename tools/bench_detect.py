"""A photo to boxes: the whole command, and an image in memory, by each engine that is installed, taking turns.

    python tools/bench_detect.py PHOTO MODEL.onnx [--model NAME] [--model OTHER] [--rounds 20] [--threads 2]
    python tools/bench_detect.py PHOTO MODEL.onnx --command "yolo predict model=yolo11n.pt source=PHOTO"

The order changes every round; medians. Of commands CPU seconds (user and system) of the process and its children, the
first round, in which files are read from disk, left out. ``--command`` adds a peer's, run as it is. Run it on a quiet
machine.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from detkit import api
from detkit.exporting.engines import ENGINES
from detkit.io.images import read_image


def cpu_seconds(words: list[str]) -> float:
    """Of a command and its children."""
    before = os.times()
    subprocess.run(words, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def wall_seconds(call: Callable[[], object]) -> float:
    """Of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rounds_of(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each, after a round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name in random.Random(turn).sample(list(measures), len(measures)):
            value = measures[name]()
            if turn:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("exported", metavar="MODEL.onnx")
    parser.add_argument("--model", action="append", help="what torch runs (default: default); may be given again")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--command", action="append", default=[], help="a peer's, timed as a whole command")
    given = parser.parse_args()
    here, threads = [sys.executable, "-m", "detkit", "detect", given.photo], ["--threads", str(given.threads)]
    commands, models = dict[str, list[str]](), dict[str, Any]()
    for model in given.model or ["default"]:
        commands[f"torch {model}"] = [*here, *threads, "--model", model, "--engine", "torch"]
        models[f"torch {model}"] = api.load(model, threads=given.threads, device="cpu")
    for engine in filter(find_spec, ENGINES):
        commands[engine] = [*here, *threads, "--model", given.exported, "--engine", engine]
        models[engine] = api.load(given.exported, threads=given.threads, engine=engine)
    commands |= {command: shlex.split(command) for command in given.command}
    image = read_image(given.photo)
    whole = {name: lambda words=words: cpu_seconds(words) for name, words in commands.items()}
    inner = {name: lambda model=model: wall_seconds(lambda: model.predict(image)) for name, model in models.items()}
    for name, seconds in rounds_of(whole, min(given.rounds, 5)).items():
        print(f"{name:<40} whole command  {seconds:6.2f} s of CPU")
    for name, seconds in rounds_of(inner, given.rounds).items():
        print(f"{name:<40} image to boxes {1000 * seconds:6.1f} ms")


if __name__ == "__main__":
    main()
