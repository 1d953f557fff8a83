"""Flat, exact float64 tables of objects and detections in the file's own xywh, and what a metric says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from detkit.arrays import as_numpy
from detkit.ops import inputs
from detkit.printed import aligned, number

# PASCAL VOC's and Darknet's spellings of COCO's classes.
_SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
Maps = Callable[[int], tuple[np.ndarray, np.ndarray]]  # of an image's index: labels and answer, (H, W) uint8 both


@dataclass(slots=True, frozen=True, eq=False)
class GroundTruth:
    """All labelled boxes of a data set, as the metrics read them; rows in file order.

    Attributes:
        images: Number of images.
        image: (N,) int64, index 0..images-1.
        label: (N,) int64.
        xywh: (N, 4) float64.
        area: (N,) float64, the annotation's.
        crowd: (N,) bool.
        difficult: (N,) bool.
        ids: (N,) int64, the annotations' own, from 1 where the format has none.
        classes: Names.
        rank: (images,) int64, each image's place in ascending order of the image ids, by which pycocotools breaks ties
            between equal scores; None: images are in that order already.
        class_rank: (C,) int64, the same of the classes and their ids, in whose order pycocotools sums; None: in order.
        points: (N, K, 3) float64 x, y in pixels, visible (0: not), or None.
    """

    images: int
    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    rank: np.ndarray | None = None
    points: np.ndarray | None = None
    class_rank: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """(N,) bool: objects that are to be found, neither crowd nor difficult."""
        return np.asarray(~(self.crowd | self.difficult))

    def __getitem__(self, rows: np.ndarray) -> GroundTruth:
        """Some objects: a mask or indices; the images stay."""
        names = ("image", "label", "xywh", "area", "crowd", "difficult", "ids")
        points = None if self.points is None else self.points[rows]
        return replace(self, points=points, **{name: getattr(self, name)[rows] for name in names})


@dataclass(slots=True, frozen=True, eq=False)
class Results:
    """Detections on a data set.

    Attributes:
        image: (M,) int64 index.
        label: (M,) int64.
        xywh: (M, 4) float64.
        score: (M,) float64.
        points: (M, K, 2) float64 x, y in pixels, or None.
        pixels: (images, C + 1, C + 1) int64: how many pixels of each image are labelled as one class and answered as
            another, the last being neither; or None.
        maps: With ``pixels``: what labels and answer say of each pixel of an image (``Target.mask``), which is looked
            at again.
        embedding: (M, D) float32, the vector of what was found, or None.
    """

    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    score: np.ndarray
    points: np.ndarray | None = None
    pixels: np.ndarray | None = None
    maps: Maps | None = field(default=None, kw_only=True)
    embedding: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: np.ndarray) -> Results:
        """Some detections: a mask or indices."""
        columns = {name: getattr(self, name) for name in ("image", "label", "xywh", "score", "points", "embedding")}
        return replace(self, **{name: column[rows] for name, column in columns.items() if column is not None})


@dataclass(slots=True, frozen=True, eq=False)
class Evaluation:
    """The numbers of one metric.

    Attributes:
        metrics: By name; -1 or NaN where there is nothing to find.
        per_class: By class name, then as ``metrics``, with ``objects``, the number to be found.
        protocol: Name of the metric (``detkit.metrics.METRICS``).
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    protocol: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The form of ``evaluate --json``."""
        return {"protocol": self.protocol, "metrics": self.metrics, "per_class": self.per_class}

    def lines(self) -> list[str]:
        """The numbers, then one line per class; what ``print`` shows."""
        numbers = [f"{name:<8} {number(value, 4):>7}" for name, value in self.metrics.items()]
        return [*numbers, "", *class_lines(self.per_class)]

    def __str__(self) -> str:
        return "\n".join(self.lines()).rstrip()


def class_lines(per_class: Mapping[str, Mapping[str, float]]) -> list[str]:
    """``Evaluation.per_class`` as aligned lines, one per class, below their heads."""
    if not per_class:
        return []
    columns = [name for name in next(iter(per_class.values())) if name != "objects"]
    rows = [["class", "objects", *columns]]
    for name, row in per_class.items():
        rows.append([name, str(row.get("objects", "-")), *(number(row.get(column)) for column in columns)])
    return aligned(rows)


def rank_of(ids: Sequence[int | str]) -> np.ndarray:
    """(N,) int64: the place of each image or class in ascending order of their ids, numbers before words."""
    order = sorted(range(len(ids)), key=lambda i: (isinstance(ids[i], str), ids[i]))
    return np.argsort(order)


def truth_of(targets: Sequence[object], classes: tuple[str, ...]) -> GroundTruth:
    """The objects of images as a table.

    Args:
        targets: Per image a ``Target``, or a mapping of arrays (lists, tensors): boxes (N, 4) xyxy, labels (N,), and
            where they matter area, iscrowd and difficult (N,).
        classes: Names by label.

    Raises:
        ValueError: An array that is missing or does not have N rows.
        TypeError: Labels that are not whole numbers.
    """
    xyxy, labels, image = _boxes_and_labels(targets)
    xywh, none = _xywh(xyxy), np.zeros(len(xyxy), bool)
    area = _optional(targets, "area", xywh[:, 2] * xywh[:, 3])
    crowd = _optional(targets, "crowd", none) | _optional(targets, "iscrowd", none)
    ids = np.arange(1, len(xywh) + 1)
    return GroundTruth(
        len(targets), image, labels, xywh, area, crowd, _optional(targets, "difficult", none), ids, classes
    )


def results_of(found: Sequence[Any], images: Sequence[int] | None = None) -> Results:
    """Detections of images, in original pixels, as a table.

    Args:
        found: Per image a ``Detections``, or a mapping of arrays (lists, tensors): boxes (N, 4) xyxy, scores and labels
            (N,).
        images: Their indices; None: 0, 1, 2, ...

    Raises:
        ValueError: An array that is missing or does not have N rows.
        TypeError: Labels that are not whole numbers.
    """
    xyxy, labels, image = _boxes_and_labels(found)
    counts = np.bincount(image, minlength=len(found)) if len(found) else np.zeros(0, np.int64)
    scores = [inputs.score_array(_column(one, "scores"), n) for one, n in zip(found, counts, strict=True)]
    points, vectors = (
        [one.extra[name] for one in found if name in getattr(one, "extra", {})] for name in ("points", "embedding")
    )
    return Results(
        image=image if images is None else np.asarray(images, np.int64)[image],
        label=labels,
        xywh=_xywh(xyxy),
        score=np.concatenate([np.zeros(0), *scores]).astype(np.float64),
        points=np.concatenate(points).astype(np.float64) if points else None,
        embedding=np.concatenate(vectors) if vectors else None,
    )


def _boxes_and_labels(items: Sequence[object]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 4) float64 xyxy, (N,) labels and (N,) indices of the items."""
    boxes = [inputs.box_array(_column(item, "boxes")) for item in items]
    labels = [inputs.label_array(_column(item, "labels"), len(b)) for item, b in zip(items, boxes, strict=True)]
    image = np.repeat(np.arange(len(items), dtype=np.int64), [len(b) for b in boxes])
    xyxy = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
    return xyxy, np.concatenate([np.zeros(0, np.int64), *labels]), image


def _column(item: Any, name: str) -> Any:
    """An array of a mapping, or of an object with such an attribute."""
    value = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
    if value is None:
        raise ValueError(f"each image needs {name}, got {type(item).__name__} without")
    return as_numpy(value)


def _optional(items: Sequence[object], name: str, default: np.ndarray) -> np.ndarray:
    """The column of all items end to end, in the default's type; the default where an item has none."""
    try:
        values = [np.zeros(0), *(_column(item, name) for item in items)]
    except ValueError:
        return default
    column = np.concatenate(values).astype(default.dtype)
    if column.shape != default.shape:
        raise ValueError(f"{name} must have {len(default)} rows, one per box, got {len(column)}")
    return column


def _xywh(xyxy: np.ndarray) -> np.ndarray:
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def other_spelling(key: int | float | str | None) -> int | str:
    """The number that a text of digits is, and the text of digits that a number is (of 1.0, "1"); else nothing."""
    if key is None:
        return ""
    if isinstance(key, str):
        return int(key) if key.isdecimal() and len(key) < 40 else ""
    return str(int(key) if isinstance(key, float) and key.is_integer() else key)


def canonical(name: str) -> str:
    """One spelling for all names of a class: lower case, COCO's word for it."""
    name = " ".join(name.lower().replace("_", " ").split())
    return _SYNONYMS.get(name, name)
