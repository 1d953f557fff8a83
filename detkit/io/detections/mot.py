"""MOT Challenge's text files: frame, track, left, top, width, height, score; more is not read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.errors import DetkitError
from detkit.io.detections.writers import FileWriter
from detkit.io.files import reading
from detkit.io.sources import Frame

if TYPE_CHECKING:
    from detkit.structures import Detections

_FORM = "write frame,id,left,top,width,height,score per line (frames from 1, pixels)"


@dataclass(frozen=True, slots=True, eq=False)
class MotTable:
    """The rows of a file, in file order.

    Attributes:
        frame: (N,) int64, from 1.
        id: (N,) int64, -1 in files of detections.
        xywh: (N, 4) float64 left, top, width, height, pixels.
        score: (N,) float64; 1 where the file has none.
    """

    frame: np.ndarray
    id: np.ndarray
    xywh: np.ndarray
    score: np.ndarray


def read_mot(path: str | Path) -> MotTable:
    """The rows of a MOT file, separated by commas or blanks.

    Raises:
        DetkitError: The file, and the first line that cannot be used.
    """
    with reading(str(path)), open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = [(number, line.replace(",", " ").split()) for number, line in enumerate(file, 1)]
    rows = np.ones((len(lines), 7))
    for number, words in lines:
        if words:
            try:
                rows[number - 1, : min(len(words), 7)] = [float(word) for word in words[:7]]
            except ValueError as error:
                raise DetkitError(str(error), f"{path}, line {number}", _FORM) from None
            bad = len(words) < 6 or not np.isfinite(rows[number - 1]).all()
            if bad or rows[number - 1, 0] < 1 or (rows[number - 1, :2] % 1).any():
                what = f"this is not a row of MOT's: {','.join(words)}"
                raise DetkitError(what, f"{path}, line {number}", _FORM)
    rows = rows[[bool(words) for _, words in lines]] if lines else rows
    return MotTable(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2:6], rows[:, 6])


class MotWriter(FileWriter):
    """MOT txt: ``frame,id,left,top,width,height,score,-1,-1,-1``, frames from 1; id -1 for detections without track."""

    _images = 0

    def _text(self, frame: Frame, detections: Detections) -> str:
        self._images += 1
        number = self._images if frame.index is None else frame.index + 1
        found = detections.numpy()
        ids = found.extra.get("track_id", np.full(len(found), -1))
        rows = zip(ids.tolist(), found.xywh.tolist(), found.scores.tolist(), strict=True)
        return "".join(
            f"{number},{track},{','.join(f'{v:.2f}' for v in box)},{score:.6f},-1,-1,-1\n" for track, box, score in rows
        )
