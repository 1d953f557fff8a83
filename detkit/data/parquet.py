"""Parquet files with images in them, as Hugging Face's ``datasets`` writes them: a row per image, with its bytes in the
column ``image`` and its boxes in ``objects`` (https://huggingface.co/docs/datasets/object_detection).

Rows of a Parquet file cannot be read one by one, so the images are copied once into tar files in the cache, from which
training reads at any place.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations, Source
from detkit.data.label_files import LabelFilesFormat, LabelTable
from detkit.data.reading import size_of
from detkit.errors import DetkitError
from detkit.io.cache import cache_folder
from detkit.io.files import atomic_path, reading
from detkit.io.shards import opened_parquet
from detkit.io.stored import identity_of

_BOXES = ("bbox", "bboxes", "boxes", "box")
_LABELS = ("category", "categories", "category_id", "label", "labels", "class")
_ROWS = 64  # whose images are in memory at a time
_Row = tuple[int, str, Sequence[float], tuple[int, int], str]  # image, class, box, width and height, place


class ParquetFormat(LabelFilesFormat):
    """Files called as their parts (train-00000-of-00002.parquet, train/0000.parquet), in a folder; or one file."""

    name = "parquet"
    looked_for = "Parquet files of images and boxes (Hugging Face's datasets)"

    def places(self, path: Path) -> dict[str, Path]:
        """The first file of each part."""
        files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
        parts = {_part(file): file for file in reversed(files) if file.suffix == ".parquet"}
        if path.is_dir() and parts:
            with _opened(next(iter(parts.values()))) as file:
                parts = parts if "image" in file.schema_arrow.names else {}
        return dict(sorted(parts.items()))

    def annotations(
        self, path: Path, places: Mapping[str, Path], chosen: Sequence[str], source: Source
    ) -> list[Annotations]:
        """Those of each chosen part; whether boxes are corners is told by all parts together."""
        read = {place: self._read(place) for place in places.values()}
        corners = _are_corners([row for _, rows in read.values() for row in rows])
        for table, rows in read.values():
            if corners:
                found = "box is x1, y1, x2, y2 (told by those that else left their image)"
                table.findings.add(found, str(table.place), count=len(rows), note=True)
            for index, name, (x, y, a, b), _, where in rows:
                table.add(index, name, (x, y, a, b) if corners else (x, y, x + a, y + b), where)
        self._tables = {place: table for place, (table, _) in read.items()}
        return super().annotations(path, places, chosen, source)

    def table(self, place: Path) -> LabelTable:
        """What was read of one part."""
        return self._tables[place]

    def _read(self, place: Path) -> tuple[LabelTable, list[_Row]]:
        """Images and rows of all files of a part."""
        files = sorted(file for file in place.parent.glob("*.parquet") if _part(file) == _part(place))
        key = hashlib.sha256("".join(identity_of(str(file)) for file in files).encode()).hexdigest()[:16]
        folder = cache_folder() / "parquet" / key
        table, found = LabelTable(place, [folder]), list[_Row]()
        for file in files:
            tar = folder / f"{file.stem}.tar"
            with _opened(file) as parquet:
                if "image" not in parquet.schema_arrow.names:
                    do = "a row holds image (its bytes) and objects (bbox, category)"
                    raise DetkitError("this Parquet file has no column image", str(file), do)
                if not tar.is_file():
                    count = _unpack(parquet, tar)
                    table.findings.add("image copied from Parquet into the cache", f"{tar}", count=count, note=True)
                names = _class_names(parquet)
                columns = [name for name in parquet.schema_arrow.names if name != "image"]
                for number, row in enumerate(_rows(parquet, columns)):
                    where, image = f"{file}, row {number}", f"{file.stem}-{number:07d}"
                    height, width = size_of(f"{tar}/{image}")
                    index = table.image(image, width, height)
                    for box, label in _objects(row):
                        if label is None or len(box or ()) != 4 or not all(isinstance(v, (int, float)) for v in box):
                            table.findings.add("object without a box of four numbers and a class (dropped)", where)
                            continue
                        known = isinstance(label, int) and 0 <= label < len(names)
                        found.append((index, names[label] if known else str(label), box, (width, height), where))
        return table, found

    def listed(self, path: Path) -> list[str]:
        """Those of the ClassLabel in the first file."""
        with _opened(next(iter(self.places(path).values()), path)) as file:
            return _class_names(file)


def _are_corners(rows: Sequence[_Row]) -> bool:
    """COCO's boxes are x, y, width, height; where some leave their images, and corners never would, all are corners."""
    boxes = np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([row[3] for row in rows], dtype=np.float64).reshape(-1, 2) + 1
    inside = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes).all()
    return bool(inside and (boxes[:, :2] + boxes[:, 2:] > sizes).any())


def _part(file: Path) -> str:
    return file.parent.name if file.stem.isdecimal() else file.stem.partition("-")[0]


def _objects(row: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Box and class of each, from a struct of lists, a list of structs, or columns of the row itself."""
    found = row.get("objects") or row.get("annotations") or row
    if isinstance(found, Mapping):
        boxes, labels = (next((found[k] for k in keys if found.get(k) is not None), ()) for keys in (_BOXES, _LABELS))
        yield from zip_longest(boxes, labels)  # one without the other is told, not lost
    else:
        for one in found:
            yield tuple(next((one[k] for k in keys if one.get(k) is not None), None) for keys in (_BOXES, _LABELS))  # type: ignore[misc]


def _class_names(parquet: Any) -> list[str]:
    """The names of the ClassLabel among the features that ``datasets`` keeps in a file's metadata."""
    text = (parquet.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    left: list[Any] = [json.loads(text).get("info", {}).get("features", {})]
    while left:
        one = left.pop()
        if isinstance(one, dict) and one.get("_type") == "ClassLabel":
            return list(map(str, one.get("names", ())))
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return []


def _rows(parquet: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in parquet.iter_batches(_ROWS, columns=columns):
        yield from batch.to_pylist() if columns else [{}] * batch.num_rows


def _unpack(parquet: Any, tar: Path) -> int:
    """Writes the images of a file, named by their rows; returns how many there are."""
    with atomic_path(tar, overwrite=True) as temporary, tarfile.open(temporary, "w") as out:
        for number, row in enumerate(_rows(parquet, ["image"])):
            image = row["image"]
            data = (image.get("bytes") if isinstance(image, dict) else image) or b""
            member = tarfile.TarInfo(f"{tar.stem}-{number:07d}")
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return int(parquet.metadata.num_rows)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A Parquet file; DetkitError where it is none."""
    with reading(str(file)), opened_parquet(file.open("rb"), str(file), "download it again") as parquet:
        yield parquet
