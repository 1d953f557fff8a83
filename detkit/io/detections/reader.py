"""Detections from files, in whatever form; what would silently change a score is an error that names the place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.detections.json_files import read_json
from detkit.io.detections.lookup import Labelled
from detkit.io.detections.text_files import is_text, read_texts
from detkit.tables import Results

_FEW = 20  # detections that say nothing about a whole file
_SEARCHED = 20_000  # detections among which repeated ones are looked for, in a file that is in order


def read_detections(path: str | Path, data: Labelled) -> tuple[Results, list[str]]:
    """The detections of a file or folder, in file order.

    A file's form is told by its first character, and by PASCAL's names (comp4_det_test_CLASS.txt). COCO entries name
    images and categories by the data's own ids (an image of an unknown id by its file_name, if words are among the
    ids); JSON lines by file name and class name; for folders see ``read_texts``.

    Args:
        path: COCO results, lines of ``detect --json`` (both also gzip), or text files.
        data: What was detected on.

    Returns:
        The table, and notes for a person: what is unusual, with counts.

    Raises:
        DetkitError: A file that is missing, empty, cut off (with the byte) or of another form; wrong types; unknown
            images or classes; numbers that are not finite; scores outside 0..1; boxes of negative size; two lines for
            one image; a line whose image has another size.
    """
    path = Path(path)
    results, where, notes = read_texts(path, data) if is_text(path) else read_json(path, data)
    _check(results, where)
    flat = int(np.count_nonzero((results.xywh[:, 2:] == 0).any(axis=1)))
    if flat:
        notes.append(f"{flat} detections of zero width or height (they match nothing)")
    return results, notes + score_warnings(results, data.sizes)


def _check(results: Results, where: Callable[[int], str]) -> None:
    """Raises DetkitError for numbers that make no sense, with the first place and how many there are."""
    finite = np.isfinite(results.score) & np.isfinite(results.xywh).all(axis=1)
    rules = (
        (~finite, "a box or score is not a finite number", "the model's output holds NaN or infinity: repair it first"),
        ((results.score < 0) | (results.score > 1), "a score lies outside 0..1", "write probabilities, not logits"),
        (
            (results.xywh[:, 2:] < 0).any(axis=1),
            "a box of negative size",
            "COCO's bbox is x, y, width, height; box is x1, y1, x2, y2",
        ),
    )
    for bad, what, do in rules:
        if bad.any():
            row = int(np.argmax(bad))
            box = [round(float(v), 3) for v in results.xywh[row]]
            detail = f"score {results.score[row]:g}, x y width height {box}; {np.count_nonzero(bad)} such"
            raise DetkitError(what, f"{where(row)}: {detail}", do)


def score_warnings(results: Results, sizes: np.ndarray) -> list[str]:
    """Sentences on boxes and scores that look like those of another kind of file, though nothing in it is wrong.

    Boxes that end outside their images (corners taken for a width and height, resized images) or are fractions;
    scores that were cut off or are all the same; detections that stand in the file twice.

    Args:
        results: The detections.
        sizes: (I, 2) height, width of the images in pixels, 0 if unknown.
    """
    if len(results) < _FEW:
        return []
    notes = []
    size = sizes[:, ::-1].astype(np.float64)
    size[(size == 0).any(axis=1)] = np.inf  # unknown
    ends = results.xywh[:, :2] + results.xywh[:, 2:]
    if ends.max() <= 1.01 < size.min():
        notes.append("all boxes lie within one pixel: are they fractions of the image? COCO's bbox is in pixels")
    outside = int((ends > size[results.image] + 1).any(axis=1).sum())
    if outside > len(results) / 4:
        what = f"{outside} of {len(results)} boxes end outside their images"
        notes.append(f"{what}: are they x1, y1, x2, y2 instead of x, y, width, height, or of resized images?")
    low, high = float(results.score.min()), float(results.score.max())
    if low == high:
        notes.append(f"all detections have the score {low:g}: AP depends on their order in the file")
    elif low > 0.1:
        notes.append(f"no detection scores below {low:.2g}: AP counts those too (detkit detect --conf 0.001)")
    looked_at = _worth_searching(results)
    if twice := _repeated(looked_at):
        what = f"{'at least ' * (len(looked_at) < len(results))}{twice} detections stand in the file again"
        notes.append(f"{what}, box, class and score: each one more is a false one")
    return notes


def _worth_searching(results: Results) -> Results:
    """All detections, but only the first ones of a file that keeps those of an image together."""
    runs = 1 + np.count_nonzero(results.image[1:] != results.image[:-1])
    in_order = runs == np.count_nonzero(np.bincount(results.image))
    return results[np.arange(_SEARCHED)] if in_order and len(results) > _SEARCHED else results


def _repeated(results: Results) -> int:
    """Detections that equal an earlier one: those of the same sum, each column having a weight of its own."""
    columns = (results.image, results.label, results.score, *results.xywh.T)
    weights = np.random.default_rng(0).random(len(columns))
    sums = sum(weight * column for weight, column in zip(weights, columns, strict=True))
    return len(results) - len(np.unique(sums))
