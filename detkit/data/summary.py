"""What was read of a data set, in one form for training, evaluation, comparison, Python and run.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations, Finding, Findings
from detkit.data.reading import DEGENERATE
from detkit.errors import DetkitError
from detkit.io.stored import is_there
from detkit.metrics.coco import pycocotools_metrics
from detkit.printed import aligned, counted
from detkit.tables import Results

_SHOWN = 20  # classes of a table; of more, the most and the least frequent
_SMALL = 20_000  # boxes and detections that pycocotools sums up in a second or two


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Images and boxes of each part, and what was dropped or repaired while reading.

    Attributes:
        parts: By name: ``images``, ``images_without_boxes``, ``boxes``, ``crowd``, ``difficult``, ``classes`` (boxes by
            class name).
        findings: Of all parts together.
    """

    parts: Mapping[str, Mapping[str, Any]]
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"parts": dict(self.parts), "findings": [asdict(one) for one in self.findings]}

    def lines(self, *, table: bool = True) -> list[str]:
        """The same for a person: a line per part and per finding; ``table``: and the classes, cut where many."""
        lines = []
        for name, part in self.parts.items():
            ignored = [f"{part[kind]} {kind}" for kind in ("crowd", "difficult") if part[kind]]
            images = f"{counted(part['images'], 'image')} ({part['images_without_boxes']} without boxes)"
            boxes = counted(part["boxes"], "box") + f" ({', '.join(ignored)})" * bool(ignored)
            lines.append(f"{name}: {images}, {boxes} of {counted(len(part['classes']), 'class')}")
        lines += self._table() if table else []
        for one in self.findings:
            lines.append(": ".join((f"  {one.count} x {one.name}", *one.examples[:1])))
        return lines

    def _table(self) -> list[str]:
        tables = [part["classes"] for part in self.parts.values()]
        names = list(tables[0]) if tables else []
        rows = [[name, *(str(table[name]) for table in tables)] for name in names]
        if len(names) > _SHOWN:
            by_boxes = sorted(range(len(names)), key=lambda k: -tables[0][names[k]])
            most, others, least = by_boxes[:8], by_boxes[8:-7], by_boxes[-7:]
            sums = [str(sum(table[names[k]] for k in others)) for table in tables]
            rows = [*(rows[k] for k in most), [f"({len(others)} others)", *sums], *(rows[k] for k in least)]
        return [f"  {line}" for line in aligned([["class", *self.parts], *rows])]

    def refuse_drops(self) -> None:
        """Raises DetkitError if a label or an image was dropped."""
        if lost := [one for one in self.findings if not one.note and re.search("dropped|left out", one.name)]:
            what = f"{sum(one.count for one in lost)} labels or images are left out: {_named(lost)}"
            raise DetkitError(what, _examples(lost), "mend the data, or leave --strict out")


def summarise(parts: Mapping[str, Annotations], *, missing: bool = False) -> DataSummary:
    """Counts what was read.

    Args:
        parts: Labels by the part's name, of the same classes.
        missing: Look whether the images are there, too.
    """
    counted = {}
    # Parts that were drawn from one set share its findings.
    findings = Findings(found for own in {id(a.findings): a.findings for a in parts.values()}.values() for found in own)
    for name, a in parts.items():
        classes = dict(zip(a.classes, a.class_counts().tolist(), strict=True))
        counted[name] = {**a.counts(), "classes": classes}
        for file in (file for file in a.files if missing and not is_there(file)):
            findings.add("image that is not there (left out)", file)
    return DataSummary(counted, findings.as_list())


def refuse_nothing(a: Annotations) -> None:
    """Raises DetkitError, with the first examples, if the labels hold no box to learn from."""
    if (~(a.crowd | a.difficult)).any():
        return
    lost = [one for one in a.findings if one.examples]
    why = _named(lost) or f"{counted(len(a), 'image')}, and each box is crowd or difficult" * bool(len(a.labels))
    what = f"no box is left to learn from: {why or counted(len(a), 'image') + ' without a label'}"
    where = _examples(lost) or (str(a.source.path) if a.source else "")
    raise DetkitError(what, where, "see what was read, label by label: detkit data check DATA")


def _named(findings: Sequence[Finding]) -> str:
    return ", ".join(f"{one.count} x {one.name}" for one in findings)


def _examples(findings: Sequence[Finding]) -> str:
    return "; ".join([example for one in findings for example in one.examples][:3])


def unlike_pycocotools(a: Annotations, results: Results) -> list[str]:
    """Sentences on why pycocotools prints other numbers, and which; none where it prints the same.

    Args:
        a: The labels.
        results: The detections.
    """
    notes = []
    if (a.ids == 0).any():
        notes.append("an annotation has the id 0, which pycocotools takes for not found whatever is found")
    if len(np.unique(a.ids)) < len(a.ids):
        notes.append("annotation ids are used again: all boxes count here, pycocotools keeps the last of each id")
    if notes and len(a.ids) + len(results) <= _SMALL:
        notes[-1] += f"; its AP would be {pycocotools_metrics(a.ground_truth(), results)['AP']:.4f}"
    elif notes:
        notes[-1] += "; --check pycocotools prints its numbers"
    if flat := sum(one.count for one in a.findings if one.name in DEGENERATE):
        left_out = f"{counted(flat, 'box')} without area or outside left out"
        notes.append(f"{left_out}; pycocotools counts them (--keep-degenerate)")
    if a.source is not None and a.source.format == "coco" and (count := a.counts()["difficult"]):
        notes.append(f"{counted(count, 'difficult object')} counted neither way (pycocotools counts them)")
    return notes
