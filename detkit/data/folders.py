"""A folder a class, with its images: labelled images for classification, as one object that fills each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings, Objects, Source, assemble, size_of
from detkit.errors import DetkitError
from detkit.io.images import paths_in

LOOKED_FOR = "a folder of class folders with images (or train/, val/ of those)"
_PARTS = ("train", "val", "valid", "test")
# Folders that detection sets keep beside each other.
_NO_CLASSES = {"images", "labels", "annotations", "masks"}


def recognises(path: Path) -> bool:
    """True for a folder with images in at least two folders, or with parts that are such folders."""
    return bool(splits(path)) or len(_classes(path)) > 1


def splits(path: Path) -> list[str]:
    """Those of train, val, valid and test that hold class folders."""
    return [name for name in _PARTS if _classes(path / name, part=True)]


def _classes(path: Path, part: bool = False) -> list[str]:
    """Names of the folders in ``path`` that hold images and may be classes, sorted; a ``part`` has no parts itself,
    so a class of it may be called train."""
    if not path.is_dir():
        return []
    folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    names = {p.name for p in folders if p.name.lower() not in _NO_CLASSES and paths_in(p)}
    classes = names if part else {name for name in names if name.lower() not in _PARTS}
    # Beside several others "train" with images in it is VOC's and COCO's class: as a part it would hold folders.
    return sorted(classes | ({"train"} & names if len(classes) > 1 else set()))


def read(path: Path, split: str | None, images: Path | None) -> Annotations:
    """Reads the folder, or one part of it; all parts have the classes of the whole. See detkit.data.dataset.read."""
    if images is not None:
        raise DetkitError("class folders hold their images themselves", str(images), "leave --images out")
    parts = splits(path)
    if split is not None and split not in parts:
        do = f"the parts are {', '.join(parts)}" if parts else "the folder has none: leave --split out"
        raise DetkitError(f"no part {split!r}", str(path), do)
    homes = [path / name for name in ([split] if split else parts)] or [path]
    found_in = [_classes(path / part, part=True) for part in parts] or [_classes(path)]
    classes = tuple(sorted({name for names in found_in for name in names}))
    findings = Findings()
    files: list[Path] = []
    labels: list[int] = []
    for home in homes:
        for label, name in enumerate(classes):
            found = paths_in(home / name) if (home / name).is_dir() else []
            files += found
            labels += [label] * len(found)
    sizes = np.asarray([size_of(str(file)) for file in files], dtype=np.int32).reshape(-1, 2)
    for i in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        findings.add("image that cannot be read (left out)", str(files[i]))
    good = np.flatnonzero((sizes > 0).all(axis=1))
    if not len(good):
        raise DetkitError("no image of this folder can be read", str(path), "look at it with detkit data check")
    kept = [files[i] for i in good.tolist()]
    xywh = np.concatenate([np.zeros((len(good), 2)), sizes[good][:, ::-1]], axis=1)
    base = homes[0] if len(homes) == 1 else path
    objects = Objects(np.arange(len(good)), xywh, np.asarray(labels)[good], lambda row: str(kept[row]))
    return assemble(
        objects,
        [file.relative_to(base).as_posix() for file in kept],
        [str(file) for file in kept],
        sizes[good],
        classes,
        tuple(range(len(classes))),
        findings,
        Source("folders", path, split),
    )
