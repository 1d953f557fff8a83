"""Strips of frames of films, side by side: what the order of frames is learned from."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import atomic_folder
from detkit.io.images import write_image
from detkit.io.sources import Failure, open_sources
from detkit.printed import Printed, counted


def write_strips(
    source: str, out: Path, *, frames: int = 3, step: int = 5, overwrite: bool = False
) -> tuple[Printed, int]:
    """Writes OUT/000000.jpg and so on; each strip begins ``step`` frames after the one before.

    Frames of another size than the strip's first begin a new strip.

    Args:
        source: A video, or a folder of frames in the order of their names.
        out: Folder to write.
        frames: Of a strip.
        step: From each of its frames to the next; large enough that something moves.
        overwrite: Replace files of the same names.

    Returns:
        As facts: out, strips, failed (frames that cannot be read); and how many these are.

    Raises:
        DetkitError: Too few frames for a strip, or OUT cannot be written.
    """
    kept: deque[np.ndarray] = deque(maxlen=frames)
    written, failed = 0, list[Failure]()
    with atomic_folder(out, overwrite) as folder:
        for number, frame in enumerate(open_sources(source)):
            if isinstance(frame, Failure):
                failed.append(frame)
                continue
            if number % step:
                continue
            if kept and kept[-1].shape != frame.image.shape:
                kept.clear()
            kept.append(frame.image)
            if len(kept) == frames:
                write_image(folder / f"{written:06d}.jpg", np.hstack(list(kept)))
                written += 1
        if not written and failed:
            raise DetkitError(failed[0].what, failed[0].source, failed[0].do)
        if not written:
            what = f"no {frames} frames of one size, {step} apart"
            raise DetkitError(what, source, "give a longer film, or a smaller --step")
    left_out = [f"{one.source}: {one.what}" for one in failed]
    said = [f"{out}: {counted(written, 'strip')} of {frames} frames", *(f"left out: {one}" for one in left_out)]
    return Printed({"out": out, "strips": written, "failed": left_out}, said), len(failed)
