"""torchvision's Faster R-CNN with ResNet-50 and a feature pyramid: its state dict becomes a ``Detector``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detkit.backbones.pretrained import read_state, torchvision_file
from detkit.data.names import COCO_CLASSES, COCO_IDS
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.importers.shared import class_names, untrained_detector

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

NAME = "fasterrcnn_resnet50_fpn"
_OUTPUTS = "roi_heads.box_predictor.cls_score.weight"
_SCALES, _RATIOS, _STRIDES = [32, 64, 128, 256, 512], [0.5, 1.0, 2.0], [4, 8, 16, 32, 64]
_MODEL = {
    "resize": "letterbox",
    "backbone": {"name": "resnet50", "taps": [1, 2, 3, 4], "frozen": 2},
    "neck": {"name": "fpn", "out": 256, "kernel": 3, "depthwise": False, "plain": True, "extra": True},
    "proposals": {"name": "rpn", "scales": _SCALES, "ratios": _RATIOS, "after": [2000, 1000], "plain": True},
    "head": {"name": "roi", "levels": 4, "aligned": False, "layers": "mlp", "chunk": 1000, "rois": 512, "beta": 1 / 9},
}
_EPS = 1e-5  # of BatchNorm's variance


def import_torchvision(
    source: str | Path, names: str | Path | None = None, size: tuple[int, int] = (800, 1333)
) -> Detector:
    """The detector of a file that holds ``fasterrcnn_resnet50_fpn(...).state_dict()``, or of that name: torchvision's
    own COCO weights. Ready to predict, save and train on.

    Inputs are padded with grey to multiples of 64, torchvision's with the mean colour to 32; an image that needs
    neither padding nor resizing gets the same answer.

    Args:
        source: The file, or the name.
        names: A file with a class name on each line, without the background; None: COCO's 80, where there are 91
            outputs (those of no class are left out, which no score notices).
        size: Height and width that images are fitted into, torchvision's for landscape; it would give upright ones more
            pixels.

    Raises:
        DetkitError: No such file or name, another network's file, or names that do not fit.
    """
    path = _file(str(source))
    state = read_state(path)
    net = _tensors(state, path)
    outputs = len(net[_OUTPUTS])
    if names is not None:
        classes, ids = class_names(names, outputs - 1, path.name), tuple(range(1, outputs))
    elif outputs == 91:
        classes, ids = COCO_CLASSES, tuple(COCO_IDS.values())
    else:
        raise DetkitError(f"the {outputs - 1} classes need names", str(path), "give --names FILE, one name per line")
    detector = untrained_detector({"size": list(size), **_MODEL}, classes, ids, path.name)
    detector.threshold = 0.5
    detector.record = {"imported": f"torchvision {NAME}, {path.name}"}
    # The published weights are meant for an eps of 0.
    shift = _EPS if path.name == _weights().url.rsplit("/", 1)[1] else 0.0
    found = _renamed(net, shift) | _proposals(net) | _head(net, ids)
    detector.load_state_dict(detector.state_dict() | found)
    return detector.eval()


def _weights() -> WeightsEnum:
    from torchvision.models import get_model_weights

    return get_model_weights(NAME).DEFAULT  # type: ignore[attr-defined]


def _file(source: str) -> Path:
    if Path(source).is_file():
        return Path(source)
    if source.removeprefix("torchvision/") == NAME:
        return torchvision_file(_weights().url, f"the weights of {NAME}", "or give a file")
    raise DetkitError("there is no such file", source, f"give a file of weights, or {NAME}")


def _tensors(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict by the names of today's torchvision, which knows its older ones; nothing is computed."""
    from torchvision.models import get_model_builder

    try:
        with torch.device("meta"):
            net = get_model_builder(NAME)(weights=None, weights_backbone=None, num_classes=len(state[_OUTPUTS]))
        net.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError, TypeError) as error:
        reason = f"it has no {_OUTPUTS}" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise DetkitError(f"the file is not that of {NAME}: {reason}", str(path), "save model.state_dict()") from None
    return {key: value.detach().float() for key, value in net.state_dict().items()}


# The beginnings of names, theirs and ours, of tensors that stay as they are.
_RENAMED = {
    "backbone.body.conv1.": "backbone.stages.0.0.",
    "backbone.body.bn1.": "backbone.stages.0.1.",
    "backbone.body.layer1.": "backbone.stages.1.1.",
    **{f"backbone.body.layer{i}.": f"backbone.stages.{i}." for i in (2, 3, 4)},
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.lateral.{i}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.smooth.{i}." for i in range(4)},
    "rpn.head.conv.": "proposals.stems.",
    "roi_heads.box_head.fc7.": "head.trunk.3.",
}


def _renamed(net: dict[str, Tensor], shift: float) -> dict[str, Tensor]:
    """The tensors that only change their names; ``shift`` is taken from variances."""
    found = {}
    for theirs, ours in _RENAMED.items():
        for key in [key for key in net if key.startswith(theirs) and not key.endswith("num_batches_tracked")]:
            found[ours + key.removeprefix(theirs)] = net[key] - shift if key.endswith("running_var") else net[key]
    return found


def _proposals(net: dict[str, Tensor]) -> dict[str, Tensor]:
    """One predicting layer for all maps becomes one for each. Its anchors had whole numbers of pixels and began at the
    cells' corners; weights and biases make up for both."""
    found = {}
    for level, (scale, stride) in enumerate(zip(_SCALES, _STRIDES, strict=True)):
        for kind in ("weight", "bias"):
            boxes, scores = (net[f"rpn.head.{name}.{kind}"] for name in ("bbox_pred", "cls_logits"))
            rows = torch.cat((boxes.unflatten(0, (-1, 4)), scores.unsqueeze(1)), dim=1)
            for anchor, ratio in enumerate(_RATIOS):
                for axis, side in enumerate((scale / math.sqrt(ratio), scale * math.sqrt(ratio))):
                    factor = 2 * round(side / 2) / side
                    rows[anchor, axis] *= factor
                    if kind == "bias":
                        rows[anchor, axis] -= stride / 2 / side
                        rows[anchor, axis + 2] += math.log(factor)
            found[f"proposals.layers.{level}.{kind}"] = rows.flatten(0, 1)
    return found


def _head(net: dict[str, Tensor], ids: tuple[int, ...]) -> dict[str, Tensor]:
    """The background goes last and has no boxes; fc6 reads a region cell by cell, not channel by channel."""
    found = {}
    for kind in ("weight", "bias"):
        fc6 = net[f"roi_heads.box_head.fc6.{kind}"]
        if kind == "weight":
            fc6 = fc6.unflatten(1, (-1, 7, 7)).permute(0, 2, 3, 1).flatten(1)
        found[f"head.trunk.1.{kind}"] = fc6
        scores, boxes = (net[f"roi_heads.box_predictor.{name}.{kind}"] for name in ("cls_score", "bbox_pred"))
        found[f"head.classes.{kind}"] = scores[[*ids, 0]]
        found[f"head.boxes.{kind}"] = boxes.unflatten(0, (-1, 4))[list(ids)].flatten(0, 1)
    return found
