"""Detectors from the ``model`` section, from a model file, and anchors from data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detkit import registry, zoo
from detkit.backbones.base import at_scales
from detkit.config.experiment import MODEL_KEYS, PARTS, Config, EvaluateOptions, check_model, part_at
from detkit.config.schema import Place, check, keys_of, located
from detkit.config.transfer import start_from
from detkit.config.yaml_file import Section
from detkit.data.resize import Resize
from detkit.detector import Detector, read_weights
from detkit.errors import DetkitError
from detkit.interfaces import Backbone, Head, Neck, ProposalSource

_NOT_A_FILE = (None, "none", "imagenet")  # weights of a backbone


def build_detector(
    config: Config,
    classes: Sequence[str],
    *,
    class_ids: Sequence[int | str] | None = None,
    anchors: Sequence[Sequence[float]] | None = None,
) -> Detector:
    """The detector of ``config.model``, with the weights that it is to start from.

    Args:
        config: Its ``weights: none`` loads and fetches nothing; a backbone's weights may be those in a run folder or
            model file of detkit's too.
        classes: Names by label.
        class_ids: The data's own ids of them.
        anchors: (w, h) pairs in input pixels that take the place of ``anchors: auto``, see
            ``detkit.config.anchors.anchors_for``.

    Returns:
        The detector; its ``record["started"]`` says which weights were taken.

    Raises:
        DetkitError: Parts that do not fit together, anchors still ``auto``, weights that cannot be had.
    """
    model = {**config.model, **{kind: config.model[kind] and dict(config.model[kind]) for kind in PARTS}}
    if model["head"].get("anchors") == "auto":
        if anchors is None:
            what, do = "anchors are auto, so the training data is needed", "give anchors as [[w, h], ...]"
            raise DetkitError(what, config.place.at(("model", "head", "anchors")), do)
        model["head"]["anchors"] = [[float(w), float(h)] for w, h in anchors]
    start = None if model["weights"] == "none" else zoo.model_file(model["weights"])
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
            resize=input_resize(model, parts[1]),
            config={**known, "model": shared},
        )
    detector.protocol, detector.iou = config.evaluate.metric_of(detector.head), config.evaluate.iou
    if file := start or body:
        detector.record["started"] = start_from(detector, file, backbone_only=start is None)
    elif weights not in _NOT_A_FILE:
        detector.record["started"] = f"backbone weights from {Path(weights).name}: all of the published network's"
    return detector


def _model_file(path: Path) -> Path | None:
    """That of a run folder, or of a detkit model; None for tensors in the layout that the backbone was published in."""
    if path.is_dir():
        return zoo.model_file(path)
    if path.suffix == ".safetensors" and path.is_file():
        with suppress(DetkitError):
            zoo.read_model_header(path)
            return path
    return None


def load_detector(path_or_name: str | Path) -> Detector:
    """The detector in a file that ``Detector.save`` wrote, in a run folder (its best), or of a shipped name.

    Raises:
        DetkitError: No such file or name, or a file that is not a detkit model, damaged or too new.
        UntrustedPart: A part of a module that nobody has allowed, see ``detkit.registry``.
    """
    path = zoo.model_file(path_or_name)
    header, weights = zoo.read_model_header(path), read_weights(path)
    place = Place(str(path), trusted=False)
    # The state of the caller's generator stays as it is: the random weights are replaced at once.
    with torch.random.fork_rng(devices=[]):
        model = check_model(header["config"].get("model"), place)
        detector = Detector(
            *_parts(model, len(header["classes"]), place, "none"),
            resize=Resize(**check(header["resize"], keys_of(Resize), place, ("resize",))),
            **{key: header[key] for key in ("config", "classes", "class_ids", "threshold", "scores", "record")},
        )
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DetkitError("the file's weights do not fit its config", str(path), reason) from None
    options = EvaluateOptions(**check(header["config"].get("evaluate"), keys_of(EvaluateOptions), place, ("evaluate",)))
    part_at("metric", options.protocol, place, ("evaluate", "protocol"))
    detector.protocol, detector.iou = options.metric_of(detector.head), options.iou
    return detector.eval()


def _parts(
    model: Section, num_classes: int, place: Place, weights: str | None
) -> tuple[Backbone, Neck, Head, ProposalSource | None]:
    """StagedBackbone, neck, head and proposals, wired: channels and strides travel along the chain."""
    backbone, neck, trunk = build_body(model, place, weights)
    head = _part(model, "head", place, neck.channels, neck.strides, num_classes, *trunk)
    name, takes = model["head"]["name"], head.takes_proposals
    if model["proposals"] is None:
        if takes:
            do = f"choose one of {', '.join(registry.own_parts('proposals'))}"
            raise DetkitError(f"the head {name} needs proposals", place.at(("model", "proposals")), do)
        return backbone, neck, head, None
    if not takes:
        what = f"the head {name} looks at every cell and takes no proposals"
        raise DetkitError(what, place.at(("model", "proposals")), "leave model.proposals out, or take another head")
    return backbone, neck, head, _part(model, "proposals", place, neck.channels, neck.strides)


def build_body(model: Section, place: Place, weights: str | None) -> tuple[Backbone, Neck, tuple[object, ...]]:
    """Builds the part of a detector that makes feature maps.

    Args:
        model: The checked ``model`` section.
        place: Where it came from.
        weights: Of the backbone; "none" fetches nothing.

    Returns:
        Backbone, neck, and what the head is given besides: the rest of the backbone's classifier where the head asks
        for it (``layers: backbone``), then its side branches where it has any.
    """
    arguments = {**model["backbone"], **({"weights": weights} if "weights" in model["backbone"] else {})}
    trunk: list[object] = []
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


def _check_sides(model: Section, place: Place) -> None:
    """Side branches help a classifier to learn, and read the backbone's own maps of the image at its own scale."""
    path = ("model", "backbone", "side_branches")
    for part, key, only in (("head", "name", "classify"), ("neck", "name", "identity"), ("backbone", "scales", (1.0,))):
        if model[part][key] != only:
            what = f"side_branches go with {part}.{key} {only} alone, not with {model[part][key]}"
            raise DetkitError(what, place.at(path), "leave side_branches out")


def _part(model: Section, kind: str, place: Place, *wired: Any) -> Any:
    arguments = dict(model[kind])
    constructor = part_at(kind, arguments.pop("name"), place, ("model", kind, "name"))
    with located(place, ("model", kind), arguments):
        return registry.make(constructor, place.at(("model", kind, "name")), *wired, **arguments)


def input_resize(model: Section, neck: Neck) -> Resize:
    """How the ``model`` section wants images to become inputs, in whole strides of the neck's coarsest map."""
    size = model["size"]
    stride = math.ceil(neck.divisor or max(neck.strides))  # a pyramid's strides may be fractions
    return Resize(size if isinstance(size, int) else tuple(size), mode=model["resize"], stride=stride)
