"""Seeded parts of a data set that keep the classes balanced.

Iterative stratification: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", 2011, section 3.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.convert import copy_images, write_coco_json, write_yolo_yaml
from detkit.errors import DetkitError
from detkit.io.files import atomic_folder, flat_names, refuse_existing, write_text
from detkit.printed import Printed


def stratify(annotations: Annotations, fractions: Mapping[str, float], seed: int = 0) -> dict[str, np.ndarray]:
    """Image indices of each part, ascending; the same for the same seed.

    Objects of every class, and images without objects, are shared out as the fractions say: the class with the fewest
    objects left is dealt out first, each of its images going to the part that lacks most of that class.

    Args:
        annotations: The labels.
        fractions: Part name to share, all positive, sum 1.
        seed: Of the draws.

    Raises:
        DetkitError: Shares or names that make no sense.
    """
    _check(fractions)
    parts = list(fractions)
    share = np.asarray([fractions[name] for name in parts])
    rng = np.random.default_rng(seed)
    images, classes = len(annotations), len(annotations.classes)
    # The last column stands for images without objects, which are to be spread as well.
    counts = np.zeros((images, classes + 1), dtype=np.int64)
    np.add.at(counts, (annotations.image_index, annotations.labels), 1)
    counts[:, classes] = counts.sum(axis=1) == 0
    wanted = share[:, None] * counts.sum(axis=0)[None, :].astype(np.float64)
    room = share * images
    part_of = np.full(images, -1, dtype=np.int64)
    left = counts.sum(axis=0)
    while (left > 0).any():
        rare = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        chosen = rng.permutation(np.flatnonzero((part_of < 0) & (counts[:, rare] > 0)))
        for image in chosen:
            part = _neediest(wanted[:, rare], room, share, rng)
            part_of[image] = part
            wanted[part] -= counts[image]
            room[part] -= 1
        left -= counts[chosen].sum(axis=0)
    return {name: np.flatnonzero(part_of == i) for i, name in enumerate(parts)}


def _neediest(wanted: np.ndarray, room: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> int:
    # Half an object of a class is no difference; the number of images then decides, relative to the part's share.
    best = np.flatnonzero(wanted >= wanted.max() - 0.5)
    relative = (room / share)[best]
    best = best[relative == relative.max()]
    return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])


def _check(fractions: Mapping[str, float]) -> None:
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or abs(total - 1) > 1e-6:
        given = ", ".join(f"{name} {value:g}" for name, value in fractions.items())
        raise DetkitError("the shares of the parts must be positive and sum to 1", given, "give --val 0.2, say")
    for name in fractions:
        if not name or any(c in name for c in "/\\") or name.startswith("."):
            raise DetkitError(f"{name!r} cannot be the name of a part", do="use letters, digits, - and _")


def write_split(
    annotations: Annotations, parts: Mapping[str, np.ndarray], out: Path | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Writes what makes the parts usable, and returns the files; images and labels stay where they are.

    COCO: STEM-PART.json, with the records as they were. VOC: a list PART.txt (default: in ImageSets/Main). YOLO:
    STEM-PART.txt with the images' paths, and STEM-split.yaml that names them. Class folders, whose parts are folders:
    copies of the images, PART/CLASS/NAME, and the folders are returned.

    Args:
        annotations: The labels, of one source.
        parts: Name to image indices.
        out: Folder; None: beside the source (for class folders a new one must be given).
        overwrite: Replace files that exist.

    Raises:
        DetkitError: A file exists and ``overwrite`` is not set, there are several sources, or their format has no
            parts that can be written.
    """
    source = annotations.source
    if source is None:
        raise DetkitError("only a data set of one source can be split", do="split each of them by itself")
    if source.format == "folders":
        return _copy_folders(annotations, parts, source.path, out, overwrite)
    home = source.path.parent if source.path.is_file() else source.path
    folder = out or (home / "ImageSets" / "Main" if source.format == "voc" else home)
    stem = source.path.stem if source.path.is_file() else source.split or "all"
    stem = stem.removeprefix("instances_")
    names = {"coco": f"{stem}-{{}}.json", "voc": "{}.txt", "yolo": f"{stem}-{{}}.txt"}
    if source.format not in names:
        do = f"write it as another format first: detkit data convert {source.path} --to coco"
        raise DetkitError(f"parts of the format {source.format} cannot be written", str(source.path), do)
    files = [folder / names[source.format].format(part) for part in parts]
    lists = [folder / f"{stem}-split.yaml"] if source.format == "yolo" else []
    for file in (*files, *lists):
        refuse_existing(file, overwrite)  # all of them before the first is written
    for file, rows in zip(files, parts.values(), strict=True):
        subset = annotations.subset(rows)
        if source.format == "coco":
            images = os.path.relpath(source.images, folder) if source.images else None
            write_coco_json(subset, file, overwrite=overwrite, image_folder=images)
        else:
            lines = subset.image_ids if source.format == "voc" else [os.path.abspath(f) for f in subset.files]
            write_text(file, "".join(f"{line}\n" for line in lines), overwrite=overwrite)
    for file in lists:
        places = {part: str(f.absolute()) for part, f in zip(parts, files, strict=True)}
        classes = dict(zip(annotations.class_ids, annotations.classes, strict=True))
        write_yolo_yaml(file, {"path": str(folder.absolute()), **places, "names": classes}, overwrite=overwrite)
    return files + lists


def _copy_folders(
    annotations: Annotations, parts: Mapping[str, np.ndarray], source: Path, out: Path | None, overwrite: bool
) -> list[Path]:
    if out is None or out.resolve().is_relative_to(source.resolve()):
        do = "give --out a new folder outside of it: the images are copied to PART/CLASS/ there"
        raise DetkitError("parts of class folders are folders themselves", str(source), do)
    # Where parts of the source were joined, a name may come twice in a class.
    taken = defaultdict[str, set[str]](set)
    with atomic_folder(out, overwrite) as folder:
        for part, rows in parts.items():
            for file in annotations.subset(rows).files:
                home = Path(file).parent.name
                copy_images([file], flat_names([file], taken[home]), folder / part / home)
    return [out / part for part in parts]


def split_annotations(
    annotations: Annotations,
    fractions: Mapping[str, float],
    out: Path | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Printed:
    """Draws parts with balanced classes and writes them.

    Args:
        annotations: The labels, of one source.
        fractions: Part name to share, all positive, sum 1; see ``stratify``.
        out: Folder; None: beside the source; see ``write_split``.
        seed: Of the draws.
        overwrite: Replace files that exist.

    Returns:
        As facts: files (or folders), and of each part its images, counted, and its classes, how many boxes of each.

    Raises:
        DetkitError: As ``stratify`` and ``write_split``.
    """
    parts = stratify(annotations, fractions, seed)
    drawn = {name: annotations.subset(rows) for name, rows in parts.items()}
    boxes = {name: dict(zip(a.classes, a.class_counts().tolist(), strict=True)) for name, a in drawn.items()}
    files = write_split(annotations, parts, out, overwrite=overwrite)
    said = [f"{name}: {len(a)} images, {len(a.labels)} boxes" for name, a in drawn.items()]
    for label in annotations.classes:
        said.append(f"  {label}: " + ", ".join(f"{name} {table[label]}" for name, table in boxes.items()))
    facts = {name: {"images": len(a), "classes": boxes[name]} for name, a in drawn.items()}
    return Printed({"files": files, "parts": facts}, [*said, *map(str, files)])
