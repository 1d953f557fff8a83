"""What targets and detections have in common: boxes, and columns with a row for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from detkit.arrays import Either, as_numpy, concatenated, convert_kind, moved, row_index

if TYPE_CHECKING:
    import torch

BACKGROUND, IGNORED = 254, 255  # of a mask's pixels: they belong to no class; nothing is asked of them


@dataclass(slots=True, frozen=True, eq=False)
class Rows:
    """Boxes, and what subclasses know of each: indexed, moved and converted together."""

    boxes: Either

    def _check_boxes(self) -> None:
        boxes = convert_kind(self.boxes, "float32", self.boxes)
        if boxes.shape == (0,):
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{type(self).__name__}: boxes must be (N, 4) xyxy, got shape {tuple(boxes.shape)}")
        object.__setattr__(self, "boxes", boxes)

    def _check_column(self, name: str, dtype: str, default: Either = None) -> None:
        value = getattr(self, name)
        value = convert_kind(default if value is None else value, dtype, self.boxes)
        if value.ndim != 1 or len(value) != len(self):
            raise ValueError(f"{type(self).__name__}: {name} must be ({len(self)},), got shape {tuple(value.shape)}")
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Self:
        """The rows of a mask, a slice, indices or one index; always of the same type."""
        index = row_index(index, self.boxes)
        return self._each(lambda column: column[index], whole=("mask",))

    @property
    def xywh(self) -> Either:
        """(N, 4) float32: left, top, width and height, pixels."""
        return concatenated([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    def to(self, device: torch.device | str) -> Self:
        """The same as torch tensors on ``device``."""
        return self._each(lambda column: moved(column, device))

    def numpy(self) -> Self:
        """The same as numpy arrays."""
        return self._each(as_numpy)

    def _each(self, change: Callable[[Either], Either], whole: tuple[str, ...] = ()) -> Self:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in values.items():
            if name == "extra":
                values[name] = {key: change(column) for key, column in value.items()}
            elif name not in ("classes", "image_label", "known", *whole) and value is not None:
                values[name] = change(value)
        return type(self)(**values)
