"""The types that travel between detkit's parts, and the conventions they carry.

Conventions, written once and checked here:

* Boxes are ``(N, 4)`` **xyxy in absolute pixels, x2 and y2 exclusive** (width = x2 - x1), float32. Other formats exist
  only inside readers, writers, coders and metrics.
* Images are uint8 ``(H, W, 3)`` **RGB**.
* Labels are ``0 .. C-1``. Background and a file's category ids never leave the head or the reader that knows them.
* A structure holds numpy arrays or torch tensors, never both. Nothing here is changed after it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.arrays import Either, as_numpy, concatenated, convert_kind, moved
from detkit.errors import DetkitError, nearest
from detkit.printed import Shown
from detkit.rows import Rows

if TYPE_CHECKING:
    import supervision
    import torch

    from detkit.geometry import Geometry
    from detkit.io.images import ImageSource


@dataclass(slots=True, frozen=True, eq=False)
class Target(Rows):
    """The labelled objects of one image.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels.
        labels: (N,) int64.
        crowd: (N,) bool, regions of many objects (COCO's iscrowd); default: none.
        difficult: (N,) bool (PASCAL VOC's); default: none.
        area: (N,) float32, the annotations' own areas in square pixels; default: the boxes'.
        weight: (N,) float32, each object's weight in the loss; default: 1.
        points: (N, K, 3) x, y, visible, which follow the pixels through augmentation; or None.
        mask: (H, W) uint8, the label of each pixel, ``BACKGROUND`` where it belongs to no class, ``IGNORED`` where
            nothing is asked; or None.
        image_label: Class index of the whole image, for classification; or None.
        known: The labels whose objects are all told of, so that a place without one holds none; None: all labels.

    Raises:
        ValueError: Columns that do not have N rows, or boxes that are not (N, 4).
        TypeError: numpy arrays and torch tensors mixed.
    """

    labels: Either
    crowd: Either = None
    difficult: Either = None
    area: Either = None
    weight: Either = None
    points: Either = None
    mask: Either = None
    image_label: int | None = None
    known: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_boxes()
        n = len(self)
        self._check_column("labels", "int64")
        self._check_column("crowd", "bool", [False] * n)
        self._check_column("difficult", "bool", [False] * n)
        self._check_column("area", "float32", self.xywh[:, 2:].prod(1))
        self._check_column("weight", "float32", [1.0] * n)
        if self.points is not None and len(self.points) != n:
            raise ValueError(f"Target: points must have {n} rows, got {len(self.points)}")

    @property
    def ignore(self) -> Either:
        """(N,) bool: objects that are neither to be found nor counted as background."""
        return self.crowd | self.difficult

    @classmethod
    def empty(cls) -> Target:
        """A target without objects (numpy)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def to_torchvision(self) -> dict[str, torch.Tensor]:
        """torchvision's target dict: boxes, labels **with background as 0**, iscrowd, area (torch tensors)."""
        t = self.to("cpu")
        return {"boxes": t.boxes, "labels": t.labels + 1, "iscrowd": t.crowd.long(), "area": t.area}


@dataclass(slots=True, frozen=True, eq=False)
class Detections(Rows):
    """What a detector found in one image, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64.
        classes: The model's class names, by label.
        extra: Arrays of N rows (points, track ids, masks (N, H, W) bool) that are indexed with the boxes.

    Raises:
        ValueError: Columns that do not have N rows, or boxes that are not (N, 4).
        TypeError: numpy arrays and torch tensors mixed.
    """

    scores: Either
    labels: Either
    classes: tuple[str, ...] = ()
    extra: Mapping[str, Either] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_boxes()
        self._check_column("scores", "float32")
        self._check_column("labels", "int64")
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, value in self.extra.items():
            if len(value) != len(self):
                raise ValueError(f"Detections: extra[{name!r}] must have {len(self)} rows, got {len(value)}")

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def empty(cls, classes: tuple[str, ...] = ()) -> Detections:
        """No detections (numpy)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), classes)

    @classmethod
    def merge(cls, found: Iterable[Detections]) -> Detections:
        """Those of several looks at one image as one, best first; of equal scores the earlier one comes first.

        Args:
            found: All numpy or all torch, with the same classes and the same names in ``extra``; empty ones may differ.

        Raises:
            ValueError: They differ in these.
        """
        several = list(found)
        parts = [one for one in several if len(one)] or several[:1] or [cls.empty()]
        first = parts[0]
        if any(one.classes != first.classes or one.extra.keys() != first.extra.keys() for one in parts):
            raise ValueError("only detections of the same classes, with the same extra arrays, can be merged")
        boxes, scores, labels = (
            concatenated([getattr(one, name) for one in parts]) for name in ("boxes", "scores", "labels")
        )
        extra = {name: concatenated([one.extra[name] for one in parts]) for name in first.extra}
        best_first = np.argsort(-as_numpy(scores), kind="stable")
        return cls(boxes, scores, labels, first.classes, extra)[best_first]

    def restored(self, geometry: Geometry, classes: tuple[str, ...]) -> Detections:
        """From input pixels to the original image's, points and masks too, with class names."""
        there = {"points": geometry.points_to_original, "masks": geometry.masks_to_original}
        extra = {name: there[name](value) if name in there else value for name, value in self.extra.items()}
        return replace(self, boxes=geometry.to_original(self.boxes), classes=classes, extra=extra)

    def with_nms(self, iou: float = 0.5, *, class_agnostic: bool = False) -> Detections:
        """Those that no better one of the same class overlaps by more than ``iou``, best first.

        Args:
            iou: From 0 to 1.
            class_agnostic: Boxes of different classes suppress each other too.
        """
        from detkit.ops.suppression import batched_nms, nms

        if class_agnostic:
            return self[nms(self.boxes, self.scores, iou)]
        return self[batched_nms(self.boxes, self.scores, self.labels, iou)]

    @property
    def area(self) -> Either:
        """(N,) float32: of the boxes, square pixels."""
        return self.xywh[:, 2:].prod(1)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[int(label)] if self.classes else str(int(label)) for label in self.labels]

    def filter(self, conf: float = 0.0, classes: int | str | Iterable[int | str] | None = None) -> Detections:
        """Some of them, in the same order.

        Args:
            conf: The lowest score to keep.
            classes: Name or label to keep, or several of these; None: all.

        Raises:
            ValueError: A class name that the model does not know.
        """
        keep = self.scores >= conf
        if classes is not None:
            classes = [classes] if isinstance(classes, (int, str)) else list(classes)
            unknown = [one for one in classes if isinstance(one, str) and one not in self.classes]
            if unknown:
                raise ValueError(f"no class {unknown[0]!r}: {nearest(unknown[0], self.classes)}")
            labels = zip(self.names, self.labels, strict=True)
            chosen = [name in classes or int(label) in classes for name, label in labels]
            keep = keep & convert_kind(chosen, "bool", self.boxes)
        return self[keep]

    def to_records(self) -> list[dict[str, Any]]:
        """The form of ``detect --json``: per detection label (name), label_id, score, box [x1, y1, x2, y2], and where
        it has them points [[x, y], ...] and track_id."""
        d = self.numpy()
        columns = {"label": d.names, "label_id": d.labels.tolist()}
        columns["score"] = d.scores.astype(np.float64).round(5).tolist()
        columns["box"] = d.boxes.astype(np.float64).round(2).tolist()
        if "points" in d.extra:
            columns["points"] = np.asarray(d.extra["points"], np.float64).round(2).tolist()
        if "track_id" in d.extra:
            columns["track_id"] = d.extra["track_id"].tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

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

    def show(self, image: ImageSource) -> Shown:
        """In a notebook, as the last line of a cell: the drawn image above the table.

        Args:
            image: What was looked at: a path, bytes, a Pillow image or a uint8 array (H, W, 3).

        Raises:
            DetkitError: An image that cannot be read.
        """
        from detkit.io.images import as_rgb, image_bytes

        return Shown(image_bytes(self.draw(as_rgb(image)), ".jpg", 90), self._repr_html_())

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><td>{escape(r['label'])}</td><td>{r['score']:.3f}</td><td>{[round(v, 1) for v in r['box']]}</td></tr>"
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
        pixels, sizes = moved(self.pixels, device, non_blocking=non_blocking), moved(self.sizes, device)
        proposals = self.proposals and [moved(boxes, device) for boxes in self.proposals]
        cached = self.cached and [moved(maps, device, non_blocking=non_blocking) for maps in self.cached]
        return replace(self, pixels=pixels, sizes=sizes, proposals=proposals, cached=cached)


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
