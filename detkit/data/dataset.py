"""One way in to every labelled data set: ``read`` recognises the format, ``Dataset`` hands out samples."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import numpy as np

from detkit import registry
from detkit.data.annotations import Annotations, Finding, Findings, Source, fills
from detkit.data.listing import PARTS, files_in
from detkit.data.masks import label_map
from detkit.data.reading import UNSAFE, fill_sizes
from detkit.data.resize import moved_target
from detkit.data.unknown import advice, contents
from detkit.errors import DetkitError, nearest_path
from detkit.geometry import Geometry
from detkit.interfaces import DatasetFormat
from detkit.io.decoded import DecodedImages
from detkit.io.images import read_sized
from detkit.io.stored import is_address
from detkit.structures import Sample, Target

__all__ = ["FORMATS", "Annotations", "Dataset", "Finding", "Findings", "Source", "read", "splits"]

FORMATS = {
    "coco": "detkit.data.coco:CocoFormat",
    "voc": "detkit.data.voc:VocFormat",
    "yolo": "detkit.data.yolo:YoloFormat",
    "labelme": "detkit.data.labelme:LabelmeFormat",
    "via": "detkit.data.via:ViaFormat",
    "supervisely": "detkit.data.supervisely:SuperviselyFormat",
    "fiftyone": "detkit.data.fiftyone:FiftyOneFormat",
    "cvat": "detkit.data.cvat:CvatFormat",
    "label_studio": "detkit.data.label_studio:LabelStudioFormat",
    "createml": "detkit.data.createml:CreateMLFormat",
    "csv": "detkit.data.csv_tables:CsvFormat",
    "parquet": "detkit.data.parquet:ParquetFormat",
    "masks": "detkit.data.masks:MaskFormat",
    "folders": "detkit.data.folders:FolderFormat",
    "images": "detkit.data.folders:ImagesFormat",
    "toy": "detkit.data.toy:ToyFormat",
}
_USUAL = {*PARTS, "annotations", "images", "imagesets", "jpegimages", "labels"}  # folders of one data set


def format_of(path: str | Path, name: str | None = None) -> DatasetFormat:
    """The format that ``path`` holds: one of detkit's own, else one of those that other packages announce.

    Args:
        path: File or folder.
        name: The format's name (of either kind, or ``package.module:Name``) where it is not to be recognised.

    Raises:
        DetkitError: Nothing is there, it is none of the known formats (with what was looked for) or several of them; no
            such name.
    """
    path = Path(path)
    files_in.cache_clear()
    if name is not None and path.exists():
        return _made(name, f"format of {path}")
    asked: dict[str, DatasetFormat] = {}
    for names in (FORMATS, registry.installed_parts("format")):
        known = {one: _made(one, f"format {one}") for one in names}
        asked |= known
        found = {one: kind for one, kind in known.items() if kind.recognises(path)}
        if len(found) > 1:
            found.pop("folders", None)  # whatever has labels keeps its images in folders, too
        if len(found) > 1:
            found.pop("masks", None)  # VOC's and COCO's boxes go before the masks beside them
        if len(found) > 1:
            do = f"choose one: {' or '.join(f'--format {one}' for one in found)} (format: NAME in a config)"
            raise DetkitError(f"labels of {len(found)} formats lie here: {', '.join(found)}", str(path), do)
        if found:
            others = {one: kind for one, kind in known.items() if one not in (*found, "folders")}
            if inside := _data_sets_in(path, others):
                only = "" if "folders" in found else f", or --format {next(iter(found))}"
                do = f"give one as DATA: {', '.join(inside)}{only}"
                raise DetkitError("folders of this one are data sets of another format", str(path), do)
            return next(iter(found.values()))
    if not path.exists():
        do = "check the path; detkit help E030 lists what DATA may be"
        raise DetkitError("there is no such data set", str(path), nearest_path(path, do))
    inside = _data_sets_in(path, asked)
    do = f"give one of its folders: {', '.join(inside)}" if inside else advice(path) or _likeliest(path, asked)
    kind, where = ("folder", f"{path}: {contents(path)}") if path.is_dir() else ("file", str(path))
    raise DetkitError(f"this {kind} is not a data set that detkit knows", where, do)


def _made(name: str, where: str) -> DatasetFormat:
    made: DatasetFormat = registry.make(registry.find_part("format", name, where=where), where)
    return made


def _likeliest(path: Path, known: Mapping[str, DatasetFormat]) -> str:
    """Three layouts to try: those first that have files of the endings that lie there."""
    there = {Path(file).suffix.lower() for file in (files_in(path) if path.is_dir() else [path.name])} - {""}
    texts = sorted(
        (one.looked_for for one in known.values()),
        key=lambda text: not any(re.search(rf"\b{ending[1:]}\b", text) for ending in there),
    )
    more = "or name the format: --format NAME (detkit help E030 lists all)"
    return f"give {'; or '.join(texts[:3])}; {more}"


def _data_sets_in(path: Path, known: Mapping[str, DatasetFormat]) -> list[str]:
    """Folders in a folder that are data sets themselves; not those that belong to one: images, train and so on."""
    folders = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    own = [p for p in folders if not p.name.startswith((".", "_")) and p.name.lower() not in _USUAL]
    return [str(folder) for folder in own if any(kind.recognises(folder) for kind in known.values())]


def splits(path: str | Path, *, format: str | None = None) -> list[str]:
    """Names of the parts that the data set has (train, val, ...); empty if it is one piece. See ``format_of``."""
    return list(format_of(path, format).splits(Path(path)))


def read(
    path: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    format: str | None = None,
    refuse: bool = True,
    keep_degenerate: bool = False,
) -> Annotations:
    """Reads a COCO json, a PASCAL VOC folder, a YOLO data.yaml, class folders, or what another package reads.

    Args:
        path: File or folder.
        split: One part; None: all of them.
        images: Folder of the images, if not where the format puts them; of COCO's json also an address (s3://...).
        format: Its name; None: recognised by looking, see ``format_of``.
        refuse: False: labels that are not safe to read are only counted.
        keep_degenerate: Of COCO's json keep boxes without area or outside of their image, which pycocotools counts.

    Returns:
        The labels; single bad records are counted in ``Annotations.findings``.

    Raises:
        DetkitError: A path, part or image folder that is not there, a file that cannot be read, or labels that are
            not safe to read.
    """
    path = Path(path)
    chosen = format_of(path, format)
    if keep_degenerate:
        if not hasattr(chosen, "keep_degenerate"):
            what = "only COCO's json has boxes without area to keep, for pycocotools counts them"
            raise DetkitError(what, str(path), "leave --keep-degenerate out")
        chosen.keep_degenerate = True
    address = images if isinstance(images, str) and is_address(images) else None
    folder = None if images is None or address else Path(images)
    if folder is not None and not folder.is_dir():
        raise DetkitError("there is no such image folder", str(folder), "give --images the folder of the images")
    result = chosen.read(path, split, folder)
    if address:
        result = _at_address(result, address)
    for unsafe in (found for found in result.findings if refuse and found.name == UNSAFE):
        what = f"{unsafe.count} label files declare XML entities, which can exhaust the memory"
        raise DetkitError(what, unsafe.examples[0], "remove such a file, or the <!DOCTYPE ...> at its top")
    return result


def _at_address(found: Annotations, images: str) -> Annotations:
    """The same labels of images that lie in a folder that fsspec reads."""
    if found.source is None or found.source.format != "coco" or found.source.images is None:
        raise DetkitError(
            "only the images of COCO's json may lie at an address", images, "convert: detkit data convert"
        )
    home, sizes = found.source.images, found.sizes.copy()
    names = [file if is_address(file) else Path(os.path.relpath(file, home)).as_posix() for file in found.files]
    files = [name if is_address(name) else f"{images.rstrip('/')}/{name}" for name in names]
    fill_sizes(sizes, files)
    return replace(found, files=files, sizes=sizes)


@dataclass(eq=False, repr=False)
class Dataset:
    """Samples of annotations: images are read when asked for.

    Args:
        annotations: The labels, with the paths of the images.
        proposals: Called with (image, path) in the process that loads, returns (R, 4) float32 xyxy boxes of the
            original image; None: samples have no proposals.
        masks: Samples have the annotations' masks.
        decoded: Keeps decoded images; None: each is decoded whenever it is asked for.
        strict: An image that cannot be read ends a loader's epoch with its error; otherwise it is left out, and told.
    """

    annotations: Annotations
    _: KW_ONLY
    proposals: Callable[[np.ndarray, str], np.ndarray] | None = None
    masks: bool = False
    decoded: DecodedImages | None = None
    strict: bool = False

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.annotations.classes

    @property
    def class_ids(self) -> tuple[int | str, ...]:
        """The file's own ids of the classes, by label."""
        return self.annotations.class_ids

    def load(self, i: int, reduce_to: int | None = None) -> Sample:
        """Image ``i`` as stored, with its objects (boxes clipped to the image).

        Args:
            i: Index of the image.
            reduce_to: An image whose longer side is at least twice as many pixels may come at 1/2, 1/4 or 1/8 of its
                size, decoded in less time, its objects with it.

        Raises:
            DetkitError: The image is missing or broken.
        """
        path = self.annotations.files[i]
        # Proposals are found in, and cached for, the image as it is.
        reduce_to = reduce_to if self.proposals is None else None
        read = read_sized if self.decoded is None else self.decoded.read
        image, (width, height) = read(path, reduce_to=reduce_to)
        proposals = None if self.proposals is None else self.proposals(image, path)
        target = self.target(i, (height, width))
        if self.masks:
            target = replace(target, mask=label_map(self.annotations, i, (height, width)))
        if (height, width) != image.shape[:2]:
            target = moved_target(target, Geometry(width, height, image.shape[1] / width, image.shape[0] / height))
        return Sample(image, target, proposals, self.annotations.image_ids[i], path)

    def readable(
        self, order: Iterable[int], failures: list[DetkitError], reduce_to: int | None = None
    ) -> Iterator[tuple[int, Sample]]:
        """Index and sample of each image that can be read.

        Args:
            order: Indices of images.
            failures: Why the others cannot is added to it.
            reduce_to: See ``load``.

        Raises:
            DetkitError: None can be.
        """
        found = False
        for i in order:
            try:
                yield i, self.load(i, reduce_to)
                found = True
            except DetkitError as error:
                failures.append(error)
        if not found:
            where = f"{failures[0].where}: {failures[0].what}" if failures else "the data set is empty"
            raise DetkitError("none of the images could be read", where, "give --images the folder of the images")

    def target(self, i: int, size: tuple[int, int] | None = None) -> Target:
        """The objects of image ``i``; an image whose only object fills it is labelled as a whole too.

        Args:
            i: Index of the image.
            size: (height, width) in pixels, to which boxes are clipped; None: they are not.
        """
        a = self.annotations
        rows = slice(int(a.offsets[i]), int(a.offsets[i + 1]))
        xywh = a.xywh[rows]
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        label = None
        if size is not None:
            if len(xywh) == 1 and fills(xywh, np.asarray([size])).all():
                label = int(a.labels[rows.start])
            boxes = np.clip(boxes, 0, np.asarray([size[1], size[0], size[1], size[0]], dtype=np.float64))
        # In float32, as a model sees it: a sliver may vanish by the rounding.
        boxes = boxes.astype(np.float32)
        points = None if a.points is None else a.points[rows].astype(np.float32)
        weight = None if a.weight is None else a.weight[rows]
        flags, names = (a.crowd[rows], a.difficult[rows]), None if a.known is None else a.known[i]
        known = None if names is None else tuple(k for k, name in enumerate(a.classes) if name in names)
        table = boxes, a.labels[rows], *flags, a.area[rows], weight, points
        target = Target(*table, image_label=label, known=known)
        return target[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]

    def labels_of(self, i: int) -> np.ndarray:
        """Labels of the objects of image ``i`` without reading the image."""
        a = self.annotations
        return a.labels[a.offsets[i] : a.offsets[i + 1]]

    def subset(self, images: Sequence[int] | np.ndarray) -> Dataset:
        """These images, in this order."""
        return replace(self, annotations=self.annotations.subset(images))
