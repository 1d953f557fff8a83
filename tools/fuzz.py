"""Damaged inputs of every kind: each must be read, or refused with an error that is meant for a person.

    python tools/fuzz.py                                      # 2,000 cases of all kinds
    python tools/fuzz.py --kind coco --cases 100000 --minutes 30 --seed 7

A case is a function of kind, seed and number. It takes a sound input, damages one of its files and reads it, in a
process that is started anew where a case ends it. Any outcome but success or a DetkitError (another error, more than
--seconds of computing, more than 1 GB, a dead process) leaves the damaged file and what happened in --out; exit code 1
then. Linux only.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from damage import damaged, damaged_header, damaged_metadata
from sound import KINDS

from detkit.errors import DetkitError

MEMORY = 2**30
HEADERS = {".safetensors": damaged_header, ".onnx": damaged_metadata}
EXAMPLES = 3  # that are kept of each fault


class TooLong(BaseException):
    """Raised where a case computes for longer than it may."""


class Fuzzer:
    """The cases of one kind.

    Args:
        name: Of the kind.
        seed: Of all cases.
        work: A folder for the sound input and its copies.
        out: Where faults are kept.
        seconds: That a case may compute; six times as long it may be silent.
    """

    def __init__(self, name: str, seed: int, work: Path, out: Path, seconds: float) -> None:
        self.name, self.seed, self.out, self.kind, self.seconds = name, seed, out, KINDS[name], seconds
        self.folder = work / name
        self.made = self.kind.make(self.folder)
        files = (path for path in self.folder.glob("**/*") if path.suffix in self.kind.damaged)
        self.files = sorted(path for path in files if "sound" not in path.parts)
        for path in self.files:  # the input is sound, and what reads it is imported
            self.kind.use(self.folder, path, random.Random(0), self.made)
        self.state = mmap.mmap(-1, 8 * 3)  # case, refused, faults: what the process that works has got to
        self.kept: Counter[str] = Counter()

    def case(self, number: int) -> tuple[Path, bytes, random.Random]:
        """The file that a case damages, as it then is, and what the rest of the case draws from."""
        rng = random.Random(f"{self.name} {self.seed} {number}")
        path = rng.choice(self.files)
        data = path.read_bytes()
        if path.suffix in HEADERS and rng.random() < 0.7:
            return path, HEADERS[path.suffix](data, rng), rng
        return path, damaged(data, path.suffix == ".json", rng), rng

    def run(self, number: int) -> str:
        """ "read", "refused", or what went wrong."""
        path, data, rng = self.case(number)
        sound = path.read_bytes()
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            self.kind.use(self.folder, path, rng, self.made)
            return "read"
        except DetkitError:
            return "refused"
        except BaseException:
            return traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            path.write_bytes(sound)

    def keep(self, number: int, text: str) -> None:
        """Writes what a case found to the folder of faults, unless there are enough like it."""
        places = re.findall(r'File "([^"]*/detkit/[^"]*)", line (\d+)', text)
        key = f"{text.strip().splitlines()[-1].split(':')[0]} {places[-1:]}"
        self.kept[key] += 1
        if self.kept[key] <= EXAMPLES:
            path, data, _ = self.case(number)
            folder = self.out / f"{self.name}-{self.seed}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(data)
            (folder / "what.txt").write_text(f"{path.relative_to(self.folder)}\n{text}", errors="replace")

    def work(self, first: int, end: int) -> None:
        """What the working process does; the memory that it may take is limited."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, _too_long)
        _, refused, faults = struct.unpack("3q", self.state[:24])
        for number in range(first, end):
            self.state[:24] = struct.pack("3q", number, refused, faults)
            outcome = self.run(number)
            refused += outcome == "refused"
            if outcome not in ("read", "refused"):
                faults += 1
                self.keep(number, outcome)
        self.state[:24] = struct.pack("3q", end, refused, faults)

    def loop(self, cases: int, deadline: float) -> tuple[int, int, int]:
        """Runs the cases, in a new process wherever one ends it; returns how many ran, were refused, were faults."""
        first, done = 0, False
        stalled: set[int] = set()  # tried once more, for the machine may have been busy
        while not done and first < cases:
            sound = {path: path.read_bytes() for path in self.files}
            for _ in range(1000):  # a thread that was joined lives on for some ms, and may hold a lock
                if len(os.listdir("/proc/self/task")) == 1:
                    break
                time.sleep(0.001)
            worker = os.fork()
            if not worker:
                try:
                    self.work(first, cases)
                finally:
                    os._exit(0)
            ended, seen, since = 0, -1, time.monotonic()
            while not ended:
                ended, status = os.waitpid(worker, os.WNOHANG)
                time.sleep(0 if ended else 0.05)
                number = struct.unpack("q", self.state[:8])[0]
                if number != seen:
                    seen, since = number, time.monotonic()
                done = time.monotonic() > deadline
                if not ended and (done or time.monotonic() - since > 6 * self.seconds):
                    os.kill(worker, signal.SIGKILL)
                    ended, status = os.waitpid(worker, 0)
            number, refused, faults = struct.unpack("3q", self.state[:24])
            first = number + 1
            for path, data in sound.items():
                path.write_bytes(data)
            if number < cases and not done and status == signal.SIGKILL and number not in stalled:
                stalled.add(number)
                first = number
            elif number < cases and not done:
                self.keep(number, f"the process ended with status {status} (9: killed after {6 * self.seconds:.0f} s)")
                self.state[:24] = struct.pack("3q", number, refused, faults + 1)
            done = done or number >= cases
        number, refused, faults = struct.unpack("3q", self.state[:24])
        return min(number, cases), refused, faults


def _too_long(*_: object) -> None:
    raise TooLong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="repeat it for several (default: all)")
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--seconds", type=float, default=5, help="of computing that a case may take (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="folder for what went wrong")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    names = options.kind or list(KINDS)
    shares = {name: 1 / KINDS[name].cost for name in names}
    begun, faults = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as work:
        os.environ["DETKIT_CACHE"] = str(Path(work) / "cache")
        for place, name in enumerate(names):
            left = begun + 60 * options.minutes - time.monotonic()
            fuzzer = Fuzzer(name, options.seed, Path(work), options.out, options.seconds)
            cases = max(1, round(options.cases * shares[name] / sum(shares.values())))
            ran, refused, bad = fuzzer.loop(cases, time.monotonic() + left / (len(names) - place))
            print(f"{name:20s} {ran:7d} cases, {refused:7d} refused, {bad:5d} faults", flush=True)
            faults += bad
    print(f"{faults} faults in {time.monotonic() - begun:.0f} s" + (f", see {options.out}" if faults else ""))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
