"""Labels by models beside those by people: what ``detkit label`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit import registry
from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.names import COCO_CLASSES, ids_of, match_classes
from detkit.data.reading import ImageTable, ObjectTable, assemble, fill_sizes
from detkit.errors import DetkitError, nearest
from detkit.ops.boxes import convert, crowd_iou, iou
from detkit.ops.suppression import batched_nms
from detkit.printed import Printed, aligned, counted
from detkit.tables import Results

if TYPE_CHECKING:
    from detkit.predictor import Predictor

_SAME = 0.5  # IoU of boxes of one class that are one object
_OTHERWISE = 0.7  # IoU with an object of another class from which on the two are one object, seen otherwise
_INSIDE = 0.8  # share of a box within another of its class: a part of an object, or a group of them
_WHOLE = 0.85  # share of the image: an unsure box of that size tells nothing
_SMALLEST = 2.0  # pixels


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What becomes of a model's boxes.

    Attributes:
        keep: From this score on a box is an object, whose ``weight`` is its score.
        ignore: From this score on it is a region to ignore, neither object nor background.
        known: Classes of which people labelled all objects, so that whatever else a model finds of them is background,
            and the best there is to learn what they are not; ``("all",)``: all classes that people labelled.

    Raises:
        DetkitError: Not 0 < ignore <= keep <= 1.
    """

    keep: float = 0.35
    ignore: float = 0.15
    known: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ignore <= self.keep <= 1:
            what = f"0 < ignore <= keep <= 1 is asked for, got {self.ignore:g} and {self.keep:g}"
            raise DetkitError(what, "--keep, --ignore", "give --keep 0.35 --ignore 0.15, say")

    def new(
        self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, people: Annotations, size: np.ndarray
    ) -> tuple[list[int], list[bool]]:
        """Which detections of an image are new, best first, and whether each is to be ignored.

        People's boxes come first: nothing is added that is one of theirs, of the same class or another, or that lies in
        a crowd of its class. What is part of an object of its class or holds one, what is a second opinion on an object
        just added, and what scores below ``keep``, is to be ignored.

        Args:
            boxes: (N, 4) xyxy.
            labels: (N,).
            scores: (N,).
            people: One image's labels by people, of the same classes.
            size: Its height and width.
        """
        width_height = boxes[:, 2:] - boxes[:, :2]
        theirs = np.asarray(convert(people.xywh, "xywh", "xyxy"))
        same, crowd = labels[:, None] == people.labels, people.crowd
        overlap, part = iou(boxes, theirs) * ~crowd, crowd_iou(boxes, theirs)
        group = crowd_iou(theirs, boxes).T
        known = (overlap > np.where(same, _SAME, _OTHERWISE)).any(1) | (same & crowd & (part > 0.5)).any(1)
        joined = (same & ~crowd & ((part > _INSIDE) | (group > _INSIDE))).any(1)
        vague = (scores < (self.keep + self.ignore) / 2) & (width_height.prod(1) > _WHOLE * size.prod())
        usable = ~known & ~vague & (scores >= self.ignore) & (width_height >= _SMALLEST).all(1)
        rows = np.flatnonzero(usable)
        best = rows[batched_nms(boxes[rows], scores[rows], labels[rows], _SAME)]
        taken: list[int] = []
        doubtful: list[bool] = []
        for row in best.tolist():
            again = bool(len(taken)) and iou(boxes[row : row + 1], boxes[taken]).max() > _OTHERWISE
            doubtful.append(bool(scores[row] < self.keep or joined[row] or again))
            taken += [] if doubtful[-1] else [row]
        return best.tolist(), doubtful


def label(
    source: Predictor | Sequence[str | Path],
    data: str,
    out: Path,
    *,
    rules: Rules = Rules(),
    split: str | None = None,
    images: Path | None = None,
    format: str | None = None,
    batch: int = 8,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Printed:
    """Writes a COCO json of the data's labels and of what models find besides.

    Each record says its ``source``, person or model; a model's has its ``score`` and, as an object, that as its
    ``weight`` in the loss, or else ``difficult`` (which detkit ignores) and ``ignore``. The images stay where they are.

    Args:
        source: What detects; or detections on these images, as ``read_detections`` takes them, fused as an ensemble's.
        data: A data set, or a folder of photos without labels.
        out: The json.
        rules: What becomes of a model's boxes.
        split: One part of the data; None: all of it.
        images: Folder of the images of a COCO json.
        format: Of the data, by name or ``module:Name``; None: recognised.
        batch: Images at a time.
        overwrite: Replace ``out`` if it exists.
        tell: Told what a person should know of the data.
        on_progress: Called with batches done and in all.

    Returns:
        As facts: out, images, people (boxes), added and ignored, each by class.

    Raises:
        DetkitError: Data, detections or models that cannot be read or do not fit.
    """
    from detkit.data.convert import write_labelled

    people = _photos(Path(data)) if images is None and format is None and split is None else None
    unlabelled = people is not None
    if people is None:
        from detkit.data.dataset import read

        people = read(data, split=split, images=images, format=format)
        if people.source is not None and people.source.format == "coco":
            tell("boxes, classes and flags of the labels go on; polygons, key points and other keys do not")
    if isinstance(source, Sequence):
        people = _in_classes(people, COCO_CLASSES, ids_of(COCO_CLASSES)) if unlabelled else people
        found = _fused(source, people, rules, tell)
    else:
        from detkit.data.dataset import Dataset
        from detkit.engine.evaluator import detect_dataset
        from detkit.structures import Limits

        people = _in_classes(people, source.classes, source.class_ids)
        _complete(people, rules.known)  # a name that is wrong is told before hours of looking
        limits = Limits(rules.ignore, source.iou, 100)
        _, found, _ = detect_dataset(source, Dataset(people), batch=batch, limits=limits, on_batch=on_progress)
    whole, records = _merged(people, found, rules)
    write_labelled(whole, out, records, overwrite=overwrite)
    return _result(whole, records, out)


def _photos(path: Path) -> Annotations | None:
    """The photos of a folder that is no data set, without labels; None where it is one, or holds none."""
    from detkit.io.images import paths_in

    if not path.is_dir() or not (files := paths_in(path)):
        return None
    known = (registry.find_part("format", name)() for name in registry.own_parts("format"))
    if any(kind.recognises(path) for kind in known):
        return None
    sizes = np.zeros((len(files), 2), np.int32)
    fill_sizes(sizes, list(map(str, files)))
    none = ObjectTable(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), str)
    table = ImageTable(list(range(1, len(files) + 1)), list(map(str, files)), sizes)
    return replace(assemble(none, table, {}, Findings(), Source("photos", path)), source=None)


def _in_classes(a: Annotations, classes: Sequence[str], ids: Sequence[int | str]) -> Annotations:
    """The annotations in a model's classes, those that it does not know after them."""
    extra = [name for name, place in zip(a.classes, match_classes(a.classes, classes), strict=True) if place < 0]
    numbers = list(ids)
    if not all(isinstance(one, int) and one > 0 for one in numbers):
        numbers = list(range(1, len(classes) + 1))
    free = (n for n in range(1, len(classes) + len(extra) + 1000) if n not in numbers)
    numbers += [next(free) for _ in extra]
    every = (*classes, *extra)
    return replace(a.relabelled(match_classes(a.classes, every), every, numbers), source=None)


def _fused(paths: Sequence[str | Path], people: Annotations, rules: Rules, tell: Callable[[str], None]) -> Results:
    """The detections of all places as one table."""
    from detkit.io.detections import read_detections
    from detkit.prediction.ensemble import fused
    from detkit.structures import Detections, Limits

    tables = []
    for path in paths:
        table, notes = read_detections(path, people)
        tables.append(table)
        for note in notes:
            tell(f"{path}: {note}")
    if len(tables) == 1:
        return tables[0]
    columns: list[tuple[np.ndarray, ...]] = []
    for image in range(len(people)):
        views = []
        for table in tables:
            mine = table[table.image == image]
            boxes = np.asarray(convert(mine.xywh, "xywh", "xyxy"), np.float32)
            views.append(Detections(boxes, mine.score.astype(np.float32), mine.label))
        one = fused(views, Limits(rules.ignore))
        xywh = np.asarray(convert(one.boxes, "xyxy", "xywh"), np.float64)
        columns.append((np.full(len(one), image), one.labels, xywh, one.scores.astype(np.float64)))
    return Results(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _complete(people: Annotations, known: Sequence[str]) -> list[int]:
    """The classes by number of which people labelled all objects."""
    if list(known) == ["all"]:
        return np.unique(people.labels).tolist()
    places = match_classes(known, people.classes)
    for name, place in zip(known, places, strict=True):
        if place < 0:
            raise DetkitError(f"no class {name!r} in the data", "--known", nearest(name, people.classes))
    return places


def _merged(people: Annotations, found: Results, rules: Rules) -> tuple[Annotations, list[dict[str, object]]]:
    """People's labels and what is new, image by image, and what each record says besides."""
    a = people
    found = found[~np.isin(found.label, _complete(a, rules.known))]
    columns = [(a.image_index, a.xywh, a.labels, a.crowd, a.difficult, a.area)]
    said: list[dict[str, object]] = [{"source": "person"}] * len(a.labels)
    if a.weight is not None:
        said = [{"source": "person", "weight": float(weight)} for weight in a.weight]
    order = np.argsort(found.image, kind="stable")
    starts = np.searchsorted(found.image[order], np.arange(len(a) + 1))
    for image in range(len(a)):
        rows = order[starts[image] : starts[image + 1]]
        size = a.sizes[image].astype(np.float64)
        boxes = np.asarray(convert(found.xywh[rows], "xywh", "xyxy"))
        if size.all():
            boxes = boxes.clip(0, size[[1, 0, 1, 0]])
        kept, doubtful = rules.new(boxes, found.label[rows], found.score[rows], a.subset([image]), size)
        xywh = np.asarray(convert(boxes[kept], "xyxy", "xywh"))
        no, flags = np.zeros(len(kept), bool), np.array(doubtful, bool)
        columns.append((np.full(len(kept), image), xywh, found.label[rows][kept], no, flags, xywh[:, 2:].prod(1)))
        for score, doubt in zip(found.score[rows][kept].round(3).tolist(), doubtful, strict=True):
            said.append({"source": "model", "score": score, **({"ignore": 1} if doubt else {"weight": score})})
    image_, xywh, labels, crowd, difficult, area = (np.concatenate(column) for column in zip(*columns, strict=True))
    objects = ObjectTable(image_.astype(np.int64), xywh, labels.astype(np.int64), str, crowd, difficult, area)
    table = ImageTable(a.image_ids, a.files, a.sizes)
    classes = dict(zip(a.class_ids, a.classes, strict=True))
    whole = replace(assemble(objects, table, classes, Findings(), Source("labels", Path())), source=None)
    return whole, [said[row] for row in whole.rows]


def _result(a: Annotations, records: Sequence[dict[str, object]], out: Path) -> Printed:
    kinds = ["people" if r["source"] == "person" else "ignored" if "ignore" in r else "added" for r in records]
    counts = Counter(zip((a.classes[k] for k in a.labels), kinds, strict=True))
    columns = ("people", "added", "ignored")
    names = [name for name in a.classes if any((name, kind) in counts for kind in columns)]
    rows = [["", *columns], *([name, *(str(counts[name, kind]) for kind in columns)] for name in names)]
    totals = {kind: kinds.count(kind) for kind in columns}
    rows.append(["all", *map(str, totals.values())])
    per_class = {name: {kind: counts[name, kind] for kind in columns} for name in names}
    facts = {"out": out, "images": len(a), **totals, "per_class": per_class}
    return Printed(facts, [*aligned(rows), f"{counted(len(a), 'image')}: {out}"])
