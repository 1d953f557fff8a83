"""Why a run stops, in a person's words, and the signals that ask it to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from detkit.errors import DetkitError
from detkit.io.files import write_error
from detkit.structures import Batch

_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "not enough memory")


class Interrupted(DetkitError):
    """Ctrl-C (code 130) or SIGTERM (code 143); the state is saved and ``do`` says how to go on."""


class StopRequest:
    """The signal that asked the run to stop, or 0."""

    signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Notes a first signal, to be obeyed between two steps; a second one stops at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def interrupted(self, run: Path) -> Interrupted:
        """The error to raise when the state is saved."""
        name, code = ("SIGTERM", 143) if self.signal == signal.SIGTERM else ("Ctrl-C", 130)
        return Interrupted(f"stopped by {name}", str(run), f"go on with: detkit train --resume {run}", code=code)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM as a request while the block runs; outside the main thread Python hears none."""
    stop = StopRequest()
    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def not_finite(what: str, batches: Sequence[Batch], epoch: int) -> DetkitError:
    """The error (code 4) of a loss or gradient that is no number: names the images of the batches."""
    paths = [path or str(name) for b in batches for path, name in zip(b.paths, b.image_ids, strict=True)]
    shown = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
    return DetkitError(
        f"the {what} is not a number any more (epoch {epoch + 1})",
        f"batch of {shown or 'another process'}",
        "lower train.lr (or train.clip), check these images' labels, or train with precision fp32",
        code=4,
    )


@contextmanager
def explained(run: Path) -> Iterator[None]:
    """Turns failures that a person can mend into DetkitError code 4: memory, the disk, a process that is gone."""
    try:
        yield
    except DetkitError as error:
        if isinstance(error.__cause__, OSError):
            error.code = 4
        raise
    except OSError as error:
        found = write_error(error, error.filename or run)
        found.code = 4
        raise found from error
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip()
        where = text.splitlines()[0][:200] if text else ""
        if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
            do = "lower train.batch (and raise train.accumulate as much), model.size or train.workers"
            raise DetkitError("not enough memory", where, do, code=4) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in text:
            do = f"that one says why; detkit train --resume {run} goes on from the last save"
            raise DetkitError("another process of this run has ended", do=do, code=4) from error
        raise
