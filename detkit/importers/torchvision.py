"""torchvision's Faster R-CNN with ResNet-50 and a feature pyramid: its state dict becomes a ``Detector``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

from detkit.backbones.pretrained import read_state, torchvision_file
from detkit.data.names import COCO_IDS
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.importers.darknet import class_names, untrained_detector

NAME = "fasterrcnn_resnet50_fpn"
_WEIGHTS = FasterRCNN_ResNet50_FPN_Weights.DEFAULT
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
    classes = class_names(names, outputs - 1, str(path), coco=90)
    ids = tuple(COCO_IDS.values()) if names is None else tuple(range(1, outputs))
    detector = untrained_detector({"size": list(size), **_MODEL}, classes, ids, path.name)
    detector.threshold = 0.5
    detector.record = {"imported": f"torchvision {NAME}, {path.name}"}
    # The published weights are meant for an eps of 0.
    shift = _EPS if path.name == _WEIGHTS.url.rsplit("/", 1)[1] else 0.0
    found = _renamed(net, shift) | _proposals(net) | _head(net, ids)
    detector.load_state_dict(detector.state_dict() | found)
    return detector.eval()


def _file(source: str) -> Path:
    if Path(source).is_file():
        return Path(source)
    if source.removeprefix("torchvision/") == NAME:
        return torchvision_file(_WEIGHTS.url, f"the weights of {NAME}", "or give a file")
    raise DetkitError("there is no such file", source, f"give a file of weights, or {NAME}")


def _tensors(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict by the names of today's torchvision, which knows its older ones; nothing is computed."""
    try:
        with torch.device("meta"):
            net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(state[_OUTPUTS]))
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
        sides = scale * torch.tensor([[ratio**-0.5, ratio**0.5] for ratio in _RATIOS])
        factors = 2 * (sides / 2).round() / sides
        for kind in ("weight", "bias"):
            boxes, scores = (net[f"rpn.head.{name}.{kind}"] for name in ("bbox_pred", "cls_logits"))
            rows = torch.cat((boxes.unflatten(0, (-1, 4)), scores.unsqueeze(1)), dim=1)
            rows[:, :2] *= factors.view(-1, 2, *[1] * (rows.ndim - 2))
            if kind == "bias":
                rows[:, :2] -= stride / 2 / sides
                rows[:, 2:4] += factors.log()
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
