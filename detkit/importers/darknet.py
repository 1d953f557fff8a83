"""Detectors of Darknet: a cfg and its weights become a ``Detector`` whose head is detkit's own ``YOLO``.

YOLOv2, v3, v4, their tiny versions and kin. The convolution before each ``yolo`` or ``region`` layer becomes the head's
predicting layer of that level; all other layers are the backbone, with Darknet's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.names import COCO_CLASSES, ids_of
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.heads.yolo import YOLO
from detkit.importers.darknet_backbone import Darknet
from detkit.importers.darknet_files import Convolution, Section, load_darknet_weights, read_cfg, read_text, to_lines
from detkit.importers.darknet_graph import plan


def import_darknet(cfg: str | Path, weights: str | Path, names: str | Path | None = None) -> Detector:
    """The detector of a Darknet cfg and its weights file, ready to predict, save and train on.

    Images are stretched to the cfg's width and height, as Darknet does (letter_box=1: fitted, which Darknet centres and
    detkit does not).

    Args:
        cfg: The net's file.
        weights: Its weights.
        names: A file with a class name on each line; None: COCO's, where there are 80 classes.

    Raises:
        DetkitError: A cfg with something unknown (with line and layer), weights of another size, names that do not fit.
    """
    detector, convolutions = untrained(cfg, names)
    seen = load_darknet_weights(convolutions, Path(weights))
    detector.record = {"imported": f"Darknet {Path(cfg).name}, {Path(weights).name}", "images_seen": seen}
    return detector.eval()


def untrained(cfg: str | Path, names: str | Path | None = None) -> tuple[Detector, dict[int, Convolution]]:
    """The detector of a cfg with random weights, and all of its convolutions by layer number.

    Args:
        cfg: As of ``import_darknet``.
        names: The same.
    """
    net, *layers = read_cfg(read_text(cfg), str(cfg))
    model, outputs = _model(net, layers)
    classes = class_names(names, outputs[0].whole("classes", 20), outputs[0].place("classes"))
    detector = untrained_detector(model, classes, ids_of(classes), str(cfg))
    backbone, head = cast(Darknet, detector.backbone), cast(YOLO, detector.head)
    own = {one.number - 1: (layer, None) for one, layer in zip(outputs, head.layers, strict=True)}
    return detector, {**backbone.convolutions(), **cast(dict[int, Convolution], own)}


def _model(net: Section, layers: list[Section]) -> tuple[dict[str, object], list[Section]]:
    """The ``model`` section of the config, and the yolo or region layers, finest first."""
    if net.whole("channels", 3) != 3:
        raise net.error("only nets of 3 channels (RGB) can be imported", key="channels")
    size = [net.whole(key, 0, 1) for key in ("height", "width")]
    found = [i for i, layer in enumerate(layers) if layer.kind in ("yolo", "region")]
    if not found:
        raise DetkitError("the net has no yolo or region layer", net.source, "give the cfg of a detector")
    graph = list(layers)
    for i in found:
        _check_convolution(layers, i)
        graph[i - 1 : i + 1] = [replace(layer, kind="head", options={}, lines={}) for layer in layers[i - 1 : i + 1]]
    planned = plan(graph)
    found.sort(key=lambda i: planned[i - 2].stride)
    outputs = [layers[i] for i in found]
    head = _head(outputs)
    head["anchors"] = [_anchors(layers[i], planned[i - 2].stride) for i in found]
    head["xy_scale"] = [section.number_of("scale_x_y", 1.0) for section in outputs]
    return {
        "size": size,
        "resize": "letterbox" if net.whole("letter_box", 0) else "stretch",
        "backbone": {"name": "darknet", "graph": to_lines(graph), "outputs": [i - 2 for i in found]},
        "head": head,
    }, outputs


def _check_convolution(layers: list[Section], i: int) -> None:
    """Raises DetkitError unless a plain 1 x 1 convolution of as many filters as there are answers feeds layer ``i``."""
    section, before = layers[i], layers[i - 1] if i > 1 else layers[i]
    wanted = "logistic" if section.whole("new_coords", 0) else "linear"
    shape = [before.whole(key, default) for key, default in (("size", 1), ("stride", 1), ("groups", 1))]
    if before.kind != "convolutional" or shape != [1, 1, 1] or before.whole("batch_normalize", 0):
        raise section.error("a 1 x 1 convolution without batch norm must come just before it")
    if before.options.get("activation", "logistic") != wanted:
        raise before.error(f"before this {section.kind} layer the activation must be {wanted}", key="activation")
    before.check_fixed()
    section.check_fixed()
    classes, filters = section.whole("classes", 20, 1), before.whole("filters", 1, 1)
    answers = len(_anchors(section, 1)) * (5 + classes)
    if filters != answers:
        what = f"{filters} filters, but {answers // (5 + classes)} anchors and {classes} classes need {answers}"
        raise before.error(what, "filters = anchors x (5 + classes)", "filters")


def _anchors(section: Section, stride: int) -> list[list[float]]:
    """The layer's own anchors, width and height in input pixels."""
    numbers, total = section.list_of("anchors"), section.whole("num", 1, 1)
    if len(numbers) < 2 * total:
        raise section.error(f"{total} anchors are {2 * total} numbers, got {len(numbers)}", key="anchors")
    unit = stride if section.kind == "region" else 1
    chosen = [int(i) for i in section.list_of("mask")] or range(total)
    if any(not 0 <= i < total for i in chosen):
        raise section.error(f"the mask {section.options['mask']} is not within 0..{total - 1}", key="mask")
    return [[numbers[2 * i] * unit, numbers[2 * i + 1] * unit] for i in chosen]


def _head(sections: list[Section]) -> dict[str, object]:
    """How the head decodes and is trained on, the same for all levels."""
    first = sections[0]
    for key in ("classes", "new_coords", "softmax"):
        for section in sections:
            if section.kind != first.kind or section.whole(key, 0) != first.whole(key, 0):
                raise section.error(f"{key} or the kind of layer differs from line {first.line}", key=key)
    region = first.kind == "region"
    loss = first.options.get("iou_loss", "mse")
    return {
        "name": "yolo",
        "assign": "midpoint",
        "ignore_above": first.number_of("thresh" if region else "ignore_thresh", 0.5),
        "coder": "bounded" if first.whole("new_coords", 0) else "darknet",
        # Darknet's older loss, squared errors of the code itself, has no counterpart here.
        "box_loss": loss if loss in ("iou", "giou", "diou", "ciou") else "ciou",
        "classes": "softmax" if region and first.whole("softmax", 0) else "sigmoid",
        "objectness": "iou" if region and first.whole("rescore", 0) else "one",
        "smoothing": first.number_of("label_smooth_eps", 0.0),
    }


def untrained_detector(
    model: Mapping[str, object], classes: Sequence[str], class_ids: Sequence[int | str], source: str, iou: float = 0.5
) -> Detector:
    """The detector of a config's ``model`` section; no way of training is on record, for nothing was trained here.

    Args:
        model: The section.
        classes: Names by label.
        class_ids: Of the classes.
        source: The file that the section is made of, for errors.
        iou: The NMS threshold that the model is meant for.

    Raises:
        DetkitError: Parts that do not fit together.
    """
    place = Place(source)
    config = Config({}, check_model(model, place), {}, TrainOptions(), EvaluateOptions(iou=iou), place)
    detector = build_detector(config, classes, class_ids=class_ids)
    detector.config = {key: detector.config[key] for key in ("model", "evaluate")}
    return detector


def class_names(path: str | Path | None, count: int, where: str, coco: int = len(COCO_CLASSES)) -> tuple[str, ...]:
    """The class names in a file, one on each line.

    Args:
        path: The file; None: the names are COCO's.
        count: How many classes there are.
        where: The place that says so.
        coco: How many COCO's classes are there.

    Raises:
        DetkitError: Another number of names, a name that is there twice, a file that cannot be read, or none although
            the classes are not COCO's.
    """
    if path is None:
        if count == coco:
            return COCO_CLASSES
        raise DetkitError(f"the {count} classes need names", where, "give --names FILE, one name per line")
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if len(names) != count:
        what = f"{len(names)} names for {count} classes"
        raise DetkitError(what, str(path), f"give one name per line; the classes are counted in {where}")
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise DetkitError(f"the class {twice!r} is there twice", str(path), "give each class a name of its own")
    return names
