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
from detkit.data.yolo_layout import layout_of
from detkit.errors import DetkitError
from detkit.io.files import atomic_folder, refuse_existing, write_lines
from detkit.printed import Printed, counted


def stratify(annotations: Annotations, fractions: Mapping[str, float], seed: int = 0) -> dict[str, np.ndarray]:
    """Image indices of each part, ascending; the same for the same seed.

    Objects of every class, and images without objects, are shared out as the fractions say: the class with the fewest
    objects left is dealt out first, each of its images going to the part that lacks most of that class; a class of
    enough images is wanted in every part. Then images that matter least to the classes move, until each part has its
    share of the images, to a tenth of the smallest part, and at least one.

    Args:
        annotations: The labels.
        fractions: Part name to share, all positive, sum 1.
        seed: Of the draws.

    Raises:
        DetkitError: Shares or names that make no sense, or fewer images than parts.
    """
    _check(fractions)
    if len(annotations) < len(fractions):
        what = f"too few images for {len(fractions)} parts: {len(annotations)}"
        raise DetkitError(what, do="give more images, or ask for fewer parts")
    parts = list(fractions)
    share = np.asarray([fractions[name] for name in parts])
    rng = np.random.default_rng(seed)
    images, classes = len(annotations), len(annotations.classes)
    # The last column stands for images without objects, which are to be spread as well.
    counts = np.zeros((images, classes + 1), dtype=np.int64)
    np.add.at(counts, (annotations.image_index, annotations.labels), 1)
    counts[:, classes] = counts.sum(axis=1) == 0
    wanted = share[:, None] * counts.sum(axis=0)[None, :].astype(np.float64)
    wanted = np.maximum(wanted, (counts > 0).sum(axis=0) >= len(parts))
    room = _sizes(share, images)
    spare = room.min() // 10
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
    while room.max() > spare:
        _move(part_of, counts, wanted, room)
    return {name: np.flatnonzero(part_of == i) for i, name in enumerate(parts)}


def _move(part_of: np.ndarray, counts: np.ndarray, wanted: np.ndarray, room: np.ndarray) -> None:
    """Moves a few images from the part that has most too many to the one that lacks most; all but ``counts`` change."""
    over, under = int(room.argmin()), int(room.argmax())
    rows = np.flatnonzero(part_of == over)
    cost = ((wanted[over] + counts[rows]) ** 2).sum(axis=1) + ((wanted[under] - counts[rows]) ** 2).sum(axis=1)
    moved = rows[np.argsort(cost, kind="stable")[: max(int(min(-room[over], room[under])) // 20, 1)]]
    part_of[moved] = under
    for part, sign in ((over, 1), (under, -1)):
        wanted[part] += sign * counts[moved].sum(axis=0)
        room[part] += sign * len(moved)


def _sizes(share: np.ndarray, images: int) -> np.ndarray:
    """How many images each part gets: its share, rounded so that they sum up (largest remainders), and at least one."""
    sizes = np.maximum(np.floor(share * images + 1e-9), 1)
    while sizes.sum() < images:
        sizes[np.argmax(share * images - sizes)] += 1
    while sizes.sum() > images:
        sizes[np.argmax(sizes - share * images)] -= 1
    return sizes


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
    annotations: Annotations, parts: Mapping[str, np.ndarray], out: Path, *, overwrite: bool = False
) -> list[Path]:
    """Writes what makes the parts usable, and returns the files; images and labels stay where they are.

    COCO: STEM-PART.json, with the records as they were. VOC: a list PART.txt (in its own folder: in ImageSets/Main).
    YOLO: STEM-PART.txt with the images' paths, and STEM-split.yaml that names them. Class folders, whose parts are
    folders: copies of the images, PART/CLASS/NAME, and the folders are returned.

    Args:
        annotations: The labels, of one source.
        parts: Name to image indices.
        out: Folder, which may be the data's own; for class folders a new one.
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
    own = source.format == "voc" and out.resolve() == source.path.resolve()
    folder = out / "ImageSets" / "Main" if own else out
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
            write_lines(file, lines, overwrite=overwrite)
    for file in lists:
        places = {part: str(f.absolute()) for part, f in zip(parts, files, strict=True)}
        classes = dict(zip(annotations.class_ids, annotations.classes, strict=True))
        value = {"path": str(folder.absolute()), **places, "names": classes}
        if points := layout_of(source.path).keypoints:
            value["kpt_shape"] = list(points)
        write_yolo_yaml(file, value, overwrite=overwrite)
    return files + lists


def _copy_folders(
    annotations: Annotations, parts: Mapping[str, np.ndarray], source: Path, out: Path, overwrite: bool
) -> list[Path]:
    if out.resolve().is_relative_to(source.resolve()):
        do = "give --out a new folder outside of it: the images are copied to PART/CLASS/ there"
        raise DetkitError("parts of class folders are folders themselves", str(source), do)
    # Where parts of the source were joined, a name may come twice in a class.
    taken = defaultdict[str, set[str]](set)
    with atomic_folder(out, overwrite) as folder:
        for part, rows in parts.items():
            for file in annotations.subset(rows).files:
                home = Path(file).parent.name
                copy_images([file], folder / part / home, taken=taken[home])
    return [out / part for part in parts]


def split_annotations(
    annotations: Annotations,
    fractions: Mapping[str, float],
    out: Path | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Printed:
    """Draws parts with balanced classes, and writes them where ``out`` says.

    Args:
        annotations: The labels, of one source.
        fractions: Part name to share, all positive, sum 1; see ``stratify``.
        out: Folder, see ``write_split``; None: nothing is written.
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
    files = [] if out is None else write_split(annotations, parts, out, overwrite=overwrite)
    said = [f"{name}: {counted(len(a), 'image')}, {counted(len(a.labels), 'box')}" for name, a in drawn.items()]
    for label in annotations.classes:
        said.append(f"  {label}: " + ", ".join(f"{name} {table[label]}" for name, table in boxes.items()))
    facts = {name: {"images": len(a), "classes": boxes[name]} for name, a in drawn.items()}
    written = list(map(str, files)) or ["nothing is written: say where with --out FOLDER, which may be the data's own"]
    return Printed({"files": files, "parts": facts}, [*said, *written])
