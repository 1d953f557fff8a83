"""Load on ``detkit serve``: many clients, some wrong bodies; every answer is checked, and memory stays flat.

    python tools/load_serve.py                                  # 2000 requests, 32 clients
    python tools/load_serve.py --requests 300 --clients 32 photos/*.jpg

Then one client alone: what a request costs beyond ``Predictor.predict`` on the same bytes. Exit code 1 if an answer is
lost or wrong, or memory grows by more than GROWTH.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

import detkit
from detkit.cli.quickstart import installed_photos
from detkit.io.detections import record_of
from detkit.io.images import read_image
from detkit.io.sources import Frame

GROWTH = 0.05  # share of the memory after the first quarter
WRONG = (b"", b"no image at all", b"/etc/passwd", b"\x89PNG\r\n\x1a\n" + bytes(40))
_local = threading.local()


def ask(port: int, body: bytes) -> tuple[int, dict[str, object]]:
    """One request on this thread's connection, again where the server is full."""
    if not hasattr(_local, "connection"):
        _local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    _local.connection.request("POST", "/detect", body)
    reply = _local.connection.getresponse()
    answer = json.loads(reply.read())
    if reply.status == 429:
        time.sleep(0.2)
        return ask(port, body)
    return reply.status, answer


def same(answer: dict[str, object], right: dict[str, object]) -> bool:
    """Equal, but for what the order of sums in another batch moves: 0.02 pixels, 0.0001 of a score."""
    found, known = answer.pop("detections", []), right["detections"]
    assert isinstance(found, list)
    assert isinstance(known, list)
    if answer != {name: value for name, value in right.items() if name != "detections"} or len(found) != len(known):
        return False
    near = all(
        one["label"] == two["label"]
        and abs(one["score"] - two["score"]) <= 1e-4
        and all(abs(a - b) <= 0.02 for a, b in zip(one["box"], two["box"], strict=True))
        for one, two in zip(found, known, strict=True)
    )
    return near


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", default="1", help="Of the model.")
    parser.add_argument("--size", default="320", help="Of the model's input.")
    given = parser.parse_args()
    bodies = [path.read_bytes() for path in given.photos or installed_photos()]
    detector = detkit.load(device="cpu", threads=int(given.threads), size=int(given.size))
    images = [read_image(body) for body in bodies]
    right = [record_of(Frame(image, "-"), detector.predict(image)) for image in images]
    words = [sys.executable, "-m", "detkit", "serve", "--port", "0", "--json", "--timeout", "300", "--device", "cpu"]
    words += ["--threads", given.threads, "--size", given.size]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(json.loads(server.stdout.readline())["url"].rstrip("/").rpartition(":")[2])
        memory: list[int] = []
        outcomes: Counter[str] = Counter()
        process, choose = psutil.Process(server.pid), random.Random(0)
        plan = [choose.randrange(len(bodies)) if choose.random() >= 0.01 else -1 for _ in range(given.requests)]

        def one(number: int) -> str:
            at = plan[number]
            status, answer = ask(port, bodies[at] if at >= 0 else WRONG[number % len(WRONG)])
            memory.append(process.memory_info().rss)
            if at < 0:
                return "refused rightly" if status == 400 and "error" in answer else "WRONG"
            return "answered rightly" if status == 200 and same(answer, right[at]) else "WRONG"

        start = time.perf_counter()
        with ThreadPoolExecutor(given.clients) as pool:
            outcomes.update(pool.map(one, range(given.requests)))
        seconds = time.perf_counter() - start
        quarter, end = max(memory[: len(memory) // 4]), max(memory[-len(memory) // 4 :])
        print(f"{given.requests} requests, {given.clients} clients, {seconds:.1f} s: {dict(outcomes)}")
        print(f"memory: {quarter / 2**20:.0f} MB after a quarter, {end / 2**20:.0f} MB at the end")
        served, direct = [], []
        for _ in range(30):  # taking turns
            for times, call in ((served, lambda: ask(port, bodies[0])), (direct, lambda: detector.predict(bodies[0]))):
                start = time.perf_counter()
                call()
                times.append(1000 * (time.perf_counter() - start))
        served_ms, direct_ms = statistics.median(served), statistics.median(direct)
        print(
            f"one client: {served_ms:.1f} ms a request, predict {direct_ms:.1f} ms: {served_ms - direct_ms:.1f} ms more"
        )
        return int(outcomes["WRONG"] > 0 or sum(outcomes.values()) < given.requests or end > quarter * (1 + GROWTH))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
