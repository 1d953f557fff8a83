"""Model files: the table of those that can be used by name, and the header of any. No torch is needed here.

A model file is safetensors whose metadata holds ``format`` ("detkit"), ``version`` and, as one JSON text, ``detkit``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.data.names import COCO_CLASSES
from detkit.errors import DetkitError, nearest, nearest_path
from detkit.io.files import digits_in

FORMAT_VERSION = 1
DEFAULT = "detkit-nano"  # the name that "default" stands for


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file that has a name.

    Attributes:
        name: What it is called.
        sha256: Of the file, hexadecimal.
        bytes: Of the file.
        licence: Of the weights.
        classes: That it knows.
        score: What it reaches and on what, as shown in ``detkit models``.
        file: In the weights folder.
    """

    name: str
    sha256: str
    bytes: int
    licence: str
    classes: tuple[str, ...]
    score: str
    file: str


WEIGHTS: dict[str, Weights] = {
    "detkit-nano": Weights(
        name="detkit-nano",
        file="detkit-nano.safetensors",
        sha256="3d393c8b16beb561180d632fb0cac81f728872f9ba7b3e94ceb5f1815472efdb",
        bytes=2556984,
        licence="Apache-2.0 (see weights/README.md for origin, changes and the data's terms)",
        classes=COCO_CLASSES,
        score="AP50 0.85 on nine common classes, 0.70 on all of VOC val",
    )
}
REPLACED = {"voc-lite0": "detkit-nano"}

# torchvision's own COCO detectors, whose files torchvision's server has; named here so that listing them is quick.
_OUTSIDE = (
    "fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn "
    "fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn "
    "maskrcnn_resnet50_fpn_v2 retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 "
    "ssdlite320_mobilenet_v3_large"
)
TORCHVISION = tuple(f"torchvision/{name}" for name in _OUTSIDE.split())

_HEADER: dict[str, type | tuple[type, ...]] = {
    "config": dict, "classes": list, "class_ids": list, "resize": dict, "threshold": (int, float), "scores": dict,
    "record": dict,
}  # fmt: skip
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_REINSTALL = "install detkit again"
_AGAIN = "copy or download it again"
_RETRY = "give a .safetensors file that detkit wrote, such as best.safetensors of a run"


def weights_named(name: str) -> Weights:
    """The entry called ``name``; "default" stands for the shipped default.

    Raises:
        DetkitError: No such entry, with the nearest name.
    """
    name = DEFAULT if name == "default" else name
    if name in REPLACED:
        what = f"{name} is no longer shipped: {REPLACED[name]} took its place"
        raise DetkitError(what, name, f"use {REPLACED[name]}, or the file that an earlier version shipped")
    if name not in WEIGHTS:
        known = f"give a run folder, a model file or one of {', '.join(WEIGHTS)}"
        do = nearest(name, [*WEIGHTS, *TORCHVISION], otherwise=known)
        raise DetkitError(f"there is no model {name!r}", name, do)
    return WEIGHTS[name]


def weights_file(name: str) -> Path:
    """The file of ``name``, in the wheel's weights folder or the checkout's.

    Raises:
        DetkitError: No such name, or the file is missing or not the one that was shipped.
    """
    from detkit.io.download import sha256_of

    weights, package = weights_named(name), Path(__file__).resolve().parent
    for folder in (package / "weights", package.parent / "weights"):
        file = folder / weights.file
        if file.is_file():
            if sha256_of(file) != weights.sha256:
                raise DetkitError("the shipped model file has changed (its SHA-256 differs)", str(file), _REINSTALL)
            return file
    raise DetkitError(f"the file of {name} is not installed", weights.file, _REINSTALL)


def model_file(path_or_name: str | Path) -> Path:
    """The model file that a path, a run folder (its best) or a shipped name means.

    Raises:
        DetkitError: Nothing of that name, with the nearest.
    """
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise DetkitError("this folder holds no best.safetensors", name, "give a run folder or a model file")
        return best
    if path.is_file():
        return path
    if name != "default" and (path.suffix or len(path.parts) > 1):
        raise DetkitError("there is no such model file", name, nearest_path(path, _RETRY))
    return weights_file(name)


def header_metadata(header: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a model file or an exported one with this header (JSON values)."""
    return {"format": "detkit", "version": str(FORMAT_VERSION), "detkit": json.dumps(header, allow_nan=False)}


def header_in(metadata: Mapping[str, str], kind: str, where: str, do: str) -> dict[str, Any]:
    """The inverse of ``header_metadata``, with the number of the file's format; ``kind``: of file, for errors.

    Raises:
        DetkitError: Of another program, of a newer format, or damaged.
    """
    version = digits_in(metadata.get("version"))
    if metadata.get("format") != "detkit" or version is None:
        raise DetkitError(f"this {kind} was not written by detkit", where, do)
    if version > FORMAT_VERSION:
        what = f"the file has format {version}, this detkit reads up to {FORMAT_VERSION}"
        raise DetkitError(what, where, "pip install --upgrade detkit")
    try:
        return {"format": version, **json.loads(metadata["detkit"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DetkitError(f"what the {kind} says of itself is damaged", where, do) from None


def read_model_header(path: str | Path) -> dict[str, Any]:
    """What a model file says of itself; only the header is read, and nothing is executed.

    Returns:
        format (a number), config, classes, class_ids, resize, threshold, scores, record, and tensors: name to
        "dtype", "shape" and "count".

    Raises:
        DetkitError: No such file, a pickle, cut off, of a newer format, or of another program.
    """
    from safetensors import SafetensorError, safe_open

    where = str(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise DetkitError("there is no such model file", where, _RETRY) from None
    except OSError as error:
        raise DetkitError(f"the model file cannot be read: {error.strerror}", where, _RETRY) from None
    if start[:2] in _PICKLES:
        raise DetkitError("this is a Python pickle, which could run code, so it is not opened", where, _RETRY)
    if start[8:] != b"{":
        raise DetkitError("this is not a model file of detkit", where, _RETRY)
    damaged = DetkitError(f"the model file is cut off or damaged ({Path(path).stat().st_size:,} bytes)", where, _AGAIN)
    try:
        with safe_open(path, "numpy") as opened:
            metadata = opened.metadata() or {}
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            tensors = {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in slices.items()}
    except SafetensorError:
        raise damaged from None
    header = header_in(metadata, "safetensors file", where, _RETRY)
    if any(not isinstance(header.get(key), kind) for key, kind in _HEADER.items()):
        raise damaged
    names, ids = header["classes"], header["class_ids"]
    if not all(isinstance(name, str) for name in names) or not all(isinstance(one, (int, str)) for one in ids):
        raise damaged
    if len(names) != len(ids):
        raise damaged
    for tensor in tensors.values():
        tensor["count"] = math.prod(tensor["shape"])
    return {**header, "tensors": tensors}
