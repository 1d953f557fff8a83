"""Frames with their detections: from a predictor, or from a file with or without the video that it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.detections.json_files import detected_lines
from detkit.io.detections.mot import read_mot
from detkit.io.files import reading
from detkit.io.sources import Failure, Frame
from detkit.structures import Detections

Seen = tuple[Frame, Detections]
_MOST = 1 << 20  # pixels of a side


def numbered(
    frames: Iterable[Frame | Failure], name: str, fps: float | None, failures: list[Failure]
) -> Iterator[Frame]:
    """Frames of one video, camera or folder, in order; images of a folder become frames of a video of its name.

    Args:
        frames: What was read.
        name: Of the folder.
        fps: Frames a second, in place of what the video says; None: that.
        failures: Gets what could not be read.
    """
    for number, frame in enumerate(frames):
        if isinstance(frame, Failure):
            failures.append(frame)
        elif frame.index is None:
            yield replace(frame, source=name, index=number, fps=fps)
        else:
            yield replace(frame, fps=frame.fps if fps is None else fps)


def read_found(path: Path) -> list[Seen]:
    """The detections in a file, by frame; the frames' images are black.

    Args:
        path: Lines of ``detect --json``, of a video's frames or of images in their order; or MOT txt, whose only class
            is called "object".

    Raises:
        DetkitError: The first line that cannot be used, or frames that are not in order.
    """
    with reading(str(path)):
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise DetkitError("the detections file is empty", str(path), "make it with detkit detect --json")
    return list(_json(path, raw) if raw.lstrip()[:1] == b"{" else _mot(path))


def with_video(frames: Iterable[Frame], found: list[Seen], path: Path) -> Iterator[Seen]:
    """The frames of a video with the detections that a file has of them; none where it has no such frame.

    Raises:
        DetkitError: The file was made of another video.
    """
    by_number = {frame.index: (frame, detections) for frame, detections in found}
    classes, last = found[0][1].classes, -1
    for frame in frames:
        there, detections = by_number.get(frame.index, (frame, Detections.empty(classes)))
        if there.width > 0 and (there.width, there.height) != (frame.width, frame.height):
            what = f"its frames have {there.width} x {there.height} pixels, the video's {frame.width} x {frame.height}"
            raise DetkitError(what, str(path), "give the video that was detected on")
        last = frame.index or 0
        yield frame, detections
    if found[-1][0].index is not None and found[-1][0].index > last >= 0:
        what = f"it has detections of frame {found[-1][0].index}, the video ends with frame {last}"
        raise DetkitError(what, str(path), "give the video that was detected on")


def _json(path: Path, raw: bytes) -> Iterator[Seen]:
    lines = list(detected_lines(path, raw))
    names = dict.fromkeys(one.label for _, line in lines for one in line.detections)
    labels, before, video = {name: i for i, name in enumerate(names)}, -1, lines[0][1].source
    for place, (row, line) in enumerate(lines):
        number, where = place if line.frame is None else line.frame, f"{path}, line {row}"
        if line.frame is not None and line.source != video:
            what = f"frames of {line.source} follow frames of {video}"
            raise DetkitError(what, where, "keep the frames of one video in a file")
        if not (0 <= line.width < _MOST and 0 <= line.height < _MOST):
            raise DetkitError(f"no image has {line.width} x {line.height} pixels", where, "detect again")
        if number <= before:
            raise DetkitError(f"frame {number} comes after frame {before}", where, "sort the lines by frame")
        before = number
        boxes = np.array([one.box for one in line.detections], np.float32).reshape(-1, 4)
        scores = [one.score for one in line.detections]
        found = Detections(boxes, scores, [labels[one.label] for one in line.detections], tuple(names))
        yield _frame(line.source, number, line.width, line.height), found


def _mot(path: Path) -> Iterator[Seen]:
    rows = read_mot(path)
    scores = np.where(rows.score < 0, 1.0, rows.score)  # -1: without a score
    if (scores > 1).any():
        row = int(np.flatnonzero(scores > 1)[0])
        what = f"a score of {scores[row]:g}, at frame {rows.frame[row]}"
        raise DetkitError(what, str(path), "scores lie in 0 to 1: divide them")
    corners = np.concatenate([rows.xywh[:, :2], rows.xywh[:, :2] + rows.xywh[:, 2:]], 1)
    for number in range(1, int(rows.frame.max()) + 1):
        which = np.flatnonzero(rows.frame == number)
        which = which[np.argsort(-scores[which], kind="stable")]
        found = Detections(corners[which], scores[which], np.zeros(len(which), np.int64), ("object",))
        yield _frame(path.stem, number - 1, 0, 0), found


def _frame(source: str, number: int, width: int, height: int) -> Frame:
    return Frame(np.broadcast_to(np.uint8(0), (height, width, 3)), source, number)
