"""Writing data sets: COCO, VOC, YOLO, csv and labelme from any format, counting by name what the new one cannot hold.

The records of a COCO source go verbatim into a COCO json; those of other sources are made.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.coco import IMAGE_FOLDER, RawFile, key_of, load_json, mapped
from detkit.data.labelme import CLASS_LIST
from detkit.errors import DetkitError
from detkit.io.detections.writers import voc_xml
from detkit.io.files import atomic_folder, atomic_path, common_folder, flat_names, write_lines, write_text
from detkit.printed import Printed, counted

Lists = dict[str, Iterable[bytes | msgspec.Raw]]
_WITHOUT_FLAGS = ("yolo", "csv")  # crowds would be objects there: they are left out
_NOTHING = (b"null", b"[]", b"{}")
_PLAIN = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult"}


def convert_annotations(
    parts: Mapping[str, Annotations], to: str, out: Path, *, overwrite: bool = False, link: bool = False
) -> Printed:
    """Writes the parts as one data set of another format.

    Args:
        parts: Name to labels.
        to: "coco", "voc", "yolo", "csv" or "labelme".
        out: Folder; images are copied into it. For COCO a name that ends in .json writes just that file, and the
            images stay where they are.
        overwrite: Replace files of the same names.
        link: Symbolic links in place of copies.

    Returns:
        As facts: out, images and boxes, counted, and lost: findings of what the new format could not hold.

    Raises:
        DetkitError: An output exists without ``overwrite``, an image cannot be copied or lies outside the data's image
            folder; then nothing is left of the output.
    """
    if to not in _WRITERS:
        raise DetkitError(f"unknown format {to!r}", "--to", f"the formats are {', '.join(_WRITERS)}")
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
        if to != "coco":
            _count_lost(part, to, lost)
    if single:
        a = next(iter(parts.values()))
        source = _coco_source(a)
        home = str(source.images) if source else common_folder(a.files)
        write_coco_json(a, out, overwrite=overwrite, image_folder=os.path.relpath(home, out.parent))
    else:
        with atomic_folder(out, overwrite) as folder:
            _WRITERS[to](parts, folder, link, lost)
    boxes = sum(len(a.labels) - (int(a.crowd.sum()) if to in _WITHOUT_FLAGS else 0) for a in parts.values())
    images = sum(map(len, parts.values()))
    facts = {"out": out, "images": images, "boxes": boxes, "lost": lost.as_list()}
    held = [f"{to} cannot hold:", *lost.lines()] if lost else []
    return Printed(facts, [f"{counted(images, 'image')} and {counted(boxes, 'box')} written to {out}", *held])


def _refuse_outside(a: Annotations) -> None:
    """No label file brings an image into the copy that is not the data set's own; YOLO's lists may name any folder."""
    if a.source is None or a.source.images is None or a.source.format == "yolo":
        return
    root = os.path.join(os.path.abspath(a.source.images), "")
    for file in a.files:
        if not os.path.abspath(file).startswith(root):
            do = f"give --images a folder that holds all images, which {root} does not, or write a single COCO .json"
            raise DetkitError("a file_name points outside the image folder", file, do)


def _count_lost(a: Annotations, to: str, lost: Findings) -> None:
    if to != "labelme":
        lost.add(f"crowd regions ({'written as difficult' if to == 'voc' else 'left out'})", count=int(a.crowd.sum()))
    if to in _WITHOUT_FLAGS:
        lost.add("difficult flags (the objects are written)", count=int((a.difficult & ~a.crowd).sum()))
    boxes = a.xywh[:, 2] * a.xywh[:, 3]
    lost.add("areas that are not the box's", count=int((np.abs(a.area - boxes) > 1e-3 * np.maximum(boxes, 1)).sum()))
    source = _coco_source(a)
    if source is None or not source.path.is_file():
        lost.add("points of objects", count=0 if a.points is None else len(a.points))
        lost.add("weights of objects", count=0 if a.weight is None else int((a.weight != 1).sum()))
        return
    lost.add("image ids (the files' names are the ids)", count=len(a))
    if list(a.class_ids) != list(range(1, len(a.classes) + 1)):
        lost.add("category ids (numbered anew)", count=len(a.classes))
    records = _records_of(source.path).annotations
    kept = (msgspec.json.decode(records[row], type=dict[str, msgspec.Raw]).items() for row in a.rows)
    counts = Counter(
        key for items in kept for key, value in items if key not in _PLAIN and bytes(value) not in _NOTHING
    )
    for key, count in counts.items():
        lost.add(f"{key} of annotations", count=count)


def copy_images(
    files: Sequence[str],
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    taken: set[str] | None = None,
    link: bool = False,
) -> Sequence[str]:
    """Copies a data set's images.

    Args:
        files: Their paths.
        folder: Made if it is not there.
        names: What each is called in ``folder``; two entries of one name are one image. None: see ``flat_names``.
        taken: See ``flat_names``.
        link: Symbolic links in place of copies.

    Returns:
        The names.

    Raises:
        DetkitError: An image is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = flat_names(files, taken) if names is None else names
    for file, name in zip(files, names, strict=True):
        to = folder / name
        if not os.path.isfile(file):
            raise DetkitError("an image of the data set is missing", file, "find the others with detkit data check")
        if os.path.lexists(to):  # two entries of one image
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.symlink(os.path.abspath(file), to)
        else:
            shutil.copyfile(file, to)
    return names


class _Object(NamedTuple):
    label: int
    name: str
    corners: list[float]  # x1, y1, x2, y2
    crowd: bool
    difficult: bool


def _objects(a: Annotations, i: int) -> list[_Object]:
    """Those of image ``i``."""
    rows = slice(int(a.offsets[i]), int(a.offsets[i + 1]))
    columns = (column[rows].tolist() for column in (a.labels, a.xywh, a.crowd, a.difficult))
    return [_Object(k, a.classes[k], [x, y, x + w, y + h], *on) for k, (x, y, w, h), *on in zip(*columns, strict=True)]


def _write_coco(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for part, a in parts.items():
        source = _coco_source(a)
        names = [os.path.relpath(file, source.images) for file in a.files] if source else None
        copy_images(a.files, out / part, names=names, link=link)
        write_coco_json(a, out / "annotations" / f"instances_{part}.json")


def _write_yolo(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for part, a in parts.items():
        for i, name in enumerate(copy_images(a.files, out / "images" / part, link=link)):
            write_lines(out / "labels" / part / f"{os.path.splitext(name)[0]}.txt", _yolo_lines(a, i, lost))
    places = {part: f"images/{part}" for part in parts}
    write_yolo_yaml(out / "data.yaml", {"path": ".", **places, "names": dict(enumerate(_classes(parts)))})


def write_yolo_yaml(path: Path, value: Mapping[str, object], *, overwrite: bool = False) -> None:
    """Writes a data.yaml, keys in their order."""
    import yaml

    write_text(path, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True), overwrite=overwrite)


def _yolo_lines(a: Annotations, i: int, lost: Findings) -> Iterator[str]:
    """Label lines of image ``i``: class, centre and size as fractions; crowds are left out, boxes clipped."""
    height, width = a.sizes[i].tolist()
    for label, _, corners, crowd, _ in _objects(a, i):
        if crowd:
            continue
        if not (height and width):
            lost.add("boxes of an image of unknown size (left out)", a.files[i])
            continue
        x1, y1, x2, y2 = inside = [*(max(v, 0.0) for v in corners[:2]), *map(min, corners[2:], (width, height))]
        if inside != corners:
            lost.add("coordinates outside the image (clipped)")
        cx, cy, bw, bh = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        yield f"{label} {cx:.9g} {cy:.9g} {bw:.9g} {bh:.9g}"


def _write_voc(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    """Corners one-based again, fractions kept; crowds become difficult."""
    taken: set[str] = set()
    for part, a in parts.items():
        names = copy_images(a.files, out / "JPEGImages", taken=taken, link=link)
        stems = [os.path.splitext(name)[0] for name in names]
        for i, (name, stem, (height, width)) in enumerate(zip(names, stems, a.sizes.tolist(), strict=True)):
            objects = []
            for one in _objects(a, i):
                corners = np.add(one.corners, (1, 1, 0, 0))
                elements = {"name": one.name, "difficult": int(one.difficult or one.crowd)}
                objects.append((elements, [np.format_float_positional(v, 6, trim="-") for v in corners]))
            write_text(out / "Annotations" / f"{stem}.xml", voc_xml(name, width, height, objects))
        write_lines(out / "ImageSets" / "Main" / f"{part}.txt", stems)
    write_lines(out / "classes.txt", _classes(parts))


def _write_csv(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    """PART.csv with the images' paths, and classes.csv, which keras-retinanet reads too."""
    for part, a in parts.items():
        rows: list[Sequence[object]] = [("image", "x1", "y1", "x2", "y2", "label")]
        for i, name in enumerate(copy_images(a.files, out / part, link=link)):
            boxes = [(*one.corners, one.name) for one in _objects(a, i) if not one.crowd]
            rows += [(f"{part}/{name}", *box) for box in boxes or [("",) * 5]]
        _write_rows(out / f"{part}.csv", rows)
    _write_rows(out / "classes.csv", [(name, i) for i, name in enumerate(_classes(parts))])


def _write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _write_labelme(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    """A folder for each part; crowds and difficult objects are flags of their shapes."""
    file: dict[str, object] = {"version": "5.5.0", "flags": {}, "imageData": None}
    rectangle = {"group_id": None, "description": "", "shape_type": "rectangle"}
    for part, a in parts.items():
        for i, name in enumerate(copy_images(a.files, out / part, link=link)):
            shapes = []
            for _, label, (x1, y1, x2, y2), crowd, difficult in _objects(a, i):
                flags = {flag: True for flag, on in (("crowd", crowd), ("difficult", difficult)) if on}
                shapes.append({"label": label, "points": [[x1, y1], [x2, y2]], **rectangle, "flags": flags})
            height, width = a.sizes[i].tolist()
            value = {**file, "shapes": shapes, "imagePath": name, "imageHeight": height, "imageWidth": width}
            place = out / part / f"{os.path.splitext(name)[0]}.json"
            write_text(place, json.dumps(value, ensure_ascii=False, indent=1))
    write_lines(out / CLASS_LIST, _classes(parts))


def _classes(parts: Mapping[str, Annotations]) -> Sequence[str]:
    return next(iter(parts.values())).classes


_WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo, "csv": _write_csv, "labelme": _write_labelme}


def _coco_source(a: Annotations) -> Source | None:
    """Where the labels came from, if that is one COCO json whose records go on as they are."""
    return a.source if a.source is not None and a.source.format == "coco" else None


def _records_of(path: Path) -> RawFile:
    """The records of a COCO json as bytes."""
    with mapped(path) as data:
        try:
            return msgspec.json.decode(data, type=RawFile)
        except (msgspec.DecodeError, UnicodeDecodeError):
            value = load_json(path, data, finite=True)

    def raw(record: object) -> msgspec.Raw:
        return msgspec.Raw(json.dumps(record, ensure_ascii=False).encode(errors="replace"))  # half a character is none

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
    licenses, names = b"[]", flat_names(annotations.files)
    if source := _coco_source(annotations):
        raw = _records_of(source.path)
        old = msgspec.json.decode(raw.info)
        info |= old if isinstance(old, dict) else {}
        licenses, lists = bytes(raw.licenses), _kept(annotations, source, raw)
    else:
        lists = _made(annotations, names, range(1, len(annotations.classes) + 1))
    if image_folder is not None:
        info[IMAGE_FOLDER] = Path(image_folder).as_posix()
    _write_json(path, overwrite, info, lists, licenses)


def write_labelled(
    annotations: Annotations, path: Path, records: Sequence[Mapping[str, object]], *, overwrite: bool = False
) -> None:
    """Writes one COCO json whose records are made, with more keys, and whose images stay where they are.

    Args:
        annotations: The labels; their class ids are numbers.
        path: File to write.
        records: What each object's record says besides.
        overwrite: Replace it if it exists.
    """
    folder = common_folder(annotations.files)
    names = [Path(os.path.relpath(file, folder)).as_posix() for file in annotations.files]
    info = {IMAGE_FOLDER: Path(os.path.relpath(folder, path.absolute().parent)).as_posix()}
    _write_json(path, overwrite, info, _made(annotations, names, annotations.class_ids, records))


def _write_json(path: Path, overwrite: bool, info: Mapping[str, object], lists: Lists, licenses: bytes = b"[]") -> None:
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        file.write(b'{"info":' + msgspec.json.encode(info) + b',"licenses":' + licenses)
        for key, records in lists.items():
            file.write(b',"' + key.encode() + b'":[')
            for i, record in enumerate(records):
                file.write((b",\n" if i else b"\n") + bytes(record))
            file.write(b"]")
        file.write(b"}\n")


class _Named(msgspec.Struct):
    file_name: str | None = None


def _image_record(raw: msgspec.Raw, file: str, folder: str) -> bytes | msgspec.Raw:
    """An image's record as it is; if its file was not found by its file_name, with the name by which it was."""
    said = msgspec.json.decode(raw, type=_Named).file_name or ""
    if os.path.normpath(os.path.join(folder, said)) == file:
        return raw
    name = Path(os.path.relpath(file, folder)).as_posix()
    return msgspec.json.encode({**json.loads(bytes(raw)), "file_name": name})


def _kept(a: Annotations, source: Source, raw: RawFile) -> Lists:
    folder, files = str(source.images), map(os.path.normpath, a.files)
    categories = [(json.loads(bytes(record)), record) for record in reversed(raw.categories)]
    by_id = {key_of(value.get("id")): record for value, record in categories if isinstance(value, dict)}
    return {
        "images": (_image_record(raw.images[i], file, folder) for i, file in zip(a.image_rows, files, strict=True)),
        "annotations": (raw.annotations[row] for row in np.sort(a.rows)),
        "categories": [by_id[i] for i in a.class_ids],
    }


def _made(
    a: Annotations, names: Sequence[str], ids: Sequence[int | str], records: Sequence[Mapping[str, object]] = ()
) -> Lists:
    """Records of images called ``names`` and classes of these ``ids``; ``records``: what each object's says besides."""
    encode = msgspec.json.Encoder().encode
    # Names from other formats are not numbers: COCO's ids are made anew, and the name stays in file_name.
    numbers = [i if isinstance(i, int) else k + 1 for k, i in enumerate(a.image_ids)]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    images = zip(numbers, names, a.sizes.tolist(), strict=True)
    weights = [{}] * len(a.labels) if a.weight is None else [{"weight": weight} for weight in a.weight.tolist()]
    columns = zip(a.image_index.tolist(), a.labels.tolist(), a.xywh.tolist(), a.area.tolist(), a.crowd.tolist(),
                  a.difficult.tolist(), records or weights, strict=True)  # fmt: skip
    annotations = (
        {"id": row, "image_id": numbers[image], "category_id": ids[label], "bbox": box, "area": area,
         "iscrowd": int(crowd), **({"difficult": 1} if difficult else {}), **more}
        for row, (image, label, box, area, crowd, difficult, more) in enumerate(columns, 1)
    )  # fmt: skip
    return {
        "images": (encode({"id": i, "file_name": name, "width": w, "height": h}) for i, name, (h, w) in images),
        "annotations": map(encode, annotations),
        "categories": [encode({"id": i, "name": name}) for i, name in zip(ids, a.classes, strict=True)],
    }
