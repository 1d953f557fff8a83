"""Labels of a whole data set in flat arrays, and the findings of the reader that made them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DetkitError
from detkit.tables import GroundTruth, image_rank

EXAMPLES = 5
UNSAFE = "annotation file declares entities, which can exhaust the memory (never read, image dropped)"
ROUNDING = 0.1  # pixels; files round their coordinates, so a box this little outside is not worth a finding


@dataclass(slots=True, frozen=True)
class Finding:
    """Something that is wrong in a data set: its name, how often, and where (file and line, or record)."""

    name: str
    count: int
    examples: tuple[str, ...] = ()


class Findings:
    """Collects findings by name; keeps every count and the first few examples."""

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        for one in found:
            self.add(one.name, *one.examples, count=one.count)

    def add(self, name: str, *examples: str, count: int = 1) -> None:
        """Counts ``count`` more cases of ``name``."""
        if count < 1:
            return
        self._counts[name] = self._counts.get(name, 0) + count
        kept = self._examples.setdefault(name, [])
        kept.extend(examples[: EXAMPLES - len(kept)])

    def add_rows(self, name: str, rows: np.ndarray, where: Callable[[int], str]) -> None:
        """Counts the rows (indices); ``where`` names one of them."""
        self.add(name, *(where(int(row)) for row in rows[:EXAMPLES]), count=len(rows))

    def as_list(self) -> list[Finding]:
        """The findings in the order in which they first turned up."""
        return [Finding(name, count, tuple(self._examples[name])) for name, count in self._counts.items()]


@dataclass(slots=True, frozen=True)
class Source:
    """Where annotations came from: format name, the file or folder, the part, and the folder of the images."""

    format: str
    path: Path
    split: str | None = None
    images: Path | None = None


@dataclass(slots=True, frozen=True, eq=False)
class Annotations:
    """All labels of a data set; I images, N objects, sorted by image and within one in file order.

    image_ids: int or str, I; files: paths of the images, I; sizes (I, 2) int32 height, width in pixels (0 = unknown);
    offsets (I + 1,) int64: image i owns rows offsets[i]:offsets[i + 1]; xywh (N, 4) float64 in the file's own
    coordinates (pixels, zero-based; never clipped, so the metrics stay exact); labels (N,) int64 0..C-1; crowd and
    difficult (N,) bool; area (N,) float64 square pixels; ids (N,) int64; class_ids: the file's own ids of the classes;
    image_rows (I,), rows (N,) int64: place of each image and object among the records of the source; source: None if
    there is more than one; points (N, K, 3) float64 x, y in pixels, visible (0: not), or None.
    """

    image_ids: list[int | str]
    files: list[str]
    sizes: np.ndarray
    offsets: np.ndarray
    xywh: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    class_ids: tuple[int | str, ...]
    image_rows: np.ndarray
    rows: np.ndarray
    findings: list[Finding] = field(default_factory=list)
    source: Source | None = None
    points: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_index(self) -> np.ndarray:
        """(N,) int64: the image of every object."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def ground_truth(self) -> GroundTruth:
        """The same as the metrics' table."""
        return GroundTruth(
            images=len(self),
            image=self.image_index,
            label=self.labels,
            xywh=self.xywh,
            area=self.area,
            crowd=self.crowd,
            difficult=self.difficult,
            ids=self.ids,
            classes=self.classes,
            rank=image_rank(self.image_ids),
            points=self.points,
        )

    @property
    def labelled(self) -> bool:
        """True if each image has one object, which fills it: a set for classification."""
        alone = 0 < len(self) == len(self.labels) and bool((np.diff(self.offsets) == 1).all())
        return alone and bool(fills(self.xywh, self.sizes).all())

    def class_counts(self) -> np.ndarray:
        """(C,) int64 objects of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def _with_objects(self, keep: np.ndarray) -> Annotations:
        """Only the objects of the (N,) bool mask; all images stay."""
        counts = np.bincount(self.image_index[keep], minlength=len(self))
        return replace(self, offsets=_offsets(counts), **self._columns(keep))

    def _columns(self, rows: np.ndarray) -> dict[str, Any]:
        """The columns of some objects, a mask or indices."""
        names = ["xywh", "labels", "crowd", "difficult", "area", "ids", "rows"]
        names += [] if self.points is None else ["points"]
        return {name: getattr(self, name)[rows] for name in names}

    def subset(self, images: Sequence[int] | np.ndarray) -> Annotations:
        """These images (indices, in this order) with their objects."""
        images = np.asarray(images, dtype=np.int64)
        counts = np.diff(self.offsets)[images]
        offsets = _offsets(counts)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        rows = np.repeat(self.offsets[:-1][images], counts) + within
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in images],
            files=[self.files[i] for i in images],
            sizes=self.sizes[images],
            image_rows=self.image_rows[images],
            offsets=offsets,
            **self._columns(rows),
        )

    def select_classes(
        self, classes: Sequence[str] | None = None, rename: Mapping[str, str] | None = None
    ) -> Annotations:
        """Renames classes first (several may become one), then keeps ``classes``, in that order; all images stay.

        Raises DetkitError for a name that the data does not have.
        """
        rename = dict(rename or {})
        for name in rename:
            self._known(name, self.classes, "rename")
        renamed = [rename.get(name, name) for name in self.classes]
        kept = list(dict.fromkeys(renamed if classes is None else classes))
        for name in kept:
            self._known(name, tuple(renamed), "classes")
        table = np.asarray([kept.index(name) if name in kept else -1 for name in renamed], dtype=np.int64)
        labels = table[self.labels] if len(table) else self.labels
        ids = tuple(self.class_ids[renamed.index(name)] for name in kept)
        # Renamed classes are no longer those of the source's records.
        source = None if rename else self.source
        return replace(self, labels=labels, classes=tuple(kept), class_ids=ids, source=source)._with_objects(
            labels >= 0
        )

    def _known(self, name: str, names: tuple[str, ...], key: str) -> None:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            where = f"{self.source.path}, {key}" if self.source else key
            raise DetkitError(f"no class {name!r} in the data", where, f"{hint}the classes are {', '.join(names)}")


def fills(xywh: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes (N, 4) that fill their image of ``sizes`` (N, 2) height, width, to half a pixel."""
    ends = xywh[:, :2] + xywh[:, 2:]
    return ((xywh[:, :2] <= 0.5) & (ends >= sizes[:, ::-1] - 0.5) & (sizes[:, ::-1] > 0)).all(axis=1)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(slots=True)
class Objects:
    """Objects as a reader finds them, in file order: columns as in Annotations; image (N,) int64 index.

    where: names one row for a person; area None = the boxes' own.
    """

    image: np.ndarray
    xywh: np.ndarray
    labels: np.ndarray
    where: Callable[[int], str]
    crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None
    area: np.ndarray | None = None
    ids: np.ndarray | None = None
    points: np.ndarray | None = None


def assemble(
    objects: Objects,
    image_ids: list[int | str],
    files: list[str],
    sizes: np.ndarray,
    classes: tuple[str, ...],
    class_ids: tuple[int | str, ...],
    findings: Findings,
    source: Source,
    image_rows: np.ndarray | None = None,
) -> Annotations:
    """Sorts by image, and drops what cannot be used; whatever is dropped or sticks out is counted.

    Expects image and labels -1 where the reader has already counted them as unknown.
    """
    n = len(objects.labels)
    xywh = np.asarray(objects.xywh, dtype=np.float64).reshape(n, 4)
    keep = (objects.image >= 0) & (objects.labels >= 0)
    keep &= _usable(xywh, objects.image, sizes, keep, objects.where, findings)
    order = np.flatnonzero(keep)
    order = order[np.argsort(objects.image[order], kind="stable")]
    xywh = xywh[order]
    box_area = xywh[:, 2] * xywh[:, 3]
    area = box_area if objects.area is None else np.asarray(objects.area, dtype=np.float64)[order]
    area = np.where(np.isfinite(area), area, box_area)

    def flags(column: np.ndarray | None) -> np.ndarray:
        return np.zeros(len(order), dtype=bool) if column is None else column[order].astype(bool)

    return Annotations(
        image_ids=image_ids,
        files=files,
        sizes=sizes,
        offsets=_offsets(np.bincount(objects.image[order], minlength=len(files))),
        xywh=xywh,
        labels=objects.labels[order].astype(np.int64),
        crowd=flags(objects.crowd),
        difficult=flags(objects.difficult),
        area=area,
        ids=order + 1 if objects.ids is None else objects.ids[order],
        classes=classes,
        class_ids=class_ids,
        image_rows=np.arange(len(files), dtype=np.int64) if image_rows is None else image_rows,
        rows=order.astype(np.int64),
        findings=findings.as_list(),
        source=source,
        points=None if objects.points is None else objects.points[order],
    )


def _usable(
    xywh: np.ndarray,
    image: np.ndarray,
    sizes: np.ndarray,
    known: np.ndarray,
    where: Callable[[int], str],
    findings: Findings,
) -> np.ndarray:
    """(N,) bool; counts boxes that are not finite, negative, empty, outside, or that stick out (these are kept)."""
    finite = np.isfinite(xywh).all(axis=1)
    findings.add_rows("box is not finite (dropped)", np.flatnonzero(known & ~finite), where)
    good = known & finite
    safe = np.where(finite[:, None], xywh, 1.0)
    negative = (safe[:, 2:] < 0).any(axis=1)
    findings.add_rows("box of negative size (dropped)", np.flatnonzero(good & negative), where)
    good &= ~negative
    zero = (safe[:, 2:] == 0).any(axis=1)
    findings.add_rows("box of zero size (dropped)", np.flatnonzero(good & zero), where)
    good &= ~zero
    if not len(sizes):
        return good
    size = sizes[np.maximum(image, 0)][:, ::-1].astype(np.float64)
    sized = good & (size > 0).all(axis=1)
    low, high = safe[:, :2], safe[:, :2] + safe[:, 2:]
    outside = sized & ((low >= size) | (high <= 0)).any(axis=1)
    findings.add_rows("box outside the image (dropped)", np.flatnonzero(outside), where)
    good &= ~outside
    out = sized & ~outside & ((low < -ROUNDING) | (high > size + ROUNDING)).any(axis=1)
    findings.add_rows("box sticks out of the image (clipped for training)", np.flatnonzero(out), where)
    return good


def size_of(file: str) -> tuple[int, int]:
    """(height, width) from the image's header; zeros if it cannot be read, which ``data check`` reports."""
    from detkit.io.images import image_size

    try:
        width, height = image_size(file)
    except (DetkitError, OSError):
        return 0, 0
    return height, width


def concat_annotations(parts: Sequence[Annotations]) -> Annotations:
    """Several sources as one; classes are united by name, in the order of their first appearance.

    Image ids that occur in more than one part get the part's number in front ("1:17").
    """
    if len(parts) == 1:
        return parts[0]
    classes: dict[str, int | str] = {}
    for part in parts:
        for name, number in zip(part.classes, part.class_ids, strict=True):
            classes.setdefault(name, number)
    if len(set(classes.values())) < len(classes):
        classes = {name: i + 1 for i, name in enumerate(classes)}
    names = list(classes)
    image_ids: list[int | str] = [i for part in parts for i in part.image_ids]
    if len(set(image_ids)) < len(image_ids):
        image_ids = [f"{k}:{i}" for k, part in enumerate(parts) for i in part.image_ids]
    tables = [np.asarray([names.index(name) for name in part.classes], dtype=np.int64) for part in parts]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("sizes", "xywh", "crowd", "difficult", "area", "image_rows", "rows")
    }
    widths = {0 if part.points is None else part.points.shape[1] for part in parts if len(part.labels)}
    if len(widths) == 1 and widths != {0}:  # of several kinds of points none can be learned
        joined["points"] = np.concatenate([part.points for part in parts if len(part.labels)])
    n = len(joined["crowd"])
    return Annotations(
        image_ids=image_ids,
        files=[f for part in parts for f in part.files],
        offsets=_offsets(np.concatenate([np.diff(part.offsets) for part in parts])),
        labels=np.concatenate([t[p.labels] if len(t) else p.labels for t, p in zip(tables, parts, strict=True)]),
        ids=np.arange(1, n + 1, dtype=np.int64),
        classes=tuple(names),
        class_ids=tuple(classes.values()),
        findings=Findings(f for part in parts for f in part.findings).as_list(),
        source=None,
        **joined,
    )
