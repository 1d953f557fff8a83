"""The classical speed-up: R-CNN against Fast R-CNN, and Faster R-CNN's proposals against selective search's.

    python tools/bench_rcnn.py [--image FILE] [--rounds 3] [--crops 64] [--threads 2] [--json]

One VGG16 with random weights (time does not depend on them), one image, the same 2000 random regions for both. R-CNN
warps each region to 224 pixels and runs the whole network on it; ``--crops`` of them are measured and extrapolated to
all. Fast R-CNN runs the convolutions once and only fc6 and fc7 on each region; at its paper's scale (a shorter side of
600 pixels, at most 1000) and at the size of the shipped configs (320), as it is and with its layers split by truncated
SVD at the paper's ranks (1024 and 256). Both end in scores and boxes; NMS, the same for both, is left out. The
candidates take turns; the times are medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones.torchvision import vgg16
from detkit.data.resize import Resize
from detkit.data.toy import toy_sample
from detkit.devices import keep_freed_memory
from detkit.geometry import Geometry
from detkit.heads.roi import RoIHead
from detkit.io.images import read_image
from detkit.proposals.rpn import RPN
from detkit.proposals.search import selective_search
from detkit.structures import Batch

REGIONS, CLASSES, RANKS = 2000, 20, [1024, 256]
SCALES = {"600": (600, 1000), "320": (320, 320)}  # the shorter side and the longer one at most
Call = Callable[[], object]


def regions(height: int, width: int) -> Tensor:
    """(2000, 4) xyxy in an image of this size, sides log-normal about 0.3 of the shorter one."""
    generator = torch.Generator().manual_seed(0)
    limit = torch.tensor([width, height] * 2)
    centre = torch.rand(REGIONS, 2, generator=generator) * limit[:2]
    half = torch.exp(0.6 * torch.randn(REGIONS, 2, generator=generator)) * 0.15 * min(height, width)
    return torch.cat((centre - half, centre + half), dim=1).clamp(min=0).minimum(limit)


def resized(image: Any, scale: str) -> Tensor:
    """(1, 3, H, W) float in channels_last strides, as a loaded model works."""
    short, long = SCALES[scale]
    height, width = image.shape[:2]
    factor = min(short / min(height, width), long / max(height, width))
    pixels, _ = Resize((round(height * factor), round(width * factor)), mode="stretch", stride=16)(image)
    return ((torch.from_numpy(pixels).permute(2, 0, 1)[None] - 114.0) / 58.0).contiguous(
        memory_format=torch.channels_last
    )


def candidates(image: Any, crops: int) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by name, and words on each."""
    torch.manual_seed(0)
    body, trunk = vgg16(CLASSES).split((4,))  # type: ignore[union-attr]
    heads = {
        "rcnn": RoIHead([3], [1], CLASSES, nn.Sequential(*body.stages, *trunk), pool="crops", size=224, chunk=16),
        "fast": RoIHead([512], [16], CLASSES, trunk, pool="max", chunk=REGIONS),
    }
    heads["fast, SVD"] = RoIHead([512], [16], CLASSES, copy.deepcopy(trunk), pool="max", chunk=REGIONS, svd=RANKS)
    rpn = RPN([512], [16], scales=[128, 256, 512], before=(6000, 6000), after=(REGIONS, 300))
    for module in (body, rpn, *heads.values()):
        module.to(memory_format=torch.channels_last).eval()
    calls: dict[str, Call] = {}
    words: dict[str, str] = {}
    whole = resized(image, "600")
    boxes = regions(*whole.shape[-2:])
    calls["rcnn"] = lambda: heads["rcnn"].raw([whole], [boxes[:crops]])
    words["rcnn"] = f"R-CNN, {crops} crops of 224 pixels"
    for scale in SCALES:
        pixels = resized(image, scale)
        height, width = pixels.shape[-2:]
        here = regions(height, width)
        for name, title in (("fast", "Fast R-CNN"), ("fast, SVD", "Fast R-CNN, truncated SVD")):
            calls[f"{name} {scale}"] = lambda p=pixels, b=here, h=heads[name]: h.raw(body(p), [b])
            words[f"{name} {scale}"] = f"{title}, {height} x {width}, {REGIONS} regions"
    features = body(whole)
    batch = Batch(whole, torch.tensor([whole.shape[-2:]]), (Geometry(*whole.shape[:-3:-1]),))
    calls["rpn"] = lambda: rpn.propose(batch, features, training=False)
    words["rpn"] = f"Faster R-CNN's RPN on VGG16's map of {features[0].shape[-2]} x {features[0].shape[-1]}"
    for plan in ("fast", "quality"):
        calls[f"search {plan}"] = lambda plan=plan: selective_search(image, plan, threads=torch.get_num_threads())
        words[f"search {plan}"] = f"selective search, {plan}, {image.shape[0]} x {image.shape[1]}"
    return calls, words


@torch.inference_mode()
def measured(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU seconds; a first round of all but the longest warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            if not turn and (name == "rcnn" or name.endswith("600")):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if turn:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: [statistics.median(pair[k] for pair in pairs) for k in (0, 1)] for name, pairs in times.items()}
    return {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="a photo (default: a drawn one of 375 x 500)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    image = read_image(options.picture) if options.picture else toy_sample(0, 500).image[:375]
    calls, words = candidates(image, options.crops)
    seconds = measured(calls, options.rounds)
    times = REGIONS / options.crops
    all_crops = {clock: value * times for clock, value in seconds["rcnn"].items()}
    ratios = {
        f"rcnn / {name}": {clock: all_crops[clock] / seconds[name][clock] for clock in all_crops}
        for name in seconds
        if name.startswith("fast")
    }
    for plan in ("search fast", "search quality"):
        ratios[f"{plan} / rpn"] = {clock: seconds[plan][clock] / seconds["rpn"][clock] for clock in all_crops}
    if options.json:
        facts = {"threads": options.threads, "torch": torch.__version__, "crops": options.crops, "regions": REGIONS}
        print(json.dumps({**facts, "seconds": seconds, "rcnn extrapolated": all_crops, "times as fast": ratios}))
        return
    print(f"{options.threads} threads, torch {torch.__version__}; seconds of wall time (of CPU time)")
    for name, row in seconds.items():
        print(f"  {words[name]:58} {row['wall']:9.3f} ({row['cpu']:.3f})")
        if name == "rcnn":
            print(f"  {f'  extrapolated to {REGIONS} regions':58} {all_crops['wall']:9.3f} ({all_crops['cpu']:.3f})")
    print("times as fast")
    for name, row in ratios.items():
        slower, _, faster = name.partition(" / ")
        print(f"  {faster} than {slower}:".ljust(60) + f"{row['wall']:10.1f} ({row['cpu']:.1f})")


if __name__ == "__main__":
    main()
