"""Segmented images as PNG masks, as data sets of masks have them (docs/segmentation.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detkit.errors import DetkitError
from detkit.io.detections.writers import FolderWriter
from detkit.io.draw import colour_of
from detkit.io.masks import mask_bytes
from detkit.io.sources import Frame

if TYPE_CHECKING:
    from detkit.structures import Detections


class MasksWriter(FolderWriter):
    """A palette PNG per frame: 0 where no class is, else the label plus 1; the names stand in classes.txt."""

    suffix, unlisted = ".png", ("background",)

    def _text(self, frame: Frame, detections: Detections) -> bytes:
        found = detections.numpy()
        if len(found) and "masks" not in found.extra:
            raise DetkitError("these detections have boxes, but no masks", "--format masks", "choose csv, coco or yolo")
        numbers = np.zeros((frame.height, frame.width), np.uint8)
        for label, mask in zip(found.labels.tolist(), found.extra.get("masks", ()), strict=True):
            numbers[mask] = label + 1
        return mask_bytes(numbers, [(0, 0, 0), *map(colour_of, range(len(self.classes)))])
