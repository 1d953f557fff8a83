"""One picture at a time: a detkit model against torchvision's ssdlite320_mobilenet_v3_large, both eager, taking turns.

    python tools/bench_latency.py [MODEL] [--size 320]

Timed are the networks alone, and with everything after them (decoding, NMS) on a picture in memory. The peer's weights
are random unless torchvision has them in its cache: then its scores are all alike and its NMS does more than usual, so
without weights only the first row is a fair one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from detkit import api
from detkit.data.loader import collate
from detkit.structures import Limits, Sample


def peer() -> tuple[Any, str]:
    """torchvision's detector with its COCO weights if they are in the cache, and where the weights are from."""
    weights = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    known = cached.is_file()
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=weights if known else None, weights_backbone=None
    )
    return model.eval(), "COCO weights" if known else "random weights"


def medians(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, the candidates taking turns; two rounds first that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn >= 2:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    import matplotlib.cbook
    import PIL.Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(PIL.Image.open(file).convert("RGB"))
    ours = api.load(options.model, size=options.size, device="cpu").eval()
    theirs, origin = peer()
    batch = collate([Sample(photo)], ours.resize)[0]
    image = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    resized = torch.nn.functional.interpolate(image[None], (320, 320))
    name, other = f"detkit {options.model} at {ours.resize.height}", f"ssdlite320, {origin}"
    with torch.inference_mode():
        networks = {
            name: lambda: ours.raw(batch.pixels),
            other: lambda: theirs.head(list(theirs.backbone(resized).values())),
        }
        whole = {
            name: lambda: ours.predict(photo),
            f"{name}, scores from 0.001": lambda: ours.predict_samples([Sample(photo)], Limits.evaluation()),
            other: lambda: theirs([image]),
        }
        for title, functions in {"network": networks, "picture to boxes": whole}.items():
            found = medians(functions, options.rounds)
            for which, spent in found.items():
                print(f"{title:<18}{which:<50}{spent:7.1f} ms {found[other] / spent:6.2f} x as fast")


if __name__ == "__main__":
    main()
