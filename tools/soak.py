"""Long and rough runs of ``detkit detect`` and ``track``: constant memory, damaged images, all ways that a run can end.

    python tools/soak.py                                      # reduced: some minutes
    python tools/soak.py --frames 100000 --images 50000       # full size

Network and images are tiny: what is looked at is memory, and that the output is whole. Prints a line per case; exit
code 1 if one of them fails. Linux only (memory is read from /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from sound import make_model

from detkit.io.images import write_image
from detkit.io.video import VideoReader, VideoWriter

MODEL = Path("model", "m.safetensors")
CLIP = 500  # frames of the clip that is seen again and again
GROWTH = 0.02  # share of its memory that a run may grow by from its first third to its end
CLOCK_BACK = "import itertools, time; t = itertools.count(2e9, -1); time.time = lambda: next(t); "
failed = []


def detect(words: Sequence[str], folder: Path, model: Path, **options: object) -> subprocess.Popen[str]:
    clock, verb = CLOCK_BACK if options.pop("clock_back", False) else "", str(options.pop("verb", "detect"))
    code = f"import sys; {clock}from detkit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, verb, "--model", str(model), "--threads", "1", "--conf", "0.005", *words]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


def megabytes(process: subprocess.Popen[str]) -> float:
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


def told(name: str, right: bool, text: str) -> None:
    print(f"{'ok  ' if right else 'FAIL'} {name}: {text}", flush=True)
    if not right:
        failed.append(name)


def watched(name: str, words: Sequence[str], folder: Path, code: int, lines: int, verb: str = "detect") -> None:
    """A whole run: its exit code, the lines that it wrote, and that its memory stays what it was."""
    with open(folder / "said.txt", "w") as said:
        words = [*words, "--out", "found.jsonl", "--overwrite", "--batch", "32"]
        process = detect(words, folder, folder / MODEL, stdout=said, verb=verb)
        memory: list[tuple[int, float]] = []  # bytes that are written, megabytes in use
        partial, final = folder / "found.partial.jsonl", folder / "found.jsonl"
        while process.poll() is None:
            time.sleep(0.2)
            with suppress(OSError):
                memory.append((partial.stat().st_size, megabytes(process)))
        errors = process.communicate()[1].splitlines()
    size = final.stat().st_size
    settled = max((used for done, used in memory if size * 0.1 < done < size * 0.3), default=0)
    last = max((used for done, used in memory if done > size * 0.8), default=0)
    with open(final) as found:
        count = sum(1 for line in found if json.loads(line))
    right = process.returncode == code and count == lines and 0 < last <= settled * (1 + GROWTH)
    told(name, right, f"code {process.returncode}, {count} lines, {settled:.0f} -> {last:.0f} MB, {errors[-1:]}")


def whole(folder: Path) -> str:
    """What a run left: numbers of whole records; raises where something is half."""
    left = []
    for file in sorted([*folder.glob("found*"), *folder.glob("runs/*/*")]):
        if file.suffix == ".jsonl":
            left.append(f"{file.name} {len([json.loads(line) for line in file.read_text().splitlines()])}")
        elif file.suffix == ".json":
            left.append(f"{file.name} {len(json.loads(file.read_text()))}")
        elif file.suffix == ".mp4" and ".partial" not in file.name:
            with VideoReader(file) as reader:
                left.append(f"{file.name} {sum(1 for _ in reader)}")
        else:
            left.append(file.name)
    hidden = [file.name for file in folder.rglob(".*")]
    if hidden:
        raise ValueError(f"left over: {hidden}")
    return ", ".join(left) or "nothing"


def ended(
    name: str,
    clip: Path,
    code: int,
    *,
    out: str = "found.jsonl",
    end: Callable[[subprocess.Popen[str]], object],
    **options: object,
) -> None:
    """A run on the clip that ``end`` ends; what is left must be whole."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = [str(clip), "--out", out, "--save"]
        process = detect(words, folder, clip.parent / MODEL, stdout=subprocess.PIPE, **options)
        end(process)
        _, errors = process.communicate()
        try:
            left, right = whole(folder), process.returncode == code and "Traceback" not in errors
        except Exception as error:
            left, right = repr(error), False
        told(name, right, f"code {process.returncode}, left {left}; {' | '.join(errors.splitlines()[-3:])}")


def after(frames: int, signum: int) -> Callable[[subprocess.Popen[str]], None]:
    def end(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for _ in range(frames):
            process.stdout.readline()
        process.send_signal(signum)

    return end


def closed_pipe(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None


def every_end(clip: Path, chance: random.Random) -> None:
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        for out in ("found.jsonl", "found.json"):
            frames = chance.randrange(1, CLIP // 2)
            ended(f"{signum.name} after {frames} frames, {out}", clip, code, out=out, end=after(frames, signum))

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    ended("disk full", clip, 4, end=lambda _: None, preexec_fn=small_disk)
    ended("read-only output", clip, 2, out="/proc/found.jsonl", end=lambda _: None)
    ended("closed pipe", clip, 0, end=closed_pipe)
    ended("clock going back", clip, 0, end=lambda _: None, clock_back=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--ends", action=argparse.BooleanOptionalAction, default=True, help="How runs can end.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, noise = random.Random(options.seed), np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        make_model(folder / MODEL.parent)
        clip = folder / "clip.avi"
        with VideoWriter(clip, 25) as writer:
            for _ in range(CLIP):
                writer.write(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))

        if options.ends:
            every_end(clip, chance)
        (folder / "list.txt").write_text("clip.avi\n" * (options.frames // CLIP))
        if options.frames:
            watched(f"{options.frames} frames", ["--list", "list.txt"], folder, 0, options.frames // CLIP * CLIP)
            with VideoWriter(folder / "film.avi", 25) as writer:
                for _ in range(options.frames):
                    writer.write(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            areas = ["--count", "line:0,24,64,24", "--count", "zone:10,10,50,40"]
            watched(f"{options.frames} frames tracked", ["film.avi", *areas], folder, 0, options.frames, "track")
        damaged = 0
        for i in range(options.images):
            file = folder / "images" / f"{i}.jpg"
            write_image(file, noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            if chance.random() < 0.01:
                file.write_bytes(file.read_bytes()[: chance.randrange(1, 2000)])
                damaged += 1
        if options.images:
            name = f"{options.images} images, {damaged} damaged"
            watched(name, ["images", "--save"], folder, 3 if damaged else 0, options.images - damaged)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
