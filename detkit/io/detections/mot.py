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


_MOST = 10_000_000  # frames: four days of video


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
            row = rows[number - 1]
            try:
                row[: min(len(words), 7)] = [float(word) for word in words[:7]]
            except ValueError:
                row[0] = np.nan
            if len(words) < 6 or not np.isfinite(row).all() or not 1 <= row[0] <= _MOST or (row[:2] % 1).any():
                what = f"this is not a row of MOT's: {','.join(words)[:60]!r}"
                raise DetkitError(what, f"{path}, line {number}", _FORM)
    rows = rows[[bool(words) for _, words in lines]] if lines else rows
    return MotTable(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2:6], rows[:, 6])


def read_tracks(path: Path, *, labelled: bool = False) -> tuple[MotTable, int]:
    """The rows of a MOT file that holds tracks, and how many more it has that are not asked for.

    Args:
        path: The file.
        labelled: It is ground truth, where a score of 0 marks a box that is not asked for.

    Raises:
        DetkitError: As ``read_mot``; a box without track or area, two boxes of a track in a frame, nothing labelled.
    """
    rows = read_mot(path)
    kept = (rows.score != 0) | (not labelled)
    table = MotTable(rows.frame[kept], rows.id[kept], rows.xywh[kept], rows.score[kept])
    if labelled and not len(table.id):
        raise DetkitError("no track is labelled here, so nothing can be measured", str(path), "name another file")
    order = np.lexsort((table.id, table.frame))
    frame, track = table.frame[order], table.id[order]
    again = (np.diff(frame, prepend=0) == 0) & (np.diff(track, prepend=0) == 0)
    faults = {
        "a box has no track": ((track < 0), "these are detections: detkit track --predictions FILE --out tracks.txt"),
        "a box has no area": ((table.xywh[order, 2:] <= 0).any(1), "take it out, or write left,top,width,height"),
        "the track has more than one box there": (again, "keep one box per track and frame"),
    }
    for what, (wrong, do) in faults.items():
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DetkitError(what, f"{path}, frame {frame[row]}, track {track[row]}", do)
    return table, int((~kept).sum())


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
