"""A photo to boxes, and a video to a drawn video, by each engine that is installed, beside ultralytics, taking turns.

    python tools/bench_detect.py PHOTO MODEL.onnx [--model NAME] [--model OTHER] [--rounds 20] [--threads 2] [--bf16]
    python tools/bench_detect.py PHOTO MODEL.onnx --peer-python PEER/bin/python [--video CLIP] [--only TEXT]

PEER holds ``pip install ultralytics onnx onnxruntime onnxslim openvino supervision``. Its network is yolo11n as its
yaml says, with random weights, so that it finds and draws nothing (in its favour): at 320, and at the size whose
multiply-adds come nearest to MODEL.onnx's. Both sides look at squares. The order changes every round; medians, after
one that is not counted. ``--cpu`` counts CPU instead of wall seconds, for a machine that is not quiet. Of commands CPU
seconds of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, chdir, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

Measure = Callable[[], float]
QUIET = {"YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False"}
SIDE, STRIDE = 320, 32  # of yolo11n


def cpu_seconds(words: list[str]) -> float:
    """Of a command and its children, in an empty folder."""
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(words, check=True, capture_output=True, cwd=folder, env={**os.environ, **QUIET})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def timed(call: Callable[[], object], cpu: bool) -> Measure:
    """Seconds of a call."""
    clock = time.process_time if cpu else time.perf_counter

    def measure() -> float:
        start = clock()
        call()
        return clock() - start

    return measure


def rounds_of(measures: dict[str, Measure], rounds: int) -> dict[str, float]:
    """The median of each, after a round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name in random.Random(turn).sample(list(measures), len(measures)):
            value = measures[name]()
            if turn:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def multiply_adds(network: Any, side: int) -> float:
    """Millions, of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # with gradients nothing is folded away
        network(torch.zeros(1, 3, side, side))
    return float(counter.get_total_flops()) / 2e6


def absolute(path: str) -> str:
    """Commands run in folders of their own."""
    return str(Path(path).resolve())


class Peer:
    """ultralytics in its own environment: says what it can measure, and measures it when asked."""

    def __init__(self, given: argparse.Namespace, wanted: float) -> None:
        asked = json.dumps({**vars(given), "wanted": wanted})
        self._process = subprocess.Popen(
            [given.peer_python, __file__, given.photo, given.exported, "--asked", asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET},
        )
        self.told: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def measures(self, kind: str) -> dict[str, Measure]:
        """By name."""
        return {name: lambda name=name: self.ask(kind, name) for name in self.told[kind]}

    def ask(self, kind: str, name: str) -> float:
        """Seconds."""
        assert self._process.stdin is not None
        print(json.dumps([kind, name]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def limit_threads(threads: int) -> None:
    """Of the engines that ultralytics opens."""
    import onnxruntime
    import openvino

    opened, core = onnxruntime.InferenceSession, openvino.Core

    def open_limited(path: str, *_: object, **__: object) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return opened(path, options, providers=["CPUExecutionProvider"])

    class Limited(core):
        def __init__(self) -> None:
            super().__init__()
            self.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})

    onnxruntime.InferenceSession, openvino.Core = open_limited, Limited


def serve(asked: dict[str, Any]) -> None:
    """Runs in the peer's environment: answers on stdout, one line per question on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else it prints
    import cv2
    import supervision
    import torch
    import ultralytics
    from ultralytics import YOLO

    ultralytics.settings.update({"sync": False})
    limit_threads(asked["threads"])
    network = YOLO("yolo11n.yaml").model.eval()
    near = STRIDE * round(SIDE / STRIDE * math.sqrt(asked["wanted"] / multiply_adds(network, SIDE)))
    image = cv2.imread(asked["photo"])
    kinds: dict[str, dict[str, Measure]] = {"images": {}, "videos": {}}

    def look(model: Any, side: int, source: Any = image, **more: Any) -> Any:
        return model.predict(source, imgsz=side, rect=False, device="cpu", verbose=False, **more)

    def film(model: Any, side: int) -> None:
        for _ in look(model, side, asked["video"], stream=True, save=True, project=os.getcwd(), exist_ok=True):
            pass

    def supervised(model: Any, side: int) -> None:
        boxes, labels = supervision.BoxAnnotator(), supervision.LabelAnnotator()

        def draw(frame: np.ndarray, _: int) -> np.ndarray:
            found = supervision.Detections.from_ultralytics(look(model, side, frame)[0])
            return labels.annotate(boxes.annotate(frame, found), found)

        supervision.process_video(source_path=asked["video"], target_path="supervised.mp4", callback=draw)

    YOLO("yolo11n.yaml").save("yolo11n.pt")
    files = {(form, near): YOLO("yolo11n.pt").export(format=form, imgsz=near) for form in ("onnx", "openvino")}
    for (form, side), file in {("torch", SIDE): "yolo11n.pt", ("torch", near): "yolo11n.pt", **files}.items():
        model, name = YOLO(file, task="detect"), f"ultralytics {form} at {side}"
        look(model, side)
        torch.set_num_threads(asked["threads"])
        kinds["images"][name] = timed(lambda model=model, side=side: look(model, side), asked["cpu"])
        if side == near and asked["video"]:
            kinds["videos"][name] = timed(lambda model=model: film(model, near), asked["cpu"])
            kinds["videos"][f"supervision, {name}"] = timed(lambda model=model: supervised(model, near), asked["cpu"])
    told = {"near": near, "work": multiply_adds(network, near), "version": ultralytics.__version__}
    print(json.dumps({**told, **{kind: list(names) for kind, names in kinds.items()}}), file=answers, flush=True)
    for line in sys.stdin:
        kind, name = json.loads(line)
        print(kinds[kind][name](), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=absolute)
    parser.add_argument("exported", metavar="MODEL.onnx", type=absolute)
    parser.add_argument("--model", action="append", help="what torch runs (default: default); may be given again")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="seconds of CPU instead of the clock's")
    parser.add_argument("--peer-python", help="of an environment with ultralytics")
    parser.add_argument("--video", type=absolute, help="a clip that each side looks at, draws on and writes")
    parser.add_argument("--bf16", action="store_true", help="OpenVINO in bf16, too, for a CPU that computes in it")
    parser.add_argument("--only", action="append", choices=("commands", "images", "videos"))
    parser.add_argument("--asked", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        if given.asked:
            serve(given.asked)
        else:
            bench(given, stack)


def bench(given: argparse.Namespace, stack: ExitStack) -> None:
    """Prints the tables."""
    from detkit import api
    from detkit.cli import main as run
    from detkit.exporting.engines import ENGINES
    from detkit.io.images import read_image

    threads = ["--threads", str(given.threads)]
    detect, image = [sys.executable, "-m", "detkit", "detect"], read_image(given.photo)
    tables: dict[str, dict[str, Measure]] = {"commands": {}, "images": {}, "videos": {}}

    def film(words: list[str]) -> None:
        with redirect_stdout(StringIO()):
            run(words)

    def add(name: str, model: str, engine: str, precision: str = "auto") -> None:
        how = ["--model", model, "--engine", engine, *threads, "--precision", precision]
        tables["commands"][name] = lambda: cpu_seconds([*detect, given.photo, *how])
        asked = {"device": "cpu"} if engine == "torch" else {}
        loaded = api.load(model, threads=given.threads, engine=engine, precision=precision, **asked)
        tables["images"][name] = timed(lambda: loaded.predict(image), given.cpu)
        if given.video:
            tables["videos"][name] = timed(lambda: film(["detect", given.video, "--save", *how]), given.cpu)

    for model in given.model or ["default"]:
        add(f"detkit torch {model}", model, "torch", "fp32")  # auto is bf16 on a CPU that multiplies in it
    for engine in filter(find_spec, ENGINES):
        add(f"detkit {engine}", given.exported, engine)
    if given.bf16:
        add("detkit openvino bf16", given.exported, "openvino", "bf16")
    if given.peer_python:
        own = api.load("default", device="cpu")
        side = (own.input_size or (416,))[0]
        work = multiply_adds(own.raw, side)
        peer = Peer(given, work)
        stack.callback(peer.close)
        told = peer.told
        print(f"millions of multiply-adds: {work:.0f} at {side}; yolo11n {told['work']:.0f} at {told['near']}")
        for kind in ("images", "videos"):
            tables[kind] |= peer.measures(kind)
        yolo = str(Path(given.peer_python).with_name("yolo"))
        words = [yolo, "predict", "model=yolo11n.yaml", f"source={given.photo}", f"imgsz={told['near']}", "device=cpu"]
        tables["commands"][f"ultralytics {told['version']}"] = lambda: cpu_seconds(words)
    units = {"commands": "s of CPU, whole command", "images": "ms, image to boxes", "videos": "s, video to drawn video"}
    for kind, measures in tables.items():
        if given.only is None or kind in given.only:
            factor, rounds = (1000, given.rounds) if kind == "images" else (1, min(given.rounds, 5))
            for name, seconds in rounds_of(measures, rounds).items():
                print(f"{name:<44} {factor * seconds:8.2f} {units[kind]}", flush=True)


if __name__ == "__main__":
    main()
