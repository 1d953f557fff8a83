"""Label lines of YOLO: what they hold is told by the whole data set, never by one line alone.

A line begins with the class number; fractions of the image follow: "x y w h", a box's centre and size; the corners
of a polygon, "x1 y1 x2 y2 x3 y3 ...", four of which are an oriented box; or a box and its key points, "x y" or
"x y visible" each. A score may end every line of a set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Findings
from detkit.data.reading import ObjectTable

_FRACTIONS = 2.0  # a number above it is no fraction of the image, but in pixels


class _Line(NamedTuple):
    image: int
    where: str
    number: float
    values: list[float]


class _Kind(NamedTuple):
    """What all lines have in common: key points and the numbers of each, and whether a score ends them."""

    points: int = 0
    numbers: int = 0
    score: bool = False


def parse_lines(labels: Sequence[str | None], files: Sequence[str], findings: Findings) -> list[_Line]:
    """The lines of numbers of all label files.

    Args:
        labels: The label file of each image; None: it has none.
        files: The images.
        findings: What cannot be read is added to it.
    """
    found = []
    for i, name in enumerate(labels):
        if name is None:
            if os.path.exists(files[i]):
                findings.add("image without a label file (taken as without objects)", files[i], note=True)
            else:
                findings.add("neither image nor label file is there", files[i])
            continue
        try:
            lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            findings.add("label file cannot be read (image kept without objects)", f"{name}: {error}")
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                first, *values = [float(word) for word in line.split()]
            except ValueError:
                findings.add("line that is not numbers (dropped)", f"{name}:{number}: {line[:60]}")
                continue
            found.append(_Line(i, f"{name}:{number}", first, values))
    return found


def objects_of(
    lines: Sequence[_Line],
    sizes: np.ndarray,
    classes: Mapping[float, int],
    findings: Findings,
    keypoints: tuple[int, int] | None = None,
) -> ObjectTable:
    """Objects of the lines, in their order.

    Args:
        lines: See ``parse_lines``.
        sizes: (I, 2) height and width of the images; 0: unknown.
        classes: Class number to label.
        findings: What is dropped or made into something else is added to it.
        keypoints: The yaml's kpt_shape: how many, and how many numbers each; None: it has none.
    """
    kind = _Kind(*keypoints) if keypoints else _kind(lines, findings)
    size = 4 + kind.points * kind.numbers
    rows, kept, points, polygons = [], list[_Line](), [], []
    for line in lines:
        values = line.values[:-1] if kind.score or (kind.points and len(line.values) == size + 1) else line.values
        n, label = len(values), classes.get(line.number)
        is_box = n == 4 or (kind.points > 0 and n == size)
        if not is_box and (n < 6 or n % 2 or kind.points):
            columns = f"{line.where}: {n + 1} columns, expected {size + 1}"
            findings.add("wrong number of columns (line dropped)", columns)
        elif label is None:
            findings.add("unknown class number (line dropped)", f"{line.where}: {line.number:g}")
        elif not sizes[line.image].all():
            findings.add("image's size is unknown (its boxes dropped)", line.where)
        elif max(values[:4] if is_box else values) > _FRACTIONS:
            findings.add("numbers are not fractions of the image (line dropped)", line.where)
        else:
            x, y, w, h = values[:4] if is_box else _bounds(values)
            rows.append((line.image, label, x - w / 2, y - h / 2, w, h))
            kept.append(line)
            points.append(values[4:] if n == size else [0.0] * (size - 4))
            if not is_box:
                polygons.append(line)
    oriented = bool(polygons) and all(len(line.values) - kind.score == 8 for line in polygons)
    name = "oriented box made into an upright one" if oriented else "polygon made into a box"
    for line in polygons:
        findings.add(name, line.where, note=True)
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 6)
    index, labels = table[:, :2].astype(np.int64).T
    scale = sizes[index][:, [1, 0]].astype(np.float64)
    found = ObjectTable(index, table[:, 2:] * np.tile(scale, 2), labels, lambda row: kept[row].where)
    if kind.points:
        found.points = _points(np.asarray(points).reshape(len(rows), kind.points, kind.numbers), scale)
    return found


def _bounds(corners: Sequence[float]) -> tuple[float, float, float, float]:
    """Centre and size of the box around corners x1, y1, x2, y2, ..."""
    points = np.asarray(corners).reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)  # NaN stays, and is counted later
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _points(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, K, 2 or 3) fractions as (N, K, 3) pixels and visible; without that number, points at 0, 0 are not."""
    seen = values[..., 2] if values.shape[2] == 3 else (values != 0).any(axis=2).astype(np.float64)
    return np.concatenate([values[..., :2] * scale[:, None], seen[..., None]], axis=2)


def _kind(lines: Sequence[_Line], findings: Findings) -> _Kind:
    """What the lines have in common, where no yaml says it."""
    counts = {len(line.values) for line in lines}
    n = counts.pop() if len(counts) == 1 else 0
    if n > 8:  # polygons hardly ever have the same number of corners each
        values = np.asarray([line.values for line in lines])
        for numbers in (3, 2):
            if (n - 4) % numbers == 0 and _are_points(values, numbers):
                kind = _Kind((n - 4) // numbers, numbers)
                name = "key points told by the numbers themselves, as the yaml has no kpt_shape"
                findings.add(name, f"{kind.points} points of {numbers} numbers, {lines[0].where}", note=True)
                return kind
    odd = bool(lines) and all(len(line.values) % 2 and len(line.values) >= 5 for line in lines)
    if odd and all(0 <= line.values[-1] <= 1 for line in lines):
        findings.add("last column taken as a score (left out)", lines[0].where, count=len(lines), note=True)
        return _Kind(score=True)
    return _Kind()


def _are_points(values: np.ndarray, numbers: int) -> bool:
    """True if behind each box, the first four numbers, lie points within it, of as many numbers each.

    Corners of a polygon do not: the first would be the centre, and the second the size, of a box around the others.
    """
    box, points = values[:, None, :4], values[:, 4:].reshape(len(values), -1, numbers)
    seen = points[..., 2] > 0 if numbers == 3 else (points != 0).any(axis=2)
    flags = len(values) > 2 if numbers == 2 else bool(np.isin(points[..., 2], (0, 1, 2)).all())
    inside = (np.abs(points[..., :2] - box[..., :2]) <= box[..., 2:] / 2 + 1e-3).all(axis=2)
    return flags and bool(seen.any()) and bool((inside | ~seen).all())
