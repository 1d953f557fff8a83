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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from detkit.arrays import as_numpy, convert_kind, filled, is_tensor, moved, row_index
from detkit.errors import DetkitError

if TYPE_CHECKING:
    import torch

Array = Any  # a numpy array or a torch tensor; naming both here would need torch


def _checked_boxes(boxes: Any, owner: str) -> Any:
    boxes = convert_kind(boxes, "float32", boxes)
    if boxes.shape == (0,):
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{owner}: boxes must be (N, 4) xyxy, got shape {tuple(boxes.shape)}")
    return boxes


def _checked_column(name: str, value: Any, dtype: str, boxes: Any, owner: str) -> Any:
    value = convert_kind(value, dtype, boxes)
    if value.ndim != 1 or len(value) != len(boxes):
        raise ValueError(f"{owner}: {name} must be ({len(boxes)},), got shape {tuple(value.shape)}")
    return value


def _select(value: Any, index: Any) -> Any:
    return value if value is None else value[index]


@dataclass(slots=True, frozen=True, eq=False)
class Target:
    """The labelled objects of one image.

    boxes (N, 4) float32 xyxy; labels (N,) int64; crowd (N,) bool, a region of many objects (COCO's iscrowd);
    difficult (N,) bool (PASCAL's); area (N,) float32, the annotation's own area in pixels (default: the box's);
    weight (N,) float32, the object's weight in the loss (default 1); points (N, K, 3) x, y, visible, which follow the
    pixels through augmentation; masks (N, H, W), which augmentation and batches leave out; image_label: class index of
    the whole image, for classification.
    """

    boxes: Array
    labels: Array
    crowd: Any = None
    difficult: Any = None
    area: Any = None
    weight: Any = None
    points: Any = None
    masks: Any = None
    image_label: int | None = None

    def __post_init__(self) -> None:
        boxes = _checked_boxes(self.boxes, "Target")
        n = len(boxes)
        area = self.area
        if area is None:
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        columns = {
            "labels": (self.labels, "int64"),
            "crowd": (filled(n, "bool", boxes) if self.crowd is None else self.crowd, "bool"),
            "difficult": (filled(n, "bool", boxes) if self.difficult is None else self.difficult, "bool"),
            "area": (area, "float32"),
            "weight": (filled(n, "float32", boxes, 1) if self.weight is None else self.weight, "float32"),
        }
        object.__setattr__(self, "boxes", boxes)
        for name, (value, dtype) in columns.items():
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
        index = row_index(index, self.boxes)
        names = ("boxes", "labels", "crowd", "difficult", "area", "weight", "points", "masks")
        rows = {name: _select(getattr(self, name), index) for name in names}
        return Target(**rows, image_label=self.image_label)

    @classmethod
    def empty(cls) -> Target:
        """A target without objects (numpy)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def to(self, device: Any) -> Target:
        """The same as torch tensors on ``device``."""
        return Target(**{f.name: moved(getattr(self, f.name), device) for f in fields(self)})

    def numpy(self) -> Target:
        """The same as numpy arrays."""
        return Target(**{f.name: as_numpy(getattr(self, f.name)) for f in fields(self)})

    def to_torchvision(self) -> dict[str, Any]:
        """torchvision's target dict: boxes, labels **with background as 0**, iscrowd, area (torch tensors)."""
        t = self.to("cpu")
        return {"boxes": t.boxes, "labels": t.labels + 1, "iscrowd": t.crowd.long(), "area": t.area}


@dataclass(slots=True, frozen=True, eq=False)
class Detections:
    """What a detector found in one image, best first.

    boxes (N, 4) float32 xyxy; scores (N,) float32 in 0..1; labels (N,) int64; classes: the model's class names;
    extra: arrays of N rows (points, track ids, masks) that are indexed with the boxes.
    """

    boxes: Array
    scores: Array
    labels: Array
    classes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boxes = _checked_boxes(self.boxes, "Detections")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", _checked_column("scores", self.scores, "float32", boxes, "Detections"))
        object.__setattr__(self, "labels", _checked_column("labels", self.labels, "int64", boxes, "Detections"))
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, value in self.extra.items():
            if len(value) != len(boxes):
                raise ValueError(f"Detections: extra[{name!r}] must have {len(boxes)} rows, got {len(value)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
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

    def to(self, device: Any) -> Detections:
        """The same as torch tensors on ``device``."""
        extra = {name: moved(value, device) for name, value in self.extra.items()}
        boxes, scores, labels = (moved(value, device) for value in (self.boxes, self.scores, self.labels))
        return Detections(boxes, scores, labels, self.classes, extra)

    def numpy(self) -> Detections:
        """The same as numpy arrays."""
        extra = {name: as_numpy(value) for name, value in self.extra.items()}
        boxes, scores, labels = (as_numpy(value) for value in (self.boxes, self.scores, self.labels))
        return Detections(boxes, scores, labels, self.classes, extra)

    def filter(self, conf: float = 0.0, classes: tuple[int | str, ...] | None = None) -> Detections:
        """Detections with score >= ``conf`` and, if given, of these classes (names or labels)."""
        keep = self.scores >= conf
        if classes is not None:
            wanted = {self._label(c) for c in classes}
            chosen = np.asarray([int(label) in wanted for label in self.labels], dtype=bool)
            keep = keep & (convert_kind(chosen.tolist(), "bool", self.boxes) if len(chosen) else keep)
        return self[keep]

    def _label(self, name: int | str) -> int:
        if isinstance(name, str):
            if name not in self.classes:
                raise ValueError(f"no class {name!r} among {', '.join(self.classes)}")
            return self.classes.index(name)
        return int(name)

    def to_records(self) -> list[dict[str, Any]]:
        """One dict a detection: label (name), label_id, score, box [x1, y1, x2, y2], and points [[x, y], ...] where it
        has some: the form of ``detect --json``."""
        d = self.numpy()
        records: list[dict[str, Any]] = [
            {
                "label": name,
                "label_id": int(label),
                "score": round(float(score), 5),
                "box": [round(float(v), 2) for v in box],
            }
            for name, label, score, box in zip(d.names, d.labels, d.scores, d.boxes, strict=True)
        ]
        for record, points in zip(records, d.extra.get("points", ()), strict=False):
            record["points"] = [[round(float(v), 2) for v in point] for point in points]
        return records

    def to_supervision(self) -> Any:
        """The same as a ``supervision.Detections`` (that package must be installed)."""
        import supervision  # type: ignore[import-not-found, unused-ignore]

        d = self.numpy()
        data = {"class_name": np.asarray(d.names)}
        return supervision.Detections(xyxy=d.boxes, confidence=d.scores, class_id=d.labels.astype(int), data=data)

    def draw(self, image: np.ndarray) -> np.ndarray:
        """A copy of ``image`` (RGB) with the boxes, names and scores drawn."""
        from detkit.io.draw import draw_detections

        return draw_detections(image, self)

    def save(self, path: str | Path, image: np.ndarray, *, overwrite: bool = False) -> None:
        """Draws on a copy of ``image`` (RGB) and writes it to ``path``; a file that exists is an error by default."""
        from detkit.io.images import write_image

        write_image(path, self.draw(image), overwrite=overwrite)

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(none)"
        rows = [f"{r['label']} {r['score']:.2f} {[round(v) for v in r['box']]}" for r in self.to_records()[:10]]
        more = [] if len(self) <= 10 else [f"... {len(self) - 10} more"]
        return "Detections(\n  " + "\n  ".join(rows + more) + "\n)"

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><td>{escape(r['label'])}</td><td>{r['score']:.3f}</td><td>{r['box']}</td></tr>"
            for r in self.to_records()
        )
        return f"<table><tr><th>class</th><th>score</th><th>box (x1, y1, x2, y2)</th></tr>{cells}</table>"


class Geometry(NamedTuple):
    """How one original image lies inside a model's input: input = original * scale + offset.

    width and height are the original's in pixels; scales and offsets are floats in input pixels.
    """

    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def to_input(self, boxes: Any) -> Any:
        """Original xyxy (N, 4) to input pixels; numpy or torch."""
        return boxes * self._scales(boxes) + self._offsets(boxes)

    def to_original(self, boxes: Any) -> Any:
        """Input xyxy (N, 4) to original pixels, clipped to the image; numpy or torch."""
        boxes = (boxes - self._offsets(boxes)) / self._scales(boxes)
        limit = self._like(boxes, (self.width, self.height, self.width, self.height))
        if is_tensor(boxes):
            return boxes.clamp(min=0).minimum(limit)
        return np.minimum(np.maximum(boxes, 0), limit)

    def points_to_original(self, points: Any) -> Any:
        """Input points (..., 2) x, y to original pixels, not clipped; numpy or torch."""
        offset, scale = (self._like(points, pair) for pair in ((self.left, self.top), (self.scale_x, self.scale_y)))
        return (points - offset) / scale

    def _scales(self, like: Any) -> Any:
        return self._like(like, (self.scale_x, self.scale_y) * 2)

    def _offsets(self, like: Any) -> Any:
        return self._like(like, (self.left, self.top) * 2)

    @staticmethod
    def _like(like: Any, values: tuple[float, ...]) -> Any:
        return like.new_tensor(values) if is_tensor(like) else np.asarray(values, dtype=like.dtype)


@dataclass(slots=True, frozen=True, eq=False)
class Sample:
    """One image and what is known of it: uint8 (H, W, 3) RGB; target (numpy); proposals (R, 4) float32 xyxy."""

    image: np.ndarray
    target: Target = field(default_factory=Target.empty)
    proposals: np.ndarray | None = None
    image_id: int | str = 0
    path: str = ""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"Sample: image must be uint8 (H, W, 3) RGB, got {self.image.dtype} {tuple(self.image.shape)}"
            )

    def replace(self, **changes: Any) -> Sample:
        """A copy with these fields changed."""
        return replace(self, **changes)


@dataclass(slots=True, frozen=True, eq=False)
class Batch:
    """Images as a model takes them.

    pixels uint8 (B, 3, H, W); sizes (B, 2) int64, height and width of the image's part of the input (the rest is
    padding); restore: one Geometry an image; image_ids, paths: one an image; proposals: (R_i, 4) float32 tensors in
    input pixels or None; cached: (B, C, H, W) maps of frozen stages that take the pixels' place, or None.
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

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same on ``device``."""
        proposals = None if self.proposals is None else [p.to(device) for p in self.proposals]
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        cached = self.cached and [maps.to(device, non_blocking=non_blocking) for maps in self.cached]
        return replace(self, pixels=pixels, sizes=self.sizes.to(device), proposals=proposals, cached=cached)


@dataclass(slots=True, frozen=True)
class Limits:
    """What a predictor returns: score >= conf, NMS at IoU > iou, at most max_detections an image, these labels only.

    The defaults are for people; evaluation always uses ``Limits.evaluation()``.
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
        """Scores down to 0.001 and 100 detections an image, as AP is defined."""
        return cls(conf=0.001, iou=iou, max_detections=100)


@dataclass(slots=True, frozen=True, eq=False)
class Loss:
    """One term of a loss: its sum over examples and the number that it is to be divided by (both 0-d tensors)."""

    sum: torch.Tensor
    count: torch.Tensor


@runtime_checkable
class Predictor(Protocol):
    """Anything that detects: a Detector, test-time augmentation, an ensemble, an exported model."""

    classes: tuple[str, ...]

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels."""
        ...
