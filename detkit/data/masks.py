"""Masks of semantic segmentation: a folder of PNGs beside the images, or the polygons and RLE of a COCO json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.coco_masks import region, segmentations
from detkit.data.listing import PARTS, files_in, of_suffix, part_of, parts_of
from detkit.data.names import explain_match, match_classes, match_some
from detkit.data.reading import ImageTable, ObjectTable, assemble, check_part, short_names, size_of
from detkit.data.voc import CLASSES as VOC_CLASSES
from detkit.errors import DetkitError
from detkit.interfaces import DatasetFormat
from detkit.io.detections.lookup import Lookup
from detkit.io.files import names_in, text_of
from detkit.io.masks import read_mask, voc_colours
from detkit.printed import counted
from detkit.rows import BACKGROUND, IGNORED
from detkit.structures import Detections
from detkit.tables import Results

FOLDERS = ("masks", "SegmentationClass", "SegmentationClassPNG")  # where masks lie
NAMES = ("labelmap.txt", "classes.txt")  # CVAT's with colours, or a name a line
_VOC = ("background", *VOC_CLASSES)
_STRANGE = 254  # the number of a colour that is no class's
_NAMELESS = "number without a name, or colour outside of the palette, in a mask (its pixels are ignored)"
_NOTHING = {"background", "_background_"}
_UNASKED = {"", "void", "ignore", "ignored", "unlabelled", "unlabeled"}


class Palette(NamedTuple):
    """What the numbers in masks mean.

    Attributes:
        names: By number.
        colours: (numbers, 3) uint8, in masks that are colours.
    """

    names: tuple[str, ...]
    colours: np.ndarray

    def numbers(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8 of a mask as ``read_mask`` gives it; colours that are none of these become 254."""
        if mask.ndim == 2:
            return mask
        numbers = np.append(np.arange(len(self.colours)), IGNORED)
        mine, codes = (
            colours.astype(np.int64) @ (65536, 256, 1)
            for colours in (np.concatenate([self.colours, voc_colours()[IGNORED:]]), mask)
        )
        order = np.argsort(mine, kind="stable")
        place = order[np.searchsorted(mine[order], codes).clip(max=len(mine) - 1)]
        return np.where(mine[place] == codes, numbers[place], _STRANGE).astype(np.uint8)

    def nameless(self, mask: np.ndarray, numbers: np.ndarray) -> str:
        """How many pixels have no name, of a mask and its ``numbers``, and what the first of them is; empty: none."""
        if not len(found := mask[(numbers >= len(self.names)) & (numbers != IGNORED)]):
            return ""
        first = f"number {found[0]}" if mask.ndim == 2 else "colour {},{},{}".format(*found[0])
        return f"{counted(len(found), 'pixel')}, the first of {first}"

    def is_class(self, number: int) -> bool:
        """True if its pixels belong to a class; else they are background or ignored."""
        return number < len(self.names) and self.names[number].lower() not in (*_NOTHING, *_UNASKED)

    def table(self) -> np.ndarray:
        """(256,) uint8: what pixels of each number are where it belongs to no class."""
        nothing = [k < len(self.names) and self.names[k].lower() not in _UNASKED for k in range(256)]
        return np.where(nothing, BACKGROUND, IGNORED).astype(np.uint8)


class MaskFile(NamedTuple):
    """Where the mask of an image is; the numbers of classes are the ``rows`` of its annotations' objects."""

    path: str
    palette: Palette

    def numbers(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8; DetkitError as ``read_mask``."""
        return self.palette.numbers(read_mask(self.path, size))


def label_map(annotations: Annotations, i: int, size: tuple[int, int]) -> np.ndarray:
    """The mask of image ``i``, see ``Target.mask``.

    Pixels of classes that were left out are background. Pixels of a COCO json that objects of two classes claim are
    ignored, as torchvision's reference training does.

    Args:
        annotations: With masks.
        i: Index of the image.
        size: Its (height, width).

    Returns:
        (height, width) uint8.

    Raises:
        DetkitError: A mask of another size, or none.
    """
    source = (annotations.masks or ())[i]
    rows = slice(int(annotations.offsets[i]), int(annotations.offsets[i + 1]))
    labels, places = annotations.labels[rows], annotations.rows[rows]
    if isinstance(source, MaskFile):
        table = source.palette.table()
        table[places] = labels
        return table[source.numbers(size)]
    mask, records = np.full(size, BACKGROUND, np.uint8), segmentations(source)
    for label, place in zip(labels.tolist(), places.tolist(), strict=True):
        inside = region(records[place], size, f"{source}: annotation number {place}")
        mask[inside] = np.where((mask == BACKGROUND) | (mask == label), label, IGNORED)[inside]
    return mask


def check_masks(annotations: Annotations, where: str) -> None:
    """Reads the first image's mask.

    Raises:
        DetkitError: There are none, or too many classes for one byte a pixel.
    """
    if annotations.masks is None:
        do = "give a folder of images/ and masks/ (docs/segmentation.md), or COCO polygons; of VOC: format: masks"
        raise DetkitError("the data has no masks to learn", where, do)
    if len(annotations.classes) > BACKGROUND:
        raise DetkitError(f"{len(annotations.classes)} classes are too many for masks", where, f"take {BACKGROUND}")
    label_map(annotations, 0, (int(annotations.sizes[0, 0]), int(annotations.sizes[0, 1])))


def label_maps(annotations: Annotations, i: int, found: Detections) -> tuple[np.ndarray, np.ndarray]:
    """What labels and answer say of each pixel of image ``i``: (H, W) uint8 both, see ``Target.mask``.

    Args:
        annotations: With masks.
        i: Index of the image.
        found: Numpy, with ``extra["masks"]``; classes are matched by name, others are background.
    """
    table = match_classes(found.classes, annotations.classes)
    masks = found.extra.get("masks")
    height, width = annotations.sizes[i] if masks is None or not len(masks) else masks.shape[1:]
    truth = label_map(annotations, i, (int(height), int(width)))
    answer = np.full(truth.shape, BACKGROUND, np.uint8)
    for label, inside in zip(found.labels.tolist(), () if masks is None else masks, strict=True):
        if table[label] >= 0:
            answer[inside] = table[label]
    return truth, answer


def pixel_counts(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """(C + 1, C + 1) int64: pixels of ``label_maps`` by label and by answer, of C classes; the last is background."""
    labelled, answered = (np.where(x == BACKGROUND, classes, x)[truth != IGNORED] for x in (truth, answer))
    pairs = labelled.astype(np.int64) * (classes + 1) + answered
    return np.bincount(pairs, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def read_answers(folder: Path, annotations: Annotations) -> tuple[Results, list[str]]:
    """What PNGs called as their images answer (``detect --format masks`` writes them), and notes for a person.

    Args:
        folder: With classes.txt, as a data set of masks has it.
        annotations: With masks.

    Raises:
        DetkitError: Data without masks, a PNG of no image or of another size than its image, no class in common.
    """
    check_masks(annotations, annotations.files[0] if annotations.files else "data")
    palette, lookup = read_palette(folder), Lookup(annotations, endings=False)
    files = {lookup.image(path.stem, str(path)): str(path) for path in sorted(folder.glob("*.png"))}
    numbers = list(filter(palette.is_class, range(len(palette.names))))
    names, wanted = [palette.names[k] for k in numbers], annotations.classes
    places = match_some("the masks have", names, "the data", wanted, str(folder), "correct the names in classes.txt")
    table = np.full(256, BACKGROUND, np.uint8)
    table[numbers] = [BACKGROUND if place < 0 else place for place in places]
    strange = dict[int, str]()

    def maps(i: int) -> tuple[np.ndarray, np.ndarray]:
        size = int(annotations.sizes[i, 0]), int(annotations.sizes[i, 1])
        truth = label_map(annotations, i, size)
        if i not in files:
            return truth, np.full(size, BACKGROUND, np.uint8)
        mask = read_mask(files[i], size)
        if nameless := palette.nameless(mask, found := palette.numbers(mask)):
            strange[i] = f"{files[i]}: {nameless}"
        return truth, table[found]

    pixels = np.stack([pixel_counts(*maps(i), len(wanted)) for i in range(len(annotations))])
    notes = explain_match(names, wanted)
    if missing := len(annotations) - len(files):
        notes.append(f"{missing} of {len(annotations)} images have no mask in {folder.name}: all of it is wrong there")
    if strange:
        first = next(iter(strange.values()))
        notes.append(f"{counted(len(strange), 'mask')} with a number or colour that has no name (no answer): {first}")
    none, labels = np.zeros(0), np.zeros(0, np.int64)
    return Results(labels, labels, np.zeros((0, 4)), none, pixels=pixels, maps=maps), notes


class MaskFormat(DatasetFormat):
    """PNGs in ``masks`` or ``SegmentationClass``, called as their images; parts are folders, or VOC's lists.

    One object per image and class stands for its pixels: its box bounds them, its area is their number.
    """

    looked_for = "a folder of images/, masks/ with PNGs of the same names, and classes.txt"

    def recognises(self, path: Path) -> bool:
        """True for a folder with PNGs in such a folder, images elsewhere, and names of the classes."""
        if not path.is_dir() or not (masks := _masks(path)) or len(of_suffix(files_in(path))) == len(masks):
            return False
        return _names_file(path) is not None or _is_vocs(path)

    def splits(self, path: Path) -> list[str]:
        """VOC's lists in ImageSets/Segmentation, else folders called train, val, test."""
        return sorted(p.stem for p in _lists(path).glob("*.txt")) or parts_of(_masks(path))

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """Reads every mask once, for its classes. See ``DatasetFormat.read``."""
        check_part(split, self.splits(path), path)
        palette, findings, chosen = read_palette(path), Findings(), _chosen(path, split)
        classes: dict[int | str, str] = {k: name for k, name in enumerate(palette.names) if palette.is_class(k)}
        label_of = {k: label for label, k in enumerate(classes)}
        files, sizes, masks, rows = list[str](), list[tuple[int, int]](), list[MaskFile](), list[list[int]]()
        for name, image in zip(chosen, _images_of(chosen, images or path), strict=True):
            mask, size = MaskFile(str(path / name), palette), (0, 0) if image is None else size_of(image)
            if image is None or not all(size):
                findings.add("mask without an image that can be read (left out)", mask.path)
                continue
            try:
                pixels = read_mask(mask.path, size)
            except DetkitError as error:
                findings.add(
                    "mask that does not fit its image, or is damaged (left out)", f"{error.where}: {error.what}"
                )
                continue
            if nameless := palette.nameless(pixels, numbers := palette.numbers(pixels)):
                findings.add(_NAMELESS, f"{mask.path}: {nameless}")
            for k in filter(label_of.__contains__, np.flatnonzero(np.bincount(numbers.ravel())).tolist()):
                inside = numbers == k
                y, x = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
                box = (x[0], y[0], x[-1] + 1 - x[0], y[-1] + 1 - y[0])
                rows.append([len(files), label_of[k], k, inside.sum(), *box])
            files.append(image)
            sizes.append(size)
            masks.append(mask)
        if not files:
            raise DetkitError("no mask of this folder fits an image", str(path), findings.first("look into the folder"))
        image_of, labels, numbers_of, area, *box_of = np.array(rows, np.int64).reshape(-1, 8).T
        objects = ObjectTable(
            image_of, np.column_stack(box_of), labels, lambda row: files[image_of[row]], area=area.astype(np.float64)
        )
        found = ImageTable(short_names(files), files, np.array(sizes, np.int32))
        made = assemble(objects, found, classes, findings, Source("masks", path, split))
        return replace(made, rows=numbers_of[made.rows], masks=masks)


def read_palette(path: Path) -> Palette:
    """What the numbers and colours of a data set's masks mean: its ``NAMES``, or VOC's for VOC's folders.

    Raises:
        DetkitError: Nothing says it.
    """
    file = _names_file(path)
    if file is None:
        if _is_vocs(path):
            return Palette(_VOC, voc_colours(len(_VOC)))
        do = "write classes.txt there: the name of number 0, of 1 and so on, a line each; background and void are known"
        raise DetkitError("nothing says which classes the numbers in the masks are", str(path), do)
    rows = [line.split(":") for line in text_of(file).splitlines() if not line.startswith("#")]
    names, colours = tuple(row[0].strip() for row in rows), voc_colours(256)[: len(rows)]
    if len(rows) > _STRANGE or len(set(names)) < len(names):
        raise DetkitError(f"names must be unique, and {_STRANGE} at most", str(file), "correct the list")
    for k, row in enumerate(rows):
        if len(row) > 1 and (parts := re.fullmatch(r"\s*(\d+),(\d+),(\d+)\s*", row[1])):
            colours[k] = [min(int(value), 255) for value in parts.groups()]
    return Palette(names, colours)


def _masks(path: Path) -> list[str]:
    return [name for name in of_suffix(files_in(path), [".png"]) if _is_mask(name)]


def _is_mask(name: str) -> bool:
    """In masks/, masks/train/ or train/masks/, say."""
    first, *rest = name.split("/")
    return (first in FOLDERS and bool(rest)) or (first in PARTS and len(rest) > 1 and rest[0] in FOLDERS)


def _names_file(path: Path) -> Path | None:
    return next((path / name for name in NAMES if (path / name).is_file()), None)


def _is_vocs(path: Path) -> bool:
    return any("SegmentationClass" in name for name in _masks(path))


def _lists(path: Path) -> Path:
    return path / "ImageSets" / "Segmentation"


def _chosen(path: Path, split: str | None) -> list[str]:
    """The masks of a part."""
    masks, listed = _masks(path), _lists(path) / f"{split}.txt"
    if split is None or not listed.is_file():
        return [name for name in masks if split is None or part_of(name) == split]
    wanted = {line.split()[0] for line in names_in(listed)}
    return [name for name in masks if PurePosixPath(name).stem in wanted]


def _images_of(masks: Sequence[str], folder: Path) -> list[str | None]:
    """The image of each mask: that of its name, in a folder of the same part where there is one."""
    known: dict[tuple[str | None, str], str] = {}
    for file in of_suffix(files_in(folder)):
        if not _is_mask(file):
            stem = PurePosixPath(file).stem
            known[part_of(file), stem] = known[None, stem] = str(folder / file)
    keys = ((part_of(name), PurePosixPath(name).stem) for name in masks)
    return [known.get((part, stem), known.get((None, stem))) for part, stem in keys]
