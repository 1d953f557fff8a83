"""The engine's events as a person follows them: a moving bar in a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detkit.engine.events import Event


@contextmanager
def shown() -> Iterator[Callable[[Event], None]]:
    """What draws events on stderr while the block runs; of several processes that train together the first speaks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from detkit.engine.events import BatchDone, BatchValidated, EpochStarted, TrainFinished

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    console, still = Console(stderr=True, highlight=False), not sys.stderr.isatty()
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, disable=still, transient=True)
    task = bar.add_task("starting", total=None, note="")

    def show(event: Event) -> None:
        if isinstance(event, EpochStarted):
            bar.reset(task, total=event.steps, description=f"epoch {event.epoch + 1}/{event.epochs}", note="")
        elif isinstance(event, BatchDone):
            note = "  ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
            bar.update(task, completed=event.step + 1, note=note)
        elif isinstance(event, BatchValidated):
            bar.update(task, description="validation", completed=event.step + 1, total=event.steps)
        elif isinstance(event, TrainFinished):
            pass  # the result, which the caller has
        elif bar.live.is_started:
            bar.console.print(str(event), markup=False)
        else:
            print(event, file=sys.stderr, flush=True)

    if os.environ.get("RANK", "0") != "0":
        yield lambda event: None
        return
    with bar:
        yield show
