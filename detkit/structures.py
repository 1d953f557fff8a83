"""The types that travel between detkit's parts, and the conventions they carry.

Conventions, written once and checked here:

* Boxes are ``(N, 4)`` **xyxy in absolute pixels, x2 and y2 exclusive** (width = x2 - x1), float32. Other formats exist
  only inside readers, writers, coders and metrics.
* Images are uint8 ``(H, W, 3)`` **RGB**.
* Labels are ``0 .. C-1``. Background and a file's category ids never leave the head or the reader that knows them.
* A structure holds numpy arrays or torch tensors, never both. Nothing here is changed after it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.arrays import as_numpy, convert_kind, filled, moved, row_index
from detkit.errors import DetkitError, nearest

if TYPE_CHECKING:
    import supervision
    import torch

    from detkit.geometry import Geometry

# A numpy array or a torch tensor. As a union, every expression of two of them would be a type error.
Array = Any


def _checked_boxes(boxes: Array, owner: str) -> Array:
    boxes = convert_kind(boxes, "float32", boxes)
    if boxes.shape == (0,):
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{owner}: boxes must be (N, 4) xyxy, got shape {tuple(boxes.shape)}")
    return boxes


def _checked_column(name: str, value: Array, dtype: str, boxes: Array, owner: str) -> Array:
    value = convert_kind(value, dtype, boxes)
    if value.ndim != 1 or len(value) != len(boxes):
        raise ValueError(f"{owner}: {name} must be ({len(boxes)},), got shape {tuple(value.shape)}")
    return value


@dataclass(slots=True, frozen=True, eq=False)
class Target:
    """The labelled objects of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels.
        labels: (N,) int64.
        crowd: (N,) bool, regions of many objects (COCO's iscrowd); default: none.
        difficult: (N,) bool (PASCAL VOC's); default: none.
        area: (N,) float32, the annotations' own areas in square pixels; default: the boxes'.
        weight: (N,) float32, each object's weight in the loss; default: 1.
        points: (N, K, 3) x, y, visible, which follow the pixels through augmentation; or None.
        masks: (N, H, W), which augmentation and batches leave out; or None.
        image_label: Class index of the whole image, for classification; or None.

    Raises:
        ValueError: Columns that do not have N rows, or boxes that are not (N, 4).
        TypeError: numpy arrays and torch tensors mixed.
    """

    boxes: Array
    labels: Array
    crowd: Array = None
    difficult: Array = None
    area: Array = None
    weight: Array = None
    points: Array = None
    masks: Array = None
    image_label: int | None = None

    def __post_init__(self) -> None:
        boxes = _checked_boxes(self.boxes, "Target")
        n = len(boxes)
        object.__setattr__(self, "boxes", boxes)
        for name, dtype, usual in (
            ("labels", "int64", None),
            ("crowd", "bool", filled(n, "bool", boxes)),
            ("difficult", "bool", filled(n, "bool", boxes)),
            ("area", "float32", (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])),
            ("weight", "float32", filled(n, "float32", boxes, 1)),
        ):
            value = getattr(self, name)
            value = usual if value is None else value
            object.__setattr__(self, name, _checked_column(name, value, dtype, boxes, "Target"))
        for name in ("points", "masks"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"Target: {name} must have {n} rows, got {len(value)}")

    @property
    def ignore(self) -> Array:
        """(N,) bool: objects that are neither to be found nor counted as background."""
        return self.crowd | self.difficult

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Target:
        """The objects of a mask, a slice, indices or one index; always a Target."""
        index = row_index(index, self.boxes)
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image_label"}
        rows = {name: None if column is None else column[index] for name, column in columns.items()}
        return Target(**rows, image_label=self.image_label)

    @classmethod
    def empty(cls) -> Target:
        """A target without objects (numpy)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def to(self, device: torch.device | str) -> Target:
        """The same as torch tensors on ``device``."""
        return Target(**{f.name: moved(getattr(self, f.name), device) for f in fields(self)})

    def numpy(self) -> Target:
        """The same as numpy arrays."""
        return Target(**{f.name: as_numpy(getattr(self, f.name)) for f in fields(self)})

    def to_torchvision(self) -> dict[str, torch.Tensor]:
        """torchvision's target dict: boxes, labels **with background as 0**, iscrowd, area (torch tensors)."""
        t = self.to("cpu")
        return {"boxes": t.boxes, "labels": t.labels + 1, "iscrowd": t.crowd.long(), "area": t.area}


@dataclass(slots=True, frozen=True, eq=False)
class Detections:
    """What a detector found in one image, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64.
        classes: The model's class names, by label.
        extra: Arrays of N rows (points, track ids, masks) that are indexed with the boxes.

    Raises:
        ValueError: Columns that do not have N rows, or boxes that are not (N, 4).
        TypeError: numpy arrays and torch tensors mixed.
    """

    boxes: Array
    scores: Array
    labels: Array
    classes: tuple[str, ...] = ()
    extra: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boxes = _checked_boxes(self.boxes, "Detections")
        object.__setattr__(self, "boxes", boxes)
        for name, dtype in (("scores", "float32"), ("labels", "int64")):
            object.__setattr__(self, name, _checked_column(name, getattr(self, name), dtype, boxes, "Detections"))
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, value in self.extra.items():
            if len(value) != len(boxes):
                raise ValueError(f"Detections: extra[{name!r}] must have {len(boxes)} rows, got {len(value)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
        """The detections of a mask, a slice, indices or one index; always ``Detections``."""
        index = row_index(index, self.boxes)
        extra = {name: value[index] for name, value in self.extra.items()}
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.classes, extra)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def empty(cls, classes: tuple[str, ...] = ()) -> Detections:
        """No detections (numpy)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), classes)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[int(label)] if self.classes else str(int(label)) for label in self.labels]

    def to(self, device: torch.device | str) -> Detections:
        """The same as torch tensors on ``device``."""
        extra = {name: moved(value, device) for name, value in self.extra.items()}
        boxes, scores, labels = (moved(value, device) for value in (self.boxes, self.scores, self.labels))
        return Detections(boxes, scores, labels, self.classes, extra)

    def numpy(self) -> Detections:
        """The same as numpy arrays."""
        extra = {name: as_numpy(value) for name, value in self.extra.items()}
        return Detections(as_numpy(self.boxes), as_numpy(self.scores), as_numpy(self.labels), self.classes, extra)

    def filter(self, conf: float = 0.0, classes: tuple[int | str, ...] | None = None) -> Detections:
        """Some of them, in the same order.

        Args:
            conf: The lowest score to keep.
            classes: Names or labels to keep; None: all.

        Raises:
            ValueError: A class name that the model does not know.
        """
        keep = self.scores >= conf
        if classes is not None:
            wanted = {self._label(c) for c in classes}
            chosen = [int(label) in wanted for label in self.labels]
            keep = keep & convert_kind(chosen, "bool", self.boxes)
        return self[keep]

    def _label(self, name: int | str) -> int:
        if isinstance(name, str):
            if name not in self.classes:
                raise ValueError(f"no class {name!r}: {nearest(name, self.classes)}")
            return self.classes.index(name)
        return int(name)

    def to_records(self) -> list[dict[str, Any]]:
        """The form of ``detect --json``: per detection label (name), label_id, score, box [x1, y1, x2, y2], and points
        [[x, y], ...] where it has some."""
        d = self.numpy()
        records = []
        for i, name in enumerate(d.names):
            box = [round(float(v), 2) for v in d.boxes[i]]
            record = {"label": name, "label_id": int(d.labels[i]), "score": round(float(d.scores[i]), 5), "box": box}
            if "points" in d.extra:
                record["points"] = [[round(float(v), 2) for v in point] for point in d.extra["points"][i]]
            records.append(record)
        return records

    def to_supervision(self) -> supervision.Detections:
        """The same as a ``supervision.Detections`` (that package must be installed)."""
        import supervision

        d = self.numpy()
        data = {"class_name": np.asarray(d.names)}
        return supervision.Detections(xyxy=d.boxes, confidence=d.scores, class_id=d.labels.astype(int), data=data)

    def draw(self, image: np.ndarray) -> np.ndarray:
        """A copy of ``image`` (uint8 RGB) with the boxes, names and scores drawn."""
        from detkit.io.draw import draw_detections

        return draw_detections(image, self)

    def save(self, path: str | Path, image: np.ndarray, *, overwrite: bool = False) -> None:
        """Draws on a copy of ``image`` (uint8 RGB) and writes it to ``path``.

        Raises:
            DetkitError: The file exists and not ``overwrite``, or it cannot be written.
        """
        from detkit.io.images import write_image

        write_image(path, self.draw(image), overwrite=overwrite)

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(none)"
        rows = [f"{r['label']} {r['score']:.2f} {[round(v) for v in r['box']]}" for r in self[:10].to_records()]
        more = [] if len(self) <= 10 else [f"... {len(self) - 10} more"]
        return "Detections(\n  " + "\n  ".join(rows + more) + "\n)"

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><td>{escape(r['label'])}</td><td>{r['score']:.3f}</td><td>{r['box']}</td></tr>"
            for r in self.to_records()
        )
        return f"<table><tr><th>class</th><th>score</th><th>box (x1, y1, x2, y2)</th></tr>{cells}</table>"


@dataclass(slots=True, frozen=True, eq=False)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        target: Its objects (numpy).
        proposals: (R, 4) float32 xyxy in the image's pixels, or None.
        image_id: The data set's own id.
        path: Of the file, "" where there is none.

    Raises:
        ValueError: Another kind of image.
    """

    image: np.ndarray
    target: Target = field(default_factory=Target.empty)
    proposals: np.ndarray | None = None
    image_id: int | str = 0
    path: str = ""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            found = f"{self.image.dtype} {tuple(self.image.shape)}"
            raise ValueError(f"Sample: image must be uint8 (H, W, 3) RGB, got {found}")

    def replace(self, **changes: Any) -> Sample:
        """A copy with these fields changed."""
        return replace(self, **changes)


@dataclass(slots=True, frozen=True, eq=False)
class Batch:
    """Images as a model takes them.

    Attributes:
        pixels: uint8 (B, 3, H, W).
        sizes: (B, 2) int64, height and width of each image's part of the input; the rest is padding.
        restore: One Geometry per image.
        image_ids: One per image.
        paths: One per image.
        proposals: (R_i, 4) float32 per image, in input pixels; or None.
        cached: (B, C, H, W) maps of frozen stages that take the pixels' place; or None.
    """

    pixels: torch.Tensor
    sizes: torch.Tensor
    restore: tuple[Geometry, ...]
    image_ids: tuple[int | str, ...] = ()
    paths: tuple[str, ...] = ()
    proposals: list[torch.Tensor] | None = None
    cached: list[torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.restore)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on ``device``."""
        proposals = None if self.proposals is None else [p.to(device) for p in self.proposals]
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        cached = self.cached and [maps.to(device, non_blocking=non_blocking) for maps in self.cached]
        return replace(self, pixels=pixels, sizes=self.sizes.to(device), proposals=proposals, cached=cached)


@dataclass(slots=True, frozen=True)
class Limits:
    """What a predictor returns; the defaults are for people, ``Limits.evaluation()`` is for AP.

    Attributes:
        conf: The lowest score.
        iou: NMS drops boxes of one class that overlap a better one by more.
        max_detections: The most per image.
        classes: The labels to look for; None: all.

    Raises:
        DetkitError: A value out of range.
    """

    conf: float = 0.25
    iou: float = 0.5
    max_detections: int = 100
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise DetkitError(f"{name} must lie between 0 and 1, got {value}", do=f"give --{name} 0.25, say")
        if self.max_detections < 1:
            raise DetkitError(f"max_detections must be at least 1, got {self.max_detections}")

    @classmethod
    def evaluation(cls, iou: float = 0.5) -> Limits:
        """Scores down to 0.001 and 100 detections per image, as AP is defined."""
        return cls(conf=0.001, iou=iou, max_detections=100)


@dataclass(slots=True, frozen=True, eq=False)
class Loss:
    """One term of a loss: its sum over examples and the number that divides it (both 0-d tensors)."""

    sum: torch.Tensor
    count: torch.Tensor
