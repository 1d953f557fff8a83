"""Detections as files, read and written: COCO results, JSON lines, YOLO txt, PASCAL VOC, CSV and MOT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit import registry
from detkit.interfaces import Writer
from detkit.io.sources import Frame
from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.io.detections.reader import read_detections as read_detections
    from detkit.structures import Detections

__getattr__, __dir__ = lazy_names(__name__, {".reader": ["read_detections"]})

WRITERS = {
    "jsonl": "detkit.io.detections.writers:JsonLinesWriter",
    "coco": "detkit.io.detections.writers:CocoWriter",
    "yolo": "detkit.io.detections.writers:YoloWriter",
    "voc": "detkit.io.detections.writers:VocWriter",
    "csv": "detkit.io.detections.writers:CsvWriter",
    "mot": "detkit.io.detections.mot:MotWriter",
    "masks": "detkit.io.detections.masks:MasksWriter",
}


def open_writer(
    kind: str,
    path: str | Path,
    classes: Sequence[str],
    class_ids: Sequence[int | str] | None = None,
    overwrite: bool = False,
    *,
    image_ids: Mapping[str, int | str] | None = None,
) -> Writer:
    """The writer of this kind, a context manager with ``write(frame, detections)``.

    Args:
        kind: A key of ``WRITERS``, an entry point of ``detkit.writers``, or "package.module:Name".
        path: A file for jsonl, coco, csv and mot; a folder for yolo, voc and masks.
        classes: The model's names.
        class_ids: Category id of each label in the data set it was trained on; None: the label itself.
        overwrite: Replace what exists.
        image_ids: A data set's image id by source or by file name, for COCO results.

    Raises:
        DetkitError: There is no such kind; on entering, if the output exists (without ``overwrite``) or cannot be
            written.
    """
    ids = range(len(classes)) if class_ids is None else class_ids
    part, options = registry.find_part("writer", kind), {"image_ids": image_ids or {}, "overwrite": overwrite}
    writer: Writer = registry.make(part, str(kind), Path(path), tuple(classes), class_ids=tuple(ids), **options)
    return writer


def record_of(frame: Frame, detections: Detections) -> dict[str, Any]:
    """One line of ``detect --json``: source, frame, width, height, detections (see ``Detections.to_records``)."""
    return {
        "source": frame.source,
        "frame": frame.index,
        "width": frame.width,
        "height": frame.height,
        "detections": detections.to_records(),
    }
