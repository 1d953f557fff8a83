"""Detectors from the ``model`` section, from a model file, and anchors from data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit import registry, zoo
from detkit.backbones.base import at_scales
from detkit.config.experiment import MODEL_KEYS, PARTS, Config, check_model, find_part
from detkit.config.schema import Place, located
from detkit.config.transfer import start_from
from detkit.data.dataset import Dataset
from detkit.data.resize import Resize
from detkit.detector import Detector, read_weights
from detkit.errors import DetkitError
from detkit.heads.yolo import split_anchors
from detkit.interfaces import Backbone, Head, Neck, ProposalSource
from detkit.ops.anchors import average_iou, kmeans_anchors

_NEARLY = 0.95  # of the best anchors' IoU
_NOT_A_FILE = (None, "none", "imagenet")  # weights of a backbone


def build_detector(
    config: Config,
    classes: Sequence[str],
    *,
    class_ids: Sequence[int | str] | None = None,
    anchors: Sequence[Sequence[float]] | None = None,
) -> Detector:
    """The detector of ``config.model`` for ``classes`` (names by label; class_ids: the data's own ids).

    anchors: (w, h) pairs in input pixels that take the place of ``anchors: auto``, see ``anchors_for``. Weights of the
    backbone and of a detector to start from are loaded as the config says; "none" loads and fetches nothing. The
    backbone's may be those in a run folder or model file of detkit's too. ``record["started"]`` says what was taken.

    Raises:
        DetkitError: parts that do not fit together, anchors still ``auto``, weights that cannot be had.
    """
    model = {**config.model, **{kind: config.model[kind] and dict(config.model[kind]) for kind in PARTS}}
    if model["head"].get("anchors") == "auto":
        if anchors is None:
            where = config.place.at(("model", "head", "anchors"))
            raise DetkitError(
                "anchors are auto, so the training data is needed", where, "give anchors as [[w, h], ...]"
            )
        model["head"]["anchors"] = [[float(w), float(h)] for w, h in anchors]
    start = None if model["weights"] == "none" else zoo.resolve(model["weights"])
    # The weights of a detector to start from hold the backbone's, so those need not be fetched.
    weights, key = model["backbone"].get("weights"), ("model", "backbone", "weights")
    if start and weights not in _NOT_A_FILE and key in config.place.overrides:
        what = "model.weights brings a backbone's weights too, so these would not be used"
        raise DetkitError(what, config.place.at(key), "add model.weights=none")
    body = None if start or weights in _NOT_A_FILE else _model_file(Path(weights))
    parts = _parts(model, len(classes), config.place, "none" if start or body else weights)
    # Everything goes into the model's file but the data and the folders of weights: those are nobody else's business.
    known = {name: section for name, section in config.to_dict().items() if name != "data"}
    shared = {**model, "weights": Path(model["weights"]).name}
    if isinstance(weights, str):
        shared["backbone"] = {**model["backbone"], "weights": Path(weights).name}
    with located(config.place, ("model",), MODEL_KEYS):
        detector = Detector(
            *parts,
            classes=classes,
            class_ids=class_ids,
            resize=_resize(model, parts[1]),
            config={**known, "model": shared},
        )
    if file := start or body:
        detector.record["started"] = start_from(detector, file, backbone_only=start is None)
    elif weights not in _NOT_A_FILE:
        detector.record["started"] = f"backbone weights from {Path(weights).name}: all of the published network's"
    return detector


def _model_file(path: Path) -> Path | None:
    """That of a run folder, or of a detkit model; None for tensors in the layout that the backbone was published in."""
    if path.is_dir():
        return zoo.resolve(path)
    if path.suffix == ".safetensors" and path.is_file():
        with suppress(DetkitError):
            zoo.read_header(path)
            return path
    return None


def anchors_for(
    config: Config, dataset: Dataset, tell: Callable[[str], None] = lambda text: None
) -> list[list[float]] | None:
    """Anchors (w, h) for ``build_detector``; None where the config does not ask for any.

    By k-means with 1 - IoU on the training set's boxes, but crowds. Where ``model.weights`` has as many on each level,
    and the boxes' mean best IoU with them is within 5 % of that, or there are too few boxes to compute any, those are
    kept: its head has learned to answer from them. tell: gets a sentence on which of the two it is.

    Raises:
        DetkitError: too few boxes and nothing to keep, or ``model.weights`` cannot be had.
    """
    model = config.model
    if model["head"].get("anchors") != "auto":
        return None
    with torch.device("meta"):
        _, neck, _ = _body(model, config.place, "none")
    wh, each = _input_sizes(dataset, _resize(model, neck)), model["head"]["anchors_per_level"]
    file = None if model["weights"] == "none" else zoo.resolve(model["weights"])
    kept = None if file is None else _anchors_of(file, model["head"]["name"], neck.strides, each)
    if file is None or kept is None:
        return _best_anchors(wh, each * len(neck.strides))
    try:
        new = _best_anchors(wh, each * len(neck.strides))
    except DetkitError:
        tell(f"anchors: those of {file.name} are kept, since there are too few boxes to compute others")
        return kept
    old_iou, new_iou = (average_iou(wh, np.asarray(anchors)) for anchors in (kept, new))
    if old_iou >= _NEARLY * new_iou:
        tell(f"anchors: those of {file.name} are kept, mean best IoU {old_iou:.3f} (computed anew: {new_iou:.3f})")
        return kept
    tell(f"anchors: computed anew, mean best IoU {new_iou:.3f} (those of {file.name}: {old_iou:.3f})")
    return new


def _best_anchors(wh: np.ndarray, k: int) -> list[list[float]]:
    """k anchors for sizes (N, 2), sorted by area, rounded. Raises DetkitError for fewer than k different sizes."""
    try:
        anchors = kmeans_anchors(wh, k)
    except ValueError:
        different = len(np.unique(wh, axis=0))
        what = f"{k} anchors cannot be found from {len(wh)} boxes of {different} different sizes"
        do = "label more objects, or give model.head.anchors as [[w, h], ...]"
        raise DetkitError(what, "model.head.anchors: auto", do) from None
    return [[round(float(w), 2), round(float(h), 2)] for w, h in anchors]


def _input_sizes(dataset: Dataset, resize: Resize) -> np.ndarray:
    """(N, 2) width and height in input pixels of the boxes that are neither crowds nor empty."""
    annotations = dataset.annotations
    keep = ~annotations.crowd
    image = annotations.image_index[keep]
    scales = np.ones((len(annotations), 2))
    for i in np.unique(image):
        height, width = (int(side) for side in annotations.sizes[i])
        if not height or not width:
            from detkit.io.images import image_size

            width, height = image_size(annotations.files[i])
        geometry = resize.geometry(height, width)
        scales[i] = geometry.scale_x, geometry.scale_y
    wh = annotations.xywh[keep, 2:] * scales[image]
    return wh[(wh > 0).all(axis=1)]


def _anchors_of(file: Path, head: str, strides: Sequence[int], each: int) -> list[list[float]] | None:
    """Those of a model file, all levels' together; None if its head is none called ``head`` with ``each`` a level."""
    header = zoo.read_header(file)
    other = header["config"].get("model", {}).get("head", {})
    layers = sum(re.fullmatch(r"head\.layers\.\d+\.weight", key) is not None for key in header["tensors"])
    if other.get("name") != head or layers != len(strides):
        return None
    try:
        levels = split_anchors(other["anchors"], strides)
    except (DetkitError, KeyError):
        return None
    pairs = [[w, h] for level in levels for w, h in level]
    # Those that a file deals to the levels itself may lie otherwise than by area.
    fits = all(len(level) == each for level in levels) and split_anchors(pairs, strides) == levels
    return pairs if fits else None


def load(path_or_name: str | Path) -> Detector:
    """The detector in a file that ``Detector.save`` wrote, in a run folder (its best), or of a shipped name.

    Raises:
        DetkitError: no such file or name, or a file that is not a detkit model, damaged or too new.
    """
    path = zoo.resolve(path_or_name)
    header, weights = zoo.read_header(path), read_weights(path)
    place = Place(str(path), trusted=False)
    # The state of the caller's generator stays as it is: the random weights are replaced at once.
    with torch.random.fork_rng(devices=[]):
        model = check_model(header["config"].get("model"), place)
        detector = Detector(
            *_parts(model, len(header["classes"]), place, "none"),
            resize=Resize.from_dict(header["resize"]),
            **{key: header[key] for key in ("config", "classes", "class_ids", "threshold", "scores", "record")},
        )
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DetkitError("the file's weights do not fit its config", str(path), reason) from None
    return detector.eval()


def _parts(
    model: dict[str, Any], num_classes: int, place: Place, weights: str | None
) -> tuple[Backbone, Neck, Head, ProposalSource | None]:
    """StagedBackbone, neck, head and proposals, wired: channels and strides travel along the chain."""
    backbone, neck, trunk = _body(model, place, weights)
    head = _part(model, "head", place, neck.channels, neck.strides, num_classes, *trunk)
    name, takes = model["head"]["name"], head.takes_proposals
    if model["proposals"] is None:
        if takes:
            do = f"choose one of {', '.join(registry.own('proposals'))}"
            raise DetkitError(f"the head {name} needs proposals", place.at(("model", "proposals")), do)
        return backbone, neck, head, None
    if not takes:
        what = f"the head {name} looks at every cell and takes no proposals"
        raise DetkitError(what, place.at(("model", "proposals")), "leave model.proposals out, or take another head")
    return backbone, neck, head, _part(model, "proposals", place, neck.channels, neck.strides)


def _body(model: dict[str, Any], place: Place, weights: str | None) -> tuple[Any, Any, tuple[Any, ...]]:
    """Backbone and neck, and the trunk of the backbone's family for a head that asks for it (``layers: backbone``).

    Where there are side branches, these come after the trunk.
    """
    arguments = {**model["backbone"], **({"weights": weights} if "weights" in model["backbone"] else {})}
    trunk: list[Any] = []
    sides = arguments.get("side_branches", False)
    if sides:
        _check_sides(model, place)
    if sides or model["head"].get("layers") == "backbone":
        ends = {key: arguments.pop(key) for key in ("taps", "frozen")}
        scales = arguments.pop("scales", (1.0,))
        classifier = _part({"backbone": arguments}, "backbone", place, 1)
        with located(place, ("model", "backbone"), [*ends, "scales"]):
            backbone, *trunk = classifier.split(**ends)
            backbone = at_scales(backbone, scales)
        trunk += [classifier.branches(backbone)] if sides else []
    else:
        backbone = _part({"backbone": arguments}, "backbone", place)
    return backbone, _part(model, "neck", place, backbone.channels, backbone.strides), tuple(trunk)


def _check_sides(model: dict[str, Any], place: Place) -> None:
    """Side branches help a classifier to learn, and read the backbone's own maps of the image at its own scale."""
    path = ("model", "backbone", "side_branches")
    for part, key, only in (("head", "name", "classify"), ("neck", "name", "identity"), ("backbone", "scales", (1.0,))):
        if model[part][key] != only:
            what = f"side_branches go with {part}.{key} {only} alone, not with {model[part][key]}"
            raise DetkitError(what, place.at(path), "leave side_branches out")


def _part(model: dict[str, Any], kind: str, place: Place, *wired: Any) -> Any:
    arguments = dict(model[kind])
    name = arguments.pop("name")
    constructor = find_part(kind, name, place, ("model", kind, "name"))
    with located(place, ("model", kind), arguments):
        return constructor(*wired, **arguments)


def _resize(model: dict[str, Any], neck: Any) -> Resize:
    size = model["size"]
    stride = math.ceil(max(neck.strides))  # a pyramid's strides may be fractions
    return Resize(size if isinstance(size, int) else tuple(size), mode=model["resize"], stride=stride)
