"""COCO's json written: the records of a COCO source verbatim, those of other sources made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.coco import IMAGE_FOLDER, RawFile, load_json, mapped
from detkit.io.files import atomic_path, flat_names

Lists = dict[str, Iterable[bytes | msgspec.Raw]]


def records_of(a: Annotations) -> RawFile:
    """The records of the source as bytes.

    Raises:
        ValueError: There are several sources.
    """
    if a.source is None:
        raise ValueError("annotations of several sources have no records")
    with mapped(a.source.path) as data:
        try:
            return msgspec.json.decode(data, type=RawFile)
        except msgspec.DecodeError:
            value = load_json(a.source.path, data)

    def raw(record: object) -> msgspec.Raw:
        # NaN, the usual reason to be here, lies in records that the reader dropped.
        return msgspec.Raw(json.dumps(record, ensure_ascii=False).encode())

    lists = {key: [raw(r) for r in value.get(key) or []] for key in ("images", "categories", "annotations")}
    return RawFile(**lists, info=raw(value.get("info") or {}), licenses=raw(value.get("licenses") or []))


def write_coco_json(
    annotations: Annotations, path: Path, *, overwrite: bool = False, image_folder: str | None = None
) -> None:
    """Writes one COCO json; records that come from one are kept verbatim.

    Args:
        annotations: The labels.
        path: File to write.
        overwrite: Replace it if it exists.
        image_folder: Relative to ``path``, kept in "info" where the file does not lie where its images are looked for.
    """
    info: dict[str, object] = {}
    licenses = b"[]"
    if annotations.source is not None and annotations.source.format == "coco":
        raw = records_of(annotations)
        old = msgspec.json.decode(raw.info)
        info |= old if isinstance(old, dict) else {}
        licenses, lists = bytes(raw.licenses), _kept(annotations, raw)
    else:
        lists = _made(annotations)
    if image_folder is not None:
        info[IMAGE_FOLDER] = Path(image_folder).as_posix()
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        file.write(b'{"info":' + msgspec.json.encode(info) + b',"licenses":' + licenses)
        for key, records in lists.items():
            file.write(b',"' + key.encode() + b'":[')
            for i, record in enumerate(records):
                file.write((b",\n" if i else b"\n") + bytes(record))
            file.write(b"]")
        file.write(b"}\n")


def _kept(a: Annotations, raw: RawFile) -> Lists:
    by_id = {msgspec.json.decode(record).get("id"): record for record in reversed(raw.categories)}
    return {
        "images": (raw.images[row] for row in a.image_rows),
        "annotations": (raw.annotations[row] for row in np.sort(a.rows)),
        "categories": [by_id[i] for i in a.class_ids],
    }


def _made(a: Annotations) -> Lists:
    encode = msgspec.json.Encoder().encode
    # Names from other formats are not numbers: COCO's ids are made anew, and the name stays in file_name.
    numbers = [i if isinstance(i, int) else k + 1 for k, i in enumerate(a.image_ids)]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    images = zip(numbers, flat_names(a.files), a.sizes.tolist(), strict=True)
    columns = zip(a.image_index.tolist(), a.labels.tolist(), a.xywh.tolist(), a.area.tolist(), a.crowd.tolist(),
                  a.difficult.tolist(), strict=True)  # fmt: skip
    annotations = (
        {"id": row, "image_id": numbers[image], "category_id": label + 1, "bbox": box, "area": area,
         "iscrowd": int(crowd), **({"difficult": 1} if difficult else {})}
        for row, (image, label, box, area, crowd, difficult) in enumerate(columns, 1)
    )  # fmt: skip
    return {
        "images": (encode({"id": i, "file_name": name, "width": w, "height": h}) for i, name, (h, w) in images),
        "annotations": map(encode, annotations),
        "categories": [encode({"id": i, "name": name}) for i, name in enumerate(a.classes, 1)],
    }
