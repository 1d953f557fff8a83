"""Images labelled as a whole, by one object that fills each of them: a folder per class, or no classes at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.listing import count_skipped, files_in, of_suffix
from detkit.data.reading import ImageTable, ObjectTable, assemble, check_part, size_of
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.images import paths_in

_PARTS = ("train", "val", "valid", "test")
# Folders that detection sets keep beside each other.
_NO_CLASSES = {"images", "labels", "annotations", "masks", "jpegimages", "visualization", "segmentationclass",
               "segmentationclasspng", "segmentationobject", "segmentationobjectpng"}  # fmt: skip

_LABELS = {".txt", ".xml", ".json"}


class FolderFormat(DatasetFormat):
    """Class folders with images, or parts that are folders of such."""

    looked_for = "a folder of class folders with images (or train/, val/ of those)"

    def recognises(self, path: Path) -> bool:
        """True for a folder with images in at least two folders, or with parts that together hold two classes."""
        of_parts = {name for part in self.splits(path) for name in _classes(path / part, part=True)}
        return len(of_parts or _classes(path)) > 1

    def splits(self, path: Path) -> list[str]:
        """Those of train, val, valid and test that hold class folders."""
        return [name for name in _PARTS if _classes(path / name, part=True)]

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads the folder, or one part of it; all parts have the classes of the whole. See ``DatasetFormat.read``."""
        if images is not None:
            raise DetkitError("class folders hold their images themselves", str(images), "leave --images out")
        parts = self.splits(path)
        check_part(split, parts, path)
        homes = [path / name for name in ([split] if split else parts)] or [path]
        found_in = [_classes(path / part, part=True) for part in parts] or [_classes(path)]
        classes = tuple(sorted({name for names in found_in for name in names}))
        findings = Findings()
        folders = [(home / name, label) for home in homes for label, name in enumerate(classes)]
        for home in homes:
            loose = list(map(str, paths_in(home)))
            findings.add("image outside of every class folder (left out)", *loose, count=len(loose), note=True)
        base = homes[0] if len(homes) == 1 else path
        return _whole_images(folders, classes, base, findings, Source("folders", path, split))


class ImagesFormat(DatasetFormat):
    """Images without labels, each a whole of the one class ``image``: to learn from images alone.

    It is never recognised, only named (``format: images``), so that labels are not lost by accident.
    """

    looked_for = "any folder of images, whose labels are not wanted (by name only: format images)"

    def recognises(self, path: Path) -> bool:
        """False."""
        return False

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads all images below the folder. See ``DatasetFormat.read``."""
        if not path.is_dir():
            raise DetkitError("there is no such folder of images", str(path), "give the folder")
        check_part(split, (), path)
        return _whole_images([(images or path, 0)], ("image",), images or path, Findings(), Source("images", path))


def _whole_images(
    folders: Sequence[tuple[Path, int]], classes: tuple[str, ...], base: Path, findings: Findings, source: Source
) -> Annotations:
    """The images below each folder as one object of the folder's label that fills them; ids relative to ``base``."""
    files: list[Path] = []
    sizes, labels = [], []
    for folder, label in folders:
        names = files_in(folder) if folder.is_dir() else ()
        count_skipped((str(folder / name) for name in names), findings)
        for file in (folder / name for name in of_suffix(names)):
            if all(size := size_of(str(file))):
                files.append(file)
                sizes.append(size)
                labels.append(label)
            else:
                findings.add("image that cannot be read (left out)", str(file))
    if not files:
        what = "no image of this folder can be read" if findings else "there is no image in this folder"
        raise DetkitError(what, str(source.path), findings.first("give one with images"))
    ids: list[int | str] = [file.relative_to(base).as_posix() for file in files]
    found = ImageTable(ids, [str(file) for file in files], np.array(sizes, np.int32))
    xywh = np.pad(found.sizes[:, ::-1].astype(np.float64), ((0, 0), (2, 0)))
    objects = ObjectTable(np.arange(len(files)), xywh, np.array(labels), found.files.__getitem__)
    return replace(assemble(objects, found, dict(enumerate(classes)), findings, source), image_labels=True)


def _classes(path: Path, part: bool = False) -> list[str]:
    """Names of the folders in ``path`` that hold images and may be classes, sorted; a ``part`` has no parts itself,
    so a class of it may be called train."""
    if not path.is_dir():
        return []
    folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    names = {p.name for p in folders if p.name.lower() not in _NO_CLASSES and paths_in(p)}
    stems = {image.stem for name in names for image in paths_in(path / name)}
    others = (file for p in folders if p.name not in names for file in p.iterdir())
    if any(file.suffix.lower() in _LABELS and file.stem in stems for file in others):
        return []  # labels of a detection set: KITTI's image_2 and label_2
    classes = names if part else {name for name in names if name.lower() not in _PARTS}
    # Beside several others "train" with images in it is VOC's and COCO's class: as a part it would hold folders.
    return sorted(classes | ({"train"} & names if len(classes) > 1 else set()))
