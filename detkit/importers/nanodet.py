"""NanoDet-Plus (RangiLyu 2021, github.com/RangiLyu/nanodet, Apache-2.0) as a ``Detector``: from its checkpoints, by the
names of their tensors, or from ncnn's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detkit.data.names import ids_of
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.importers.darknet import class_names, untrained_detector
from detkit.importers.ncnn import read_ncnn
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

FAMILY = "NanoDet-Plus"
# Of the published models: the ShuffleNetV2's name, and the channels of neck and head.
MODELS = {"nanodet-plus-m": ("shufflenet_v2_x1_0", 96), "nanodet-plus-m-1.5x": ("shufflenet_v2_x1_5", 128)}
# By channels of the first tap.
_TRUNKS = {48: "shufflenet_v2_x0_5", 116: "shufflenet_v2_x1_0", 176: "shufflenet_v2_x1_5", 244: "shufflenet_v2_x2_0"}
_BINS = 8  # of the distribution of each of a box's four sides
_NMS, _THRESHOLD = 0.6, 0.35
_BEGINNINGS = {
    "backbone.conv1": "backbone.stages.0",
    **{f"backbone.stage{i}": f"backbone.stages.{i}" for i in (2, 3, 4)},
    "fpn.reduce_layers": "neck.lateral",
    **{f"fpn.top_down_blocks.{i}.blocks.0": f"neck.down.{i}" for i in (0, 1)},
    **{f"fpn.bottom_up_blocks.{i}.blocks.0": f"neck.up.{i}" for i in (0, 1)},
    "fpn.downsamples": "neck.shrink",
    "fpn.extra_lvl_in_conv.0": "neck.extra_in",
    "fpn.extra_lvl_out_conv.0": "neck.extra_out",
    "head.cls_convs": "head.towers",
    "head.gfl_cls": "head.layers",
}
_WORDS = {
    **{".conv.": ".0.", ".bn.": ".1."},
    **{".depthwise.": ".0.", ".dwnorm.": ".1.", ".pointwise.": ".3.", ".pwnorm.": ".4."},
    **{
        ".ghost1.": ".ghosts.0.",
        ".ghost2.": ".ghosts.1.",
        ".primary_conv.": ".primary.",
        ".cheap_operation.": ".cheap.",
    },
}
_UNUSED = ("aux_", "head.distribution_project.")  # what only training needs, and a constant


def nanodet_section(trunk: str, channels: int, size: int = 416) -> dict[str, object]:
    """The config's ``model`` section of a NanoDet-Plus.

    Args:
        trunk: The backbone's name.
        channels: Of neck and head.
        size: Of the input, in pixels.
    """
    head = {"name": "aligned", "decoupled": False, "stem": 2, "act": "leaky", "reg_max": _BINS - 1, "offset": 0.0}
    return {
        "size": size,
        "resize": "stretch",
        "backbone": {"name": trunk, "act": "leaky"},
        "neck": {"name": "ghost_pan", "out": channels},
        "head": head,
    }


def import_nanodet(
    path: str | Path,
    names: str | Path | None = None,
    *,
    size: int = 416,
    images: str | Path | None = None,
    tell: Tell = lambda text: None,
) -> Detector:
    """The detector of a checkpoint (.ckpt, .pth) or of ncnn's files, ready to predict, save and train on.

    Args:
        path: The checkpoint, of which averaged weights are taken where it has them; or the .param or .bin file, the
            other of which lies beside it.
        names: A file with a class name on each line; None: COCO's, where there are 80 classes.
        size: Of the input, in pixels: 416 or 320 for the published models.
        images: Photos to measure BatchNorm on, which ncnn's files have no more; see ``restore_norms``.
        tell: Told what a person should know.

    Raises:
        DetkitError: Files that cannot be read, of another family, cut off or that hold code; names that do not fit.
    """
    path = Path(path)
    if path.suffix in (".param", ".bin"):
        folded = read_ncnn(path.with_suffix(".param"), path.with_suffix(".bin"))
        if len(folded) < 3:
            raise DetkitError(f"this is no file of {FAMILY}: {len(folded)} convolutions", str(path), "give another")
        # The third convolution makes half of the first tap's channels, the one before the last the head's.
        detector = _untrained(
            2 * len(folded[2].filters), len(folded[-2].filters), len(folded[-1].filters), names, size, path
        )
        bgr, *others = folded
        fill_folded(detector, [Folded(bgr.filters[:, ::-1], bgr.bias), *others], path, FAMILY)
        restore_norms(detector, images, tell)
    else:
        found = _names(read_checkpoint(path, "state_dict"))
        tell_unused(images, tell)
        lateral, last = found.get("neck.lateral.0.0.weight"), found.get("head.layers.0.weight")
        if lateral is None or last is None or lateral.ndim != 4 or last.ndim != 4:
            what = f"this is no checkpoint of {FAMILY}: no fpn.reduce_layers or head.gfl_cls is in it"
            raise DetkitError(what, str(path), "older NanoDets cannot be imported")
        detector = _untrained(lateral.shape[1], lateral.shape[0], last.shape[0], names, size, path)
        fill(detector, found, path, FAMILY)
    detector.record["imported"] = f"{_name(detector)}, {path.name}"
    return detector.eval()


def _untrained(tapped: int, channels: int, outputs: int, names: str | Path | None, size: int, path: Path) -> Detector:
    if tapped not in _TRUNKS or outputs <= 4 * _BINS:
        what = f"this is no file of {FAMILY}: {tapped} channels of the first map, {outputs} outputs of a cell"
        raise DetkitError(what, str(path), f"the models are {', '.join(MODELS)}")
    classes = class_names(names, outputs - 4 * _BINS, str(path))
    section = nanodet_section(_TRUNKS[tapped], channels, size)
    detector = untrained_detector(section, classes, ids_of(classes), path.name, iou=_NMS)
    detector.threshold = _THRESHOLD
    return detector


def _name(detector: Detector) -> str:
    model = detector.config["model"]
    parts = model["backbone"]["name"], model["neck"]["out"]
    return next((name for name, made_of in MODELS.items() if made_of == parts), FAMILY)


def _names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official checkpoint under detkit's names; the first convolution for RGB.

    A checkpoint holds ``model.*`` and, trained with averaging, ``avg_model.*``, which is better.
    """
    for prefix in ("avg_model.", "model.", "module.", ""):
        if any(key.startswith(f"{prefix}backbone.") for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            break
    found = rename_keys(state, _BEGINNINGS, _WORDS, _UNUSED)
    first = "backbone.stages.0.0.weight"
    if first in found:
        found[first] = found[first].flip(1)
    return found
