"""Writing data sets: any of the three formats from any other, counting by name what the new one cannot hold."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Finding, Findings
from detkit.data.coco import IMAGE_FOLDER, RawFile, load_json, mapped
from detkit.errors import DetkitError
from detkit.io.files import atomic_folder, atomic_path, write_text

_PLAIN = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult"}


@dataclass(slots=True, frozen=True)
class Converted:
    """What was written: files, numbers, and by name what the new format could not hold."""

    out: Path
    images: int
    boxes: int
    lost: list[Finding] = field(default_factory=list)


def convert(
    parts: dict[str, Annotations], to: str, out: Path, *, overwrite: bool = False, link: bool = False
) -> Converted:
    """Writes the parts (name to annotations) as one data set of format ``to``: "coco", "voc" or "yolo".

    out: folder; images are copied into it (``link``: as symbolic links). For COCO a name that ends in .json writes
    just that file, and the images stay where they are. Raises DetkitError if an output exists without ``overwrite``,
    and for an image that cannot be copied or lies outside the data's image folder; then nothing is left of the
    output.
    """
    if to not in WRITERS:
        raise DetkitError(f"unknown format {to!r}", "--to", f"the formats are {', '.join(WRITERS)}")
    single = out.suffix.lower() == ".json"
    if single and (to != "coco" or len(parts) > 1):
        what = "only COCO is one file" if to != "coco" else f"one json cannot hold {len(parts)} parts"
        raise DetkitError(what, str(out), "give a folder to --out, or one --split")
    sources = [a.source.path.resolve() for a in parts.values() if a.source is not None]
    if not single and any(path.is_relative_to(out.resolve()) for path in sources):
        raise DetkitError("the output would replace the data set itself", str(out), "give another folder to --out")
    lost = Findings()
    for part in parts.values():
        if not single:
            _refuse_outside(part)
        count_lost(part, to, lost)
    if single:
        _write_single(next(iter(parts.values())), out, overwrite)
    else:
        with atomic_folder(out, overwrite) as folder:
            WRITERS[to](parts, folder, link, lost)
    boxes = sum(len(a.labels) - (int(a.crowd.sum()) if to == "yolo" else 0) for a in parts.values())
    return Converted(out, sum(map(len, parts.values())), boxes, lost.as_list())


def _refuse_outside(a: Annotations) -> None:
    """No label file brings an image into the copy that is not the data set's own; YOLO's lists may name any folder."""
    if a.source is None or a.source.images is None or a.source.format not in ("coco", "voc"):
        return
    root = os.path.join(os.path.abspath(a.source.images), "")
    for file in a.files:
        if not os.path.abspath(file).startswith(root):
            do = f"give --images a folder that holds all images, which {root} does not, or write a single COCO .json"
            raise DetkitError("a file_name points outside the image folder", file, do)


def count_lost(annotations: Annotations, to: str, lost: Findings) -> None:
    """Counts what format ``to`` cannot hold of these annotations."""
    a = annotations
    if to == "coco":
        return
    if to == "voc":
        lost.add("crowd regions (written as difficult)", count=int(a.crowd.sum()))
    else:
        lost.add("crowd regions (left out)", count=int(a.crowd.sum()))
        lost.add("difficult flags (the objects are written)", count=int((a.difficult & ~a.crowd).sum()))
    boxes = a.xywh[:, 2] * a.xywh[:, 3]
    lost.add("areas that are not the box's", count=int((np.abs(a.area - boxes) > 1e-3 * np.maximum(boxes, 1)).sum()))
    if a.source is not None and a.source.format == "coco" and a.source.path.is_file():
        ids = all(isinstance(i, int) for i in a.class_ids) and list(a.class_ids) == list(range(1, len(a.classes) + 1))
        lost.add("category ids (numbered anew)", count=0 if ids else len(a.classes))
        _count_keys(a, lost)


def _count_keys(a: Annotations, lost: Findings) -> None:
    records = _records(a).annotations
    counts: dict[str, int] = {}
    for row in a.rows:
        for key, value in msgspec.json.decode(records[row]).items():
            if key not in _PLAIN and value not in (None, [], {}):
                counts[key] = counts.get(key, 0) + 1
    for key, count in counts.items():
        lost.add(f"{key} of annotations", count=count)


def _records(a: Annotations) -> RawFile:
    """The records of the source as bytes."""
    if a.source is None:
        raise ValueError("annotations of several sources have no records")
    path = a.source.path
    with mapped(path) as data:
        try:
            return msgspec.json.decode(data, type=RawFile)
        except msgspec.DecodeError:
            value = load_json(path, data)

    def raw(record: Any) -> msgspec.Raw:
        # NaN, the usual reason to be here, lies in records that the reader dropped.
        return msgspec.Raw(json.dumps(record, ensure_ascii=False).encode())

    lists = {key: [raw(r) for r in value.get(key) or []] for key in ("images", "categories", "annotations")}
    return RawFile(**lists, info=raw(value.get("info") or {}), licenses=raw(value.get("licenses") or []))


def write_coco_json(
    annotations: Annotations, path: Path, *, overwrite: bool = False, image_folder: str | None = None
) -> None:
    """Writes one COCO json; records that come from one are kept verbatim.

    image_folder: relative to ``path``, kept in "info" where the file does not lie where its images are looked for.
    """
    verbatim = annotations.source is not None and annotations.source.format == "coco"
    pieces = _verbatim(annotations) if verbatim else _made(annotations)
    info = pieces["info"][0] if isinstance(pieces["info"], list) else {}
    if image_folder is not None:
        info = {**info, IMAGE_FOLDER: Path(image_folder).as_posix()}
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        file.write(b'{"info":' + msgspec.json.encode(info) + b',"licenses":' + bytes(pieces["licenses"]))
        for key in ("images", "annotations", "categories"):
            file.write(b',"' + key.encode() + b'":[')
            for i, record in enumerate(pieces[key]):
                file.write((b",\n" if i else b"\n") + bytes(record))
            file.write(b"]")
        file.write(b"}\n")


def _verbatim(a: Annotations) -> dict[str, Any]:
    raw = _records(a)
    info = msgspec.json.decode(raw.info)
    by_id = {msgspec.json.decode(r).get("id"): r for r in reversed(raw.categories)}
    return {
        "info": [info if isinstance(info, dict) else {}],
        "licenses": raw.licenses,
        "images": (raw.images[row] for row in a.image_rows),
        "annotations": (raw.annotations[row] for row in np.sort(a.rows)),
        "categories": [by_id[i] for i in a.class_ids],
    }


def _made(a: Annotations) -> dict[str, Any]:
    encode = msgspec.json.Encoder().encode
    # Names from other formats are not numbers: COCO's ids are made anew, and the name stays in file_name.
    numbers = [i if isinstance(i, int) else k + 1 for k, i in enumerate(a.image_ids)]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    names = file_names(a.files)

    def images() -> Iterator[bytes]:
        for number, name, (height, width) in zip(numbers, names, a.sizes.tolist(), strict=True):
            yield encode({"id": number, "file_name": name, "width": width, "height": height})

    def annotations() -> Iterator[bytes]:
        image = a.image_index
        for row in range(len(a.labels)):
            record: dict[str, Any] = {
                "id": row + 1,
                "image_id": numbers[image[row]],
                "category_id": int(a.labels[row]) + 1,
                "bbox": a.xywh[row].tolist(),
                "area": float(a.area[row]),
                "iscrowd": int(a.crowd[row]),
            }
            if a.difficult[row]:
                record["difficult"] = 1
            yield encode(record)

    categories = [encode({"id": i + 1, "name": name}) for i, name in enumerate(a.classes)]
    return {"info": [{}], "licenses": b"[]", "images": images(), "annotations": annotations(), "categories": categories}


def file_names(files: list[str]) -> list[str]:
    """File names without folders; a number is added where two would be the same."""
    taken: set[str] = set()
    names = []
    for file in files:
        stem, suffix = os.path.splitext(os.path.basename(file))
        name, k = stem + suffix, 2
        while name.lower() in taken or os.path.splitext(name)[0].lower() in taken:
            name, k = f"{stem}_{k}{suffix}", k + 1
        # Label files are named by the stem, so stems must differ too.
        taken |= {name.lower(), os.path.splitext(name)[0].lower()}
        names.append(name)
    return names


def copy_image(file: str, to: Path, link: bool = False) -> None:
    """Copies a data set's image, or links to it, and makes the folders. Raises DetkitError if it is not there."""
    if not os.path.isfile(file):
        raise DetkitError("an image of the data set is missing", file, "find the others with detkit data check")
    to.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(to):  # two entries of one image
        return
    if link:
        os.symlink(os.path.abspath(file), to)
    else:
        shutil.copyfile(file, to)


def _write_single(a: Annotations, out: Path, overwrite: bool) -> None:
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in a.files])
    if a.source is not None and a.source.format == "coco" and a.source.images is not None:
        folder = str(a.source.images)
    write_coco_json(a, out, overwrite=overwrite, image_folder=os.path.relpath(folder, out.parent))


def _write_coco(parts: dict[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for name, a in parts.items():
        verbatim = a.source is not None and a.source.format == "coco"
        names = [os.path.relpath(f, a.source.images) for f in a.files] if verbatim else file_names(a.files)  # type: ignore[union-attr, type-var]
        for file, to in zip(a.files, names, strict=True):
            copy_image(file, out / name / to, link)
        write_coco_json(a, out / "annotations" / f"instances_{name}.json")


def _write_yolo(parts: dict[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    import yaml

    first = next(iter(parts.values()))
    for name, a in parts.items():
        (out / "labels" / name).mkdir(parents=True, exist_ok=True)
        for i, (file, to) in enumerate(zip(a.files, file_names(a.files), strict=True)):
            copy_image(file, out / "images" / name / to, link)
            label = out / "labels" / name / (os.path.splitext(to)[0] + ".txt")
            write_text(label, "".join(yolo_lines(a, i, lost)))
    places = {name: f"images/{name}" for name in parts}
    text = yaml.safe_dump({"path": ".", **places, "names": dict(enumerate(first.classes))}, sort_keys=False,
                          allow_unicode=True)  # fmt: skip
    write_text(out / "data.yaml", text)


def yolo_lines(a: Annotations, i: int, lost: Findings) -> Iterator[str]:
    """Label lines of image ``i``: class, centre and size as fractions; crowds are left out, boxes clipped."""
    height, width = (int(v) for v in a.sizes[i])
    for row in range(int(a.offsets[i]), int(a.offsets[i + 1])):
        if a.crowd[row]:
            continue
        if not (height and width):
            lost.add("boxes of an image of unknown size (left out)", a.files[i])
            continue
        x, y, w, h = a.xywh[row]
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if (x1, y1, x2, y2) != (x, y, x + w, y + h):
            lost.add("coordinates outside the image (clipped)")
        cx, cy, bw, bh = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        yield f"{a.labels[row]} {cx:.9g} {cy:.9g} {bw:.9g} {bh:.9g}\n"


def _write_voc(parts: dict[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    names = iter(file_names([f for a in parts.values() for f in a.files]))
    for part, a in parts.items():
        stems = []
        for i, file in enumerate(a.files):
            to = next(names)
            copy_image(file, out / "JPEGImages" / to, link)
            stems.append(os.path.splitext(to)[0])
            write_text(out / "Annotations" / f"{stems[-1]}.xml", voc_xml(a, i, to))
        write_text(out / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{s}\n" for s in stems))
    classes = next(iter(parts.values())).classes
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))


def voc_xml(a: Annotations, i: int, name: str) -> str:
    """The annotation file of image ``i``: corners one-based again, fractions kept; crowds become difficult."""
    height, width = (int(v) for v in a.sizes[i])
    lines = ["<annotation>", f"  <filename>{escape(name)}</filename>"]
    lines.append(f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for row in range(int(a.offsets[i]), int(a.offsets[i + 1])):
        x, y, w, h = (float(v) for v in a.xywh[row])
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{key}>{_short(value)}</{key}>" for key, value in corners)
        difficult = int(a.difficult[row] or a.crowd[row])
        label = escape(a.classes[a.labels[row]])
        lines += ["  <object>", f"    <name>{label}</name>", f"    <difficult>{difficult}</difficult>"]
        lines += [f"    <bndbox>{box}</bndbox>", "  </object>"]
    return "\n".join([*lines, "</annotation>", ""])


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(round(value, 6))


WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
