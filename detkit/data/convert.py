"""Writing data sets: any of the three formats from any other, counting by name what the new one cannot hold."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from detkit.data.annotations import Annotations, Finding, Findings
from detkit.data.coco_writer import records_of, write_coco_json
from detkit.errors import DetkitError
from detkit.io.detections.writers import voc_xml
from detkit.io.files import atomic_folder, flat_names, write_text

_PLAIN = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult"}


@dataclass(slots=True, frozen=True)
class Converted:
    """What was written.

    Args:
        out: File or folder.
        format: Its format.
        images: How many.
        boxes: How many.
        lost: By name, what the new format could not hold.
    """

    out: Path
    format: str
    images: int
    boxes: int
    lost: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"out": self.out, "images": self.images, "boxes": self.boxes, "lost": [asdict(f) for f in self.lost]}

    def lines(self) -> list[str]:
        """For a person."""
        lost = [f"{self.format} cannot hold:"] if self.lost else []
        lost += [line for finding in self.lost for line in finding.lines()]
        return [f"{self.images} images and {self.boxes} boxes written to {self.out}", *lost]


def convert_annotations(
    parts: Mapping[str, Annotations], to: str, out: Path, *, overwrite: bool = False, link: bool = False
) -> Converted:
    """Writes the parts as one data set of another format.

    Args:
        parts: Name to labels.
        to: "coco", "voc" or "yolo".
        out: Folder; images are copied into it. For COCO a name that ends in .json writes just that file, and the
            images stay where they are.
        overwrite: Replace files of the same names.
        link: Symbolic links in place of copies.

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
        _write_single(next(iter(parts.values())), out, overwrite)
    else:
        with atomic_folder(out, overwrite) as folder:
            _WRITERS[to](parts, folder, link, lost)
    boxes = sum(len(a.labels) - (int(a.crowd.sum()) if to == "yolo" else 0) for a in parts.values())
    return Converted(out, to, sum(map(len, parts.values())), boxes, lost.as_list())


def _refuse_outside(a: Annotations) -> None:
    """No label file brings an image into the copy that is not the data set's own; YOLO's lists may name any folder."""
    if a.source is None or a.source.images is None or a.source.format not in ("coco", "voc"):
        return
    root = os.path.join(os.path.abspath(a.source.images), "")
    for file in a.files:
        if not os.path.abspath(file).startswith(root):
            do = f"give --images a folder that holds all images, which {root} does not, or write a single COCO .json"
            raise DetkitError("a file_name points outside the image folder", file, do)


def _count_lost(a: Annotations, to: str, lost: Findings) -> None:
    lost.add(f"crowd regions ({'written as difficult' if to == 'voc' else 'left out'})", count=int(a.crowd.sum()))
    if to == "yolo":
        lost.add("difficult flags (the objects are written)", count=int((a.difficult & ~a.crowd).sum()))
    boxes = a.xywh[:, 2] * a.xywh[:, 3]
    lost.add("areas that are not the box's", count=int((np.abs(a.area - boxes) > 1e-3 * np.maximum(boxes, 1)).sum()))
    if a.source is None or a.source.format != "coco" or not a.source.path.is_file():
        return
    if list(a.class_ids) != list(range(1, len(a.classes) + 1)):
        lost.add("category ids (numbered anew)", count=len(a.classes))
    records = records_of(a).annotations
    kept = (msgspec.json.decode(records[row]).items() for row in a.rows)
    counts = Counter(key for items in kept for key, value in items if key not in _PLAIN and value not in (None, [], {}))
    for key, count in counts.items():
        lost.add(f"{key} of annotations", count=count)


def copy_images(files: Sequence[str], names: Sequence[str], folder: Path, link: bool = False) -> None:
    """Copies a data set's images.

    Args:
        files: Their paths.
        names: What each is called in ``folder``; two entries of one name are one image.
        folder: Made if it is not there.
        link: Symbolic links in place of copies.

    Raises:
        DetkitError: An image is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
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


def _write_single(a: Annotations, out: Path, overwrite: bool) -> None:
    if a.source is not None and a.source.format == "coco" and a.source.images is not None:
        folder = str(a.source.images)
    else:
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in a.files])
    write_coco_json(a, out, overwrite=overwrite, image_folder=os.path.relpath(folder, out.parent))


def _write_coco(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for name, a in parts.items():
        if a.source is not None and a.source.format == "coco" and a.source.images is not None:
            names = [os.path.relpath(file, a.source.images) for file in a.files]
        else:
            names = flat_names(a.files)
        copy_images(a.files, names, out / name, link)
        write_coco_json(a, out / "annotations" / f"instances_{name}.json")


def _write_yolo(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    for part, a in parts.items():
        names = flat_names(a.files)
        copy_images(a.files, names, out / "images" / part, link)
        for i, name in enumerate(names):
            label = out / "labels" / part / (os.path.splitext(name)[0] + ".txt")
            write_text(label, "".join(_yolo_lines(a, i, lost)))
    places = {part: f"images/{part}" for part in parts}
    names_of = dict(enumerate(next(iter(parts.values())).classes))
    write_yolo_yaml(out / "data.yaml", {"path": ".", **places, "names": names_of})


def write_yolo_yaml(path: Path, value: Mapping[str, object], *, overwrite: bool = False) -> None:
    """Writes a data.yaml, keys in their order."""
    import yaml

    write_text(path, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True), overwrite=overwrite)


def _yolo_lines(a: Annotations, i: int, lost: Findings) -> Iterator[str]:
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


def _write_voc(parts: Mapping[str, Annotations], out: Path, link: bool, lost: Findings) -> None:
    names = flat_names([f for a in parts.values() for f in a.files])
    copy_images([f for a in parts.values() for f in a.files], names, out / "JPEGImages", link)
    stems = [os.path.splitext(name)[0] for name in names]
    done = 0
    for part, a in parts.items():
        for i in range(len(a)):
            write_text(out / "Annotations" / f"{stems[done + i]}.xml", _voc_xml(a, i, names[done + i]))
        listed = "".join(f"{stem}\n" for stem in stems[done : done + len(a)])
        write_text(out / "ImageSets" / "Main" / f"{part}.txt", listed)
        done += len(a)
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in next(iter(parts.values())).classes))


def _voc_xml(a: Annotations, i: int, name: str) -> str:
    """The annotation file of image ``i``: corners one-based again, fractions kept; crowds become difficult."""
    height, width = (int(v) for v in a.sizes[i])
    objects = []
    for row in range(int(a.offsets[i]), int(a.offsets[i + 1])):
        x, y, w, h = (float(v) for v in a.xywh[row])
        elements = {"name": a.classes[a.labels[row]], "difficult": int(a.difficult[row] or a.crowd[row])}
        objects.append((elements, [_short(value) for value in (x + 1, y + 1, x + w, y + h)]))
    return voc_xml(name, width, height, objects)


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(round(value, 6))


_WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
