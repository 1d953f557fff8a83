"""Model files: the table of those that can be used by name, and the header of any. No torch is needed here.

A model file is safetensors whose metadata holds ``format`` ("detkit"), ``version`` and, as one JSON text, ``detkit``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detkit.errors import DetkitError

FORMAT_VERSION = 1
DEFAULT = "voc-lite0"  # the name that "default" stands for


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file: its name; file, in the weights folder, or url; sha256 (hexadecimal) and bytes of the file; licence;
    classes; score: what it reaches and on what, as shown in ``detkit models``."""

    name: str
    sha256: str
    bytes: int
    licence: str
    classes: tuple[str, ...]
    score: str
    file: str = ""
    url: str = ""


_VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
WEIGHTS: dict[str, Weights] = {
    "voc-lite0": Weights(
        name="voc-lite0",
        file="voc-lite0.safetensors",
        sha256="94a68a77af321388c31fe2e46666f393986509728bf67ecbdef7ecd782959a4b",
        bytes=6519026,
        licence="MIT (see weights/README.md for the data's terms)",
        classes=tuple(_VOC.split()),
        score="AP50 0.73 on nine common classes, 0.52 on all of VOC val",
    ),
}

# torchvision's own COCO detectors, whose files torchvision's server has; named here so that listing them is quick.
TORCHVISION = tuple(
    f"torchvision/{name}"
    for name in (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    )
)

_HEADER = ("config", "classes", "class_ids", "resize", "threshold", "scores", "record")
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_REINSTALL = "install detkit again"
_RETRY = "give a .safetensors file that detkit wrote, such as best.safetensors of a run"


def find(name: str) -> Weights:
    """The entry called ``name``; "default" stands for the shipped default.

    Raises:
        DetkitError: no such entry, with the nearest name.
    """
    if name == "default":
        name = DEFAULT
    if name not in WEIGHTS:
        near = get_close_matches(name, [*WEIGHTS, *TORCHVISION], n=1)
        known = f"give a run folder, a model file or one of {', '.join(WEIGHTS)}"
        raise DetkitError(f"there is no model {name!r}", name, f"did you mean {near[0]}?" if near else known)
    return WEIGHTS[name]


def fetch(name: str) -> Path:
    """The local file of ``name``: from the wheel's weights folder, the checkout's, the cache, or else its url.

    Raises:
        DetkitError: no such name, the file is missing or not the one that was shipped, or the download failed.
    """
    weights = find(name)
    from detkit.io.download import fetch as download
    from detkit.io.download import sha256_of

    package = Path(__file__).resolve().parent
    for folder in (package / "weights", package.parent / "weights"):
        file = folder / weights.file
        if weights.file and file.is_file():
            if sha256_of(file) != weights.sha256:
                raise DetkitError("the shipped model file has changed (its SHA-256 differs)", str(file), _REINSTALL)
            return file
    if not weights.url:
        raise DetkitError(f"the file of {name} is not installed", weights.file, _REINSTALL)
    from platformdirs import user_cache_dir

    return download(weights.url, weights.sha256, Path(user_cache_dir("detkit")) / weights.url.rsplit("/", 1)[1])


def resolve(path_or_name: str | Path) -> Path:
    """The model file that a path, a run folder (its best) or a shipped name means.

    Raises:
        DetkitError: nothing of that name, with the nearest.
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
        raise DetkitError("there is no such model file", name, _RETRY)
    return fetch(name)


def header_metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """The safetensors metadata of a model file with this header (JSON values)."""
    return {"format": "detkit", "version": str(FORMAT_VERSION), "detkit": json.dumps(header, allow_nan=False)}


def read_header(path: str | Path) -> dict[str, Any]:
    """What a model file says of itself: format (a number), config, classes, class_ids, resize, threshold, scores,
    record, and tensors: {name: {"dtype", "shape", "count"}}. Only the header is read, and nothing is executed.

    Raises:
        DetkitError: no such file, a pickle, cut off, of a newer format, or of another program.
    """
    where = str(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            size = file.seek(0, 2)
            file.seek(8)
            text = file.read(min(length, size))
    except FileNotFoundError:
        raise DetkitError("there is no such model file", where, _RETRY) from None
    except OSError as error:
        raise DetkitError(f"the model file cannot be read: {error.strerror}", where, _RETRY) from None
    if start[:2] in _PICKLES:
        raise DetkitError("this is a Python pickle, which could run code, so it is not opened", where, _RETRY)
    if start[8:] != b"{":
        raise DetkitError("this is not a model file of detkit", where, _RETRY)
    cut = DetkitError(f"the model file is cut off or damaged ({size:,} bytes)", where, "copy or download it again")
    if length > size - 8:
        raise cut
    try:
        tensors = json.loads(text)
        metadata = tensors.pop("__metadata__", {})
    except (ValueError, AttributeError):
        raise cut from None
    if metadata.get("format") != "detkit" or not str(metadata.get("version")).isdecimal():
        raise DetkitError("this safetensors file was not written by detkit", where, _RETRY)
    version = int(metadata["version"])
    if version > FORMAT_VERSION:
        what = f"the model file has format {version}, this detkit reads up to {FORMAT_VERSION}"
        raise DetkitError(what, where, "pip install --upgrade detkit")
    try:
        header = {"format": version, **json.loads(metadata["detkit"])}
        end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
        shapes = {
            name: {"dtype": t["dtype"], "shape": t["shape"], "count": math.prod(t["shape"])}
            for name, t in tensors.items()
        }
    except (ValueError, KeyError, TypeError):
        raise cut from None
    if size != 8 + length + end or any(key not in header for key in _HEADER):
        raise cut
    return {**header, "tensors": shapes}
