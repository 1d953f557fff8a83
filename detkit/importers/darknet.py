"""Detectors of Darknet: a cfg and its weights become a ``Detector`` whose head is detkit's own ``YOLO``.

YOLOv2, v3, v4, their tiny versions and kin. The convolution before each ``yolo`` or ``region`` layer becomes the head's
predicting layer of that level; all other layers are the backbone, with Darknet's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.names import COCO_CLASSES, ids_of
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.importers.darknet_backbone import Convolution, Darknet, load_darknet_weights
from detkit.importers.darknet_cfg import Section, plan, read_cfg, to_lines

_LOSSES = ("iou", "giou", "diou", "ciou")


@dataclass(frozen=True, slots=True)
class _Level:
    """A yolo or region layer: its number, the layer that feeds its convolution, that one's stride, anchors (w, h)."""

    section: Section
    tap: int
    stride: int
    anchors: list[list[float]]
    xy_scale: float


def import_darknet(cfg: str | Path, weights: str | Path, names: str | Path | None = None) -> Detector:
    """The detector of a Darknet cfg and its weights file, ready to predict, save and train on.

    names: a file with a class name a line; None: COCO's, where there are 80 classes. Images are stretched to the
    cfg's width and height, as Darknet does (letter_box=1: fitted, which Darknet centres and detkit does not).

    Raises:
        DetkitError: a cfg with something unknown (with line and layer), weights of another size, names that do not fit.
    """
    detector, convolutions = untrained(cfg, names)
    seen = load_darknet_weights(convolutions, Path(weights))
    detector.record = {"imported": f"Darknet {Path(cfg).name}, {Path(weights).name}", "images_seen": seen}
    return detector.eval()


def untrained(cfg: str | Path, names: str | Path | None = None) -> tuple[Detector, dict[int, Convolution]]:
    """The detector of a cfg with random weights, and all of its convolutions by layer number; else as above."""
    sections = read_cfg(_text(Path(cfg)), str(cfg))
    model, heads = _model(sections[0], sections[1:])
    classes = _names(names, heads[0].section)
    config = Config({}, check_model(model, Place(str(cfg))), {}, TrainOptions(), EvaluateOptions(), Place(str(cfg)))
    detector = build_detector(config, classes, class_ids=ids_of(classes))
    # Nothing was trained here, so that no way of training is on record.
    detector.config = {"model": detector.config["model"]}
    backbone = cast(Darknet, detector.backbone)
    layers = cast(Any, detector.head).layers
    own = {head.section.number - 1: (layer, None) for head, layer in zip(heads, layers, strict=True)}
    return detector, {**backbone.convolutions(), **own}


def _model(net: Section, layers: list[Section]) -> tuple[dict[str, Any], list[_Level]]:
    """The ``model`` section of the config, and the levels of its head, finest first."""
    if net.whole("channels", 3) != 3:
        raise net.error("only nets of 3 channels (RGB) can be imported", key="channels")
    size = [net.whole(key, 0, 1) for key in ("height", "width")]
    found = [i for i, layer in enumerate(layers) if layer.kind in ("yolo", "region")]
    if not found:
        raise DetkitError("the net has no yolo or region layer", net.source, "give the cfg of a detector")
    graph = list(layers)
    for i in found:
        for j in (i - 1, i):
            old = layers[max(j, 0)]
            graph[j] = Section("head", {}, old.source, old.line, {}, old.number)
    for i in found:
        _check_convolution(layers, i)
    planned = plan(graph)
    levels = []
    for i in found:
        section, stride = layers[i], planned[i - 2].stride
        levels.append(_Level(section, i - 2, stride, _anchors(section, stride), section.number_of("scale_x_y", 1.0)))
    levels.sort(key=lambda level: level.stride)
    head = _head([level.section for level in levels])
    head["anchors"] = [level.anchors for level in levels]
    head["xy_scale"] = [level.xy_scale for level in levels]
    model = {
        "size": size,
        "resize": "letterbox" if net.whole("letter_box", 0) else "stretch",
        "backbone": {"name": "darknet", "graph": to_lines(graph), "outputs": [level.tap for level in levels]},
        "neck": "identity",
        "head": head,
    }
    return model, levels


def _check_convolution(layers: list[Section], i: int) -> None:
    """Raises DetkitError unless a plain 1 x 1 convolution of as many filters as there are answers feeds layer ``i``."""
    section, before = layers[i], layers[i - 1] if i > 1 else layers[i]
    wanted = "logistic" if section.whole("new_coords", 0) else "linear"
    plain = {"size": 1, "stride": 1, "groups": 1, "batch_normalize": 0}
    if before.kind != "convolutional" or any(
        before.whole(k, int(k != "batch_normalize")) != v for k, v in plain.items()
    ):
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
    pairs = [[numbers[2 * i] * unit, numbers[2 * i + 1] * unit] for i in range(total)]
    chosen = [int(i) for i in section.list_of("mask")] or list(range(total))
    if any(not 0 <= i < total for i in chosen):
        raise section.error(f"the mask {section.options['mask']} is not within 0..{total - 1}", key="mask")
    return [pairs[i] for i in chosen]


def _head(sections: list[Section]) -> dict[str, Any]:
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
        "box_loss": loss if loss in _LOSSES else "ciou",
        "classes": "softmax" if region and first.whole("softmax", 0) else "sigmoid",
        "objectness": "iou" if region and first.whole("rescore", 0) else "one",
        "smoothing": first.number_of("label_smooth_eps", 0.0),
    }


def _names(path: str | Path | None, section: Section) -> tuple[str, ...]:
    count = section.whole("classes", 20)
    if path is not None:
        return class_names(path, count, section.source)
    if count != len(COCO_CLASSES):
        raise section.error(f"the {count} classes need names", "give --names FILE, a name a line", "classes")
    return COCO_CLASSES


def class_names(path: str | Path, count: int, counted_in: str) -> tuple[str, ...]:
    """The names in a file, one a line, of the ``count`` classes of the model file ``counted_in``.

    Raises:
        DetkitError: another number of names, a name that is there twice, or a file that cannot be read.
    """
    names = tuple(line.strip() for line in _text(Path(path)).splitlines() if line.strip())
    if len(names) != count:
        what = f"{len(names)} names for {count} classes"
        raise DetkitError(what, str(path), f"give a name a line; the classes are counted in {counted_in}")
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise DetkitError(f"the class {twice!r} is there twice", str(path), "give each class a name of its own")
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DetkitError("this is not a text file", str(path), "the order is cfg, weights, --names FILE") from None
    except OSError as error:
        raise DetkitError(f"the file cannot be read: {error.strerror}", str(path), "check the path") from None
