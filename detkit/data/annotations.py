"""Labels of a whole data set in flat arrays, and the findings of the reader that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DetkitError, nearest
from detkit.tables import GroundTruth, rank_of

EXAMPLES = 5
_COLUMNS = ("xywh", "crowd", "difficult", "area", "rows", "labels", "ids", "points", "weight")  # of objects


@dataclass(slots=True, frozen=True)
class Finding:
    """Something that is wrong in a data set: its name, how often, and where (file and line, or record).

    A ``note`` is worth knowing, but nothing is lost and it may be as it should.
    """

    name: str
    count: int
    examples: tuple[str, ...] = ()
    note: bool = False

    def lines(self) -> list[str]:
        """The finding as text for a person."""
        rest = ["         ..."] if 0 < len(self.examples) < self.count else []
        return [f"{self.count:7d}  {self.name}", *(f"         {example}" for example in self.examples), *rest]


class Findings(dict[str, Finding]):
    """Collects findings by name; keeps every count and the first few examples.

    Args:
        found: Findings to begin with.
    """

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        for one in found:
            self.add(one.name, *one.examples, count=one.count, note=one.note)

    def add(self, name: str, *examples: str, count: int = 1, note: bool = False) -> None:
        """Counts ``count`` more cases of ``name``; none is nothing."""
        if count > 0:
            so_far = self.get(name, Finding(name, 0))
            self[name] = Finding(name, so_far.count + count, (*so_far.examples, *examples)[:EXAMPLES], note)

    def add_rows(self, name: str, rows: np.ndarray, where: Callable[[int], str], *, note: bool = False) -> None:
        """Counts the rows that a mask or indices select; ``where`` names one of them for a person."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        self.add(name, *(where(int(row)) for row in rows[:EXAMPLES]), count=len(rows), note=note)

    def first(self, otherwise: str) -> str:
        """The first of them with an example; ``otherwise`` where there is none."""
        return next((f"{one.name}: {one.examples[0]}" for one in self.values()), otherwise)

    def lines(self) -> list[str]:
        """All of them as text for a person."""
        return [line for finding in self.values() for line in finding.lines()]

    def as_list(self) -> list[Finding]:
        """The findings in the order in which they first turned up."""
        return list(self.values())


@dataclass(slots=True, frozen=True)
class Source:
    """Where annotations came from.

    Args:
        format: The format's name.
        path: The file or folder.
        split: The part of it; None: all of them.
        images: The folder of the images.
    """

    format: str
    path: Path
    split: str | None = None
    images: Path | None = None


@dataclass(slots=True, frozen=True, eq=False)
class Annotations:
    """All labels of a data set: I images, N objects, sorted by image and within one in file order.

    Args:
        image_ids: Of each image, int or str.
        files: Path of each image.
        sizes: (I, 2) int32 height and width in pixels; 0: unknown.
        offsets: (I + 1,) int64; image i owns the rows offsets[i]:offsets[i + 1].
        xywh: (N, 4) float64 in the file's own coordinates (pixels, zero-based; never clipped, so that metrics stay
            exact).
        labels: (N,) int64 in 0..C-1.
        crowd: (N,) bool.
        difficult: (N,) bool.
        area: (N,) float64 square pixels.
        ids: (N,) int64.
        classes: Names by label.
        class_ids: The file's own ids of the classes.
        image_rows: (I,) int64 place of each image among the records of the source.
        rows: (N,) int64 place of each object among the records of the source.
        findings: What was dropped or repaired.
        source: None if there is more than one.
        points: (N, K, 3) float64 x, y in pixels, visible (0: not), or None.
        image_labels: True for a set for classification, whatever the boxes: each label names its whole image.
        weight: (N,) float64, of each object in the loss; None: 1.
        known: For each image the names of the classes of which all objects are labelled, or None for any class there
            may be; None: ``classes`` for all images.
        masks: For each image what holds its mask, see ``detkit.data.masks.label_map``; None: there are none.
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
    image_labels: bool = False
    weight: np.ndarray | None = None
    known: list[frozenset[str] | None] | None = None
    masks: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_index(self) -> np.ndarray:
        """(N,) int64: the image of every object."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def ground_truth(self) -> GroundTruth:
        """The same as the metrics' table."""
        same = ("xywh", "area", "crowd", "difficult", "ids", "classes", "points")
        columns: dict[str, Any] = {name: getattr(self, name) for name in same}
        columns |= {"rank": rank_of(self.image_ids), "class_rank": rank_of(self.class_ids)}
        return GroundTruth(len(self), self.image_index, self.labels, **columns)

    def counts(self) -> dict[str, int]:
        """Images, those without boxes, boxes, and among these crowds and other difficult ones."""
        ignored = {"crowd": int(self.crowd.sum()), "difficult": int((self.difficult & ~self.crowd).sum())}
        bare = int((np.diff(self.offsets) == 0).sum())
        return {"images": len(self), "images_without_boxes": bare, "boxes": len(self.labels), **ignored}

    @property
    def labelled(self) -> bool:
        """True if each image has one object, which fills it, but those of which nothing is known (``known: []``), which
        have none: such a set can teach classification."""
        wanted = np.ones(len(self), np.int64)
        if self.known is not None:
            wanted -= np.asarray([names == frozenset() for names in self.known], np.int64)
        each = len(self.labels) > 0 and bool((np.diff(self.offsets) == wanted).all())
        return each and bool(fills(self.xywh, self.sizes[wanted > 0]).all())

    def check_labelled(self, where: str) -> None:
        """Raises DetkitError, which names ``where``, unless the set is ``labelled``."""
        if not self.labelled:
            do = "give class folders; detkit data crops DATA --out FOLDER makes them of a detection set"
            if self.known is not None and frozenset() in {self.known[i] for i in self.image_index.tolist()}:
                do = "say classes: [] beside known: [] of a source whose labels are not to be known"
            raise DetkitError("this needs images of one label each", where, do)

    def class_counts(self) -> np.ndarray:
        """(C,) int64 objects of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def _columns(self, rows: np.ndarray) -> dict[str, Any]:
        """The columns of some objects, a mask or indices."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {name: None if column is None else column[rows] for name, column in columns.items()}

    def subset(self, images: Sequence[int] | np.ndarray) -> Annotations:
        """These images (indices, in this order) with their objects."""
        images = np.asarray(images, dtype=np.int64)
        counts = np.diff(self.offsets)[images]
        offsets = offsets_of(counts)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in images],
            files=[self.files[i] for i in images],
            sizes=self.sizes[images],
            image_rows=self.image_rows[images],
            known=self.known and [self.known[i] for i in images],
            masks=self.masks and [self.masks[i] for i in images],
            offsets=offsets,
            **self._columns(np.repeat(self.offsets[:-1][images], counts) + within),
        )

    def select_classes(
        self, classes: Sequence[str] | None = None, rename: Mapping[str, str] | None = None, *, where: str = ""
    ) -> Annotations:
        """Renames classes first, then keeps some; all images stay.

        Args:
            classes: Names (after renaming) that stay, in their new order; None: all of them.
            rename: Old name to new; several may become one.
            where: Who names them; empty: the source.

        Raises:
            DetkitError: A name that the data does not have.
        """
        rename = dict(rename or {})
        self._refuse_unknown(rename, self.classes, where, "rename")
        renamed = [rename.get(name, name) for name in self.classes]
        kept = list(dict.fromkeys(renamed if classes is None else classes))
        self._refuse_unknown(kept, renamed, where, "classes")
        table = [kept.index(name) if name in kept else -1 for name in renamed]
        ids = [self.class_ids[renamed.index(name)] for name in kept]
        return replace(
            self.relabelled(table, kept, ids),
            # Renamed classes are no longer those of the source's records.
            source=None if rename else self.source,
            known=self.known
            and [names and frozenset(rename.get(name, name) for name in names) for names in self.known],
        )

    def relabelled(self, table: Sequence[int], classes: Sequence[str], ids: Sequence[int | str]) -> Annotations:
        """The objects in other classes; all images stay.

        Args:
            table: The new place of each class; -1: its objects are left out.
            classes: The new names.
            ids: Of the new classes, for files.
        """
        labels = np.asarray(table, dtype=np.int64)[self.labels]
        keep = labels >= 0
        return replace(
            self,
            offsets=offsets_of(np.bincount(self.image_index[keep], minlength=len(self))),
            classes=tuple(classes),
            class_ids=tuple(ids),
            **{**self._columns(keep), "labels": labels[keep]},
        )

    def _refuse_unknown(self, names: Iterable[str], known: Sequence[str], where: str, key: str) -> None:
        for name in names:
            if name not in known:
                where = where or (f"{self.source.path}, {key}" if self.source else key)
                raise DetkitError(f"no class {name!r} in the data", where, nearest(name, known))


def fills(xywh: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes (N, 4) that fill their image of ``sizes`` (N, 2) height, width, to half a pixel."""
    ends = xywh[:, :2] + xywh[:, 2:]
    return ((xywh[:, :2] <= 0.5) & (ends >= sizes[:, ::-1] - 0.5) & (sizes[:, ::-1] > 0)).all(axis=1)


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """(I + 1,) int64: where each image's rows begin, of the (I,) number that each has."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


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
    weights = [part.weight for part in parts]
    if any(weight is not None for weight in weights):
        parts_of = zip(weights, parts, strict=True)
        joined["weight"] = np.concatenate([np.ones(len(p.labels)) if w is None else w for w, p in parts_of])
    known: list[frozenset[str] | None] = []
    for part in parts:
        known += part.known or [frozenset(part.classes)] * len(part)
    widths = {0 if part.points is None else part.points.shape[1] for part in parts if len(part.labels)}
    if len(widths) == 1 and widths != {0}:  # of several kinds of points none can be learned
        joined["points"] = np.concatenate([part.points for part in parts if len(part.labels)])
    return Annotations(
        image_ids=image_ids,
        files=[f for part in parts for f in part.files],
        offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        labels=np.concatenate([table[part.labels] for table, part in zip(tables, parts, strict=True)]),
        ids=np.arange(1, len(joined["crowd"]) + 1, dtype=np.int64),
        classes=tuple(names),
        class_ids=tuple(classes.values()),
        findings=Findings(f for part in parts for f in part.findings).as_list(),
        source=None,
        image_labels=all(part.image_labels for part in parts),
        known=None if all(names == set(classes) for names in known) else known,
        masks=[m for part in parts for m in part.masks or ()] if all(part.masks for part in parts) else None,
        **joined,
    )
