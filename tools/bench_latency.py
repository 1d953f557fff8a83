"""One image at a time: a detkit model against torchvision's ssdlite320_mobilenet_v3_large, both eager, taking turns.

    python tools/bench_latency.py [MODEL] [--size 320] [--threads 2] [--precision bf16]

Timed are the networks alone, and an image in memory to boxes, decoding and NMS included: with all scores from 0.001,
as AP wants them, and with those from our model's threshold. The peer's images are floats already, which its time
leaves out. Its weights are random unless torchvision has them in its cache. Random scores are all alike, and sorting
thousands of them would be nobody's use of it: so its BatchNorms' statistics are taken from an image, and its
background's bias is set so that as many pairs of box and class reach the lowest score as of ours do. The order changes
every round; medians, and the fastest.
"""

from __future__ import annotations

import argparse
import copy
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


def peer() -> tuple[Any, bool]:
    """torchvision's detector, with its COCO weights if they are in the cache, and whether they were."""
    weights = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    cached = (Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]).is_file()
    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=weights if cached else None, weights_backbone=None
    )
    if not cached:
        noise = torch.rand(8, 3, 320, 320) * 2 - 1
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.head(list(model.backbone(noise).values()))
    return model.eval(), cached


def answering(model: Any, image: torch.Tensor, score: float, pairs: int | None) -> Any:
    """A copy of the peer that returns scores above ``score``, with about ``pairs`` of them before NMS on ``image``.

    pairs: None leaves its weights alone.
    """
    model = copy.deepcopy(model)
    model.score_thresh = score
    if pairs is None:
        return model
    layers = [block[-1] for block in model.head.classification_head.module_list]
    maps = model.backbone(model.transform([image])[0].tensors)
    logits = model.head(list(maps.values()))["cls_logits"][0]

    def passing(background: float) -> int:
        moved = logits.clone()
        moved[:, 0] += background
        return int((moved.softmax(-1)[:, 1:] > score).sum())

    low, high = -50.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passing(middle) > pairs else (low, middle)
    for layer in layers:
        layer.bias.view(-1, logits.shape[1])[:, 0] += high
    return model


def timed(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each in every round, after two that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 2):
        for name in reversed(functions) if turn % 2 else functions:
            began = time.perf_counter()
            functions[name]()
            if turn >= 2:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="fp32", help="of our model: fp32, bf16 or auto")
    options = parser.parse_args()
    import matplotlib.cbook
    import PIL.Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = np.array(PIL.Image.open(file).convert("RGB"))
    ours: Any = api.load(
        options.model, size=options.size, device="cpu", threads=options.threads, precision=options.precision
    )
    theirs, known = peer()
    pixels = collate([Sample(photo)], ours.resize)[0].pixels
    image = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    resized = torch.nn.functional.interpolate(image[None], (320, 320))
    with torch.inference_mode():
        scores = ours.head.scores(ours.raw(pixels))

        def network() -> Any:
            with ours.autocast():
                return ours.raw(pixels)

        rows: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
            "network": (network, lambda: theirs.head(list(theirs.backbone(resized).values())), "")
        }
        for lowest in (Limits.evaluation().conf, ours.threshold):
            pairs = int((scores >= lowest).sum())
            other = answering(theirs, image, lowest, None if known else pairs)
            limits = Limits(conf=lowest)
            title = f"image to boxes, scores from {lowest:.3g}"
            rows[title] = (
                lambda limits=limits: ours.predict_samples([Sample(photo)], limits),  # type: ignore[misc]
                lambda other=other: other([image]),  # type: ignore[misc]
                f"{pairs} pairs before NMS, {len(ours.predict_samples([Sample(photo)], limits)[0])} boxes after;"
                f" the peer: {len(other([image])[0]['boxes'])} after",
            )
        print(f"detkit {options.model} at {ours.resize.height}, {ours.precision}, {torch.get_num_threads()} threads")
        print(f"ssdlite320, {'COCO' if known else 'random'} weights; ms, median (fastest)")
        for title, (own, other, note) in rows.items():
            times = timed({"detkit": own, "ssdlite": other}, options.rounds)
            middle = {name: statistics.median(values) for name, values in times.items()}
            columns = "   ".join(f"{name} {middle[name]:6.1f} ({min(times[name]):5.1f})" for name in times)
            print(f"{title:<36}{columns}   {middle['ssdlite'] / middle['detkit']:5.2f} x as fast   {note}")


if __name__ == "__main__":
    main()
