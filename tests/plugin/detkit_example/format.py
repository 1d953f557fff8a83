"""A data format: a folder with boxes.csv, one line ``image,x1,y1,x2,y2,label`` per object, and the images beside it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.reading import ImageTable, ObjectTable, assemble, size_of
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat


class CsvFolder(DatasetFormat):
    """boxes.csv with absolute, exclusive corners in pixels; an empty label is an image without objects."""

    looked_for = "a folder with boxes.csv"

    def recognises(self, path: Path) -> bool:
        """True for a folder that holds boxes.csv."""
        return (path / "boxes.csv").is_file()

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """All objects of the file; lines that are no boxes are counted as findings.

        Raises:
            DetkitError: A part is asked for, or the file names no image.
        """
        if split is not None:
            raise DetkitError(f"boxes.csv has no part {split!r}", str(path), "leave --split out")
        with (path / "boxes.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        if not rows:
            raise DetkitError("boxes.csv names no image", str(path / "boxes.csv"), "write image,x1,y1,x2,y2,label")
        findings = Findings()
        names = sorted({row[0] for row in rows})
        classes = tuple(sorted({row[5] for row in rows if len(row) == 6 and row[5]}))
        image, xywh, labels, lines = [], [], [], []
        for number, row in enumerate(rows, start=1):
            if len(row) == 6 and not row[5]:
                continue
            try:
                name, x1, y1, x2, y2, label = row[0], *map(float, row[1:5]), row[5]
            except (ValueError, IndexError):
                findings.add("line is no box (dropped)", f"boxes.csv, line {number}")
                continue
            image.append(names.index(name))
            xywh.append((x1, y1, x2 - x1, y2 - y1))
            labels.append(classes.index(label))
            lines.append(number)
        files = [str((images or path) / name) for name in names]
        objects = ObjectTable(
            np.array(image, dtype=np.int64),
            np.array(xywh, dtype=np.float64).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            lambda row: f"boxes.csv, line {lines[row]}",
        )
        sizes = np.array([size_of(file) for file in files], dtype=np.int32).reshape(-1, 2)
        source = Source("example_csv", path)
        return assemble(objects, ImageTable(list(names), files, sizes), dict(enumerate(classes)), findings, source)
