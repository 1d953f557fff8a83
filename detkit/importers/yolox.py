"""YOLOX (Ge et al. 2021, arXiv 2107.08430; github.com/Megvii-BaseDetection/YOLOX, Apache-2.0) as a ``Detector``: from
its weights, by the names of their tensors, or from the published ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkit.data.names import ids_of
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.exporting.engines import damaged, onnx_package, read_onnx
from detkit.importers.darknet import class_names, untrained_detector
from detkit.importers.weights import (
    Folded,
    Tell,
    fill,
    fill_folded,
    read_checkpoint,
    rename_keys,
    restore_norms,
    tell_unused,
)

FAMILY = "YOLOX"
# Of the published models: bottlenecks of the smallest block, channels of the stem, depthwise.
MODELS = {
    "yolox-nano": (1, 16, True),
    "yolox-tiny": (1, 24, False),
    "yolox-s": (1, 32, False),
    "yolox-m": (2, 48, False),
    "yolox-l": (3, 64, False),
    "yolox-x": (4, 80, False),
}
_NMS, _THRESHOLD = 0.65, 0.3
_DO = "give the file of weights as published"
# Convolutions after the coarsest level's class scores, by depthwise: of the box tower, and boxes with objectness.
_AFTER = {False: 3, True: 5}
_BEGINNINGS = {
    "backbone.backbone.stem.conv": "backbone.stages.0",
    **{f"backbone.backbone.dark{i + 1}": f"backbone.stages.{i}" for i in (1, 2, 3, 4)},
    "backbone.lateral_conv0": "neck.lateral.0",
    "backbone.reduce_conv1": "neck.lateral.1",
    "backbone.C3_p4": "neck.down.0",
    "backbone.C3_p3": "neck.down.1",
    "backbone.bu_conv2": "neck.shrink.0",
    "backbone.bu_conv1": "neck.shrink.1",
    "backbone.C3_n3": "neck.up.0",
    "backbone.C3_n4": "neck.up.1",
    "head.stems": "head.stems",
    "head.cls_convs": "head.towers",
    "head.reg_convs": "head.box_towers",
    "head.cls_preds": "head.layers",
    "head.reg_preds": "head.box_layers",
    "head.obj_preds": "head.objectness",  # the rows after those of box_layers
}
_WORDS = {
    **{".dconv.conv.": ".0.", ".dconv.bn.": ".1.", ".pconv.conv.": ".3.", ".pconv.bn.": ".4."},
    **{".conv.": ".0.", ".bn.": ".1."},
}


def yolox_section(repeats: int, base: int, depthwise: bool, size: int) -> dict[str, object]:
    """The config's ``model`` section of a YOLOX.

    Args:
        repeats: Bottlenecks of the smallest block.
        base: Channels of the stem.
        depthwise: Of the 3 x 3 convolutions.
        size: Of the input, in pixels.
    """
    depth = round(repeats / 3, 2)
    head = {"name": "aligned", "width": 4 * base, "stem": 2, "kernel": 3, "separable": depthwise, "norm_eps": 1e-3}
    return {
        "size": size,
        "backbone": {"name": "csp_darknet", "depth": depth, "width": base / 64, "depthwise": depthwise},
        "neck": {"name": "pafpn", "depth": depth, "depthwise": depthwise},
        "head": {**head, "coder": "deltas", "objectness": True, "offset": 0.0, "assign": "soft", "box_gain": 5.0},
    }


def import_yolox(
    path: str | Path,
    names: str | Path | None = None,
    *,
    size: int | None = None,
    images: str | Path | None = None,
    tell: Tell = lambda text: None,
) -> Detector:
    """The detector of official weights (.pth) or of a published .onnx file, ready to predict, save and train on.

    Args:
        path: The file.
        names: A file with a class name on each line; None: COCO's, where there are 80 classes.
        size: Of the input, in pixels; None: 416 for nano and tiny, 640 for the others.
        images: Photos to measure BatchNorm on, which .onnx files have no more; see ``restore_norms``.
        tell: Told what a person should know.

    Raises:
        DetkitError: A file that cannot be read, of another family, cut off or that holds code, names that do not fit,
            or an .onnx file without the package onnx.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        folded = _of_layers(_read_onnx(path), path)
        base, depthwise = len(folded[0].filters), folded[1].filters.shape[1] == 1
        classes = len(folded[-1 - _AFTER[depthwise]].filters)
        made = (_untrained(repeats, base, depthwise, classes, names, size, path) for repeats in (1, 2, 3, 4))
        fitting = (one for one in made if sum(isinstance(m, nn.Conv2d) for m in one.modules()) == len(folded))
        detector = next(fitting, None)
        if detector is None:
            what = f"this is no file of {FAMILY}: none of its depths has {len(folded)} convolutions"
            raise DetkitError(what, str(path), _DO)
        fill_folded(detector, folded, path, FAMILY)
        restore_norms(detector, images, tell)
        return detector.eval()
    state = read_checkpoint(path, "model")
    tell_unused(images, tell)
    found = _names(state)
    stem, last = found.get("backbone.stages.0.0.weight"), found.get("head.layers.0.weight")
    repeats = sum(f"backbone.stages.1.1.m.{i}.conv1.0.weight" in found for i in range(9))
    if stem is None or last is None or not repeats:
        what = f"these are no weights of {FAMILY}: they lack backbone.backbone.stem, .dark2 or head.cls_preds"
        raise DetkitError(what, str(path), _DO)
    depthwise = any(".dconv." in key for key in state)
    detector = _untrained(repeats, len(stem), depthwise, len(last), names, size, path)
    fill(detector, found, path, FAMILY)
    return detector.eval()


def _untrained(
    repeats: int, base: int, depthwise: bool, classes: int, names: str | Path | None, size: int | None, path: Path
) -> Detector:
    size = size or (416 if base < MODELS["yolox-s"][1] else 640)
    labels = class_names(names, classes, str(path))
    section = yolox_section(repeats, base, depthwise, size)
    detector = untrained_detector(section, labels, ids_of(labels), path.name, iou=_NMS)
    detector.threshold = _THRESHOLD
    made_of = repeats, base, depthwise
    name = next((name for name, parts in MODELS.items() if parts == made_of), FAMILY)
    detector.record["imported"] = f"{name}, {path.name}"
    return detector


def _stem(focus: Tensor) -> Tensor:
    """(out, 12, 3, 3) filters of the focus layer, BGR, as (out, 3, 6, 6) of the pixels themselves, RGB.

    The 12 channels are the pixels upper left, lower left, upper right, lower right of each 2 x 2, three colours each.
    """
    outputs = len(focus)
    places = focus.unflatten(1, (2, 2, 3)).flip(3)  # out, column, row, colour, 3, 3
    return places.permute(0, 3, 4, 2, 5, 1).reshape(outputs, 3, 6, 6)


def _names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official file under detkit's names: boxes and objectness become one layer."""
    found = rename_keys(state, _BEGINNINGS, _WORDS)
    first = "backbone.stages.0.0.weight"
    if first in found and found[first].shape[1:] == (12, 3, 3):
        found[first] = _stem(found[first])
    for key in [key for key in found if key.startswith("head.objectness.")]:
        boxes = key.replace("objectness", "box_layers")
        if boxes in found:
            found[boxes] = torch.cat((found[boxes], found.pop(key)))
    return found


def _of_layers(folded: list[Folded], path: Path) -> list[Folded]:
    """The convolutions of a file as detkit's layers: the stem's, and boxes and objectness as one."""
    found: list[Folded] = []
    for one in folded:
        if found and len(one.filters) == 1:
            pairs = zip(found.pop(), one, strict=True)
            one = Folded(*(np.concatenate([part for part in pair if part is not None]) for pair in pairs))
        found.append(one)
    if len(found) < 9 or found[0].filters.shape[1:] != (12, 3, 3):
        what = f"this is no file of {FAMILY}: it does not begin with a focus layer"
        raise DetkitError(what, str(path), _DO)
    return [Folded(_stem(torch.from_numpy(found[0].filters)).numpy(), found[0].bias), *found[1:]]


def _read_onnx(path: Path) -> list[Folded]:
    """The convolutions of an ONNX file, in the order of its graph."""
    if not path.is_file():
        raise DetkitError("there is no such file", str(path), "check the path")
    graph, numpy_helper = read_onnx(path).graph, onnx_package("onnx.numpy_helper")
    try:
        values = {one.name: np.array(numpy_helper.to_array(one), np.float32) for one in graph.initializer}
        tensors = [[values[name] for name in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    except KeyError:
        what = f"this is no file of {FAMILY}: the weights of a convolution are not stored in it"
        raise DetkitError(what, str(path), _DO) from None
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from None
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        raise DetkitError(
            "this ONNX file holds BatchNorms apart from its convolutions", str(path), "give the .pth file"
        )
    return [Folded(each[0], each[1] if len(each) > 1 else None) for each in tensors]
