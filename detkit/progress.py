"""The engine's events as a person follows them: a bar in a terminal, bar and curve in a notebook, elsewhere lines."""

from __future__ import annotations

import base64
import html
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detkit.engine.events import BatchDone, Event

Show = Callable[["Event"], None]
_REDRAWN = 0.5  # seconds between two changes of a notebook's bar


def shown() -> AbstractContextManager[Show]:
    """What draws events while the block runs; of several processes that train together the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        return nullcontext(lambda event: None)
    return _in_notebook() if _is_notebook() else _on_stderr()


def _is_notebook() -> bool:
    """True in a kernel that shows pictures; IPython is there already, if this is one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


@contextmanager
def _on_stderr() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from detkit.engine.events import BatchDone, BatchValidated, EpochStarted, Saved, TrainFinished

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    console, still = Console(stderr=True, highlight=False), not sys.stderr.isatty()
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, disable=still, transient=True)
    task = bar.add_task("starting", total=None, note="")

    def show(event: Event) -> None:
        if isinstance(event, EpochStarted):
            bar.reset(task, total=event.steps, description=f"epoch {event.epoch + 1}/{event.epochs}", note="")
        elif isinstance(event, BatchDone):
            bar.update(task, completed=event.step + 1, note=_losses(event))
        elif isinstance(event, BatchValidated):
            bar.update(task, description="validation", completed=event.step + 1, total=event.steps)
        elif isinstance(event, (Saved, TrainFinished)):
            pass  # files of the run folder, and the result, which the caller has
        elif bar.live.is_started:
            bar.console.print(str(event), markup=False)
        else:
            print(event, file=sys.stderr, flush=True)

    with bar:
        yield show


@contextmanager
def _in_notebook() -> Iterator[Show]:
    from IPython.display import HTML, display

    from detkit.engine.events import BatchDone, BatchValidated, EpochDone, EpochStarted, Saved, TrainFinished
    from detkit.engine.run_folder import draw_curves

    handle = display(HTML(""), display_id=True)
    lines: list[str] = []
    rows, curve, epoch, drawn = [], "", "", 0.0

    def redraw(bar: str = "") -> None:
        nonlocal drawn
        drawn = time.monotonic()
        handle.update(HTML(f"{bar}<pre>{html.escape(chr(10).join(lines))}</pre>{curve}"))

    def show(event: Event) -> None:
        nonlocal curve, epoch
        if isinstance(event, EpochStarted):
            epoch = f"epoch {event.epoch + 1}/{event.epochs}"
        elif isinstance(event, (BatchDone, BatchValidated)):
            if time.monotonic() - drawn > _REDRAWN:
                note = f"{epoch}  {_losses(event)}" if isinstance(event, BatchDone) else "validation"
                redraw(f'<progress value="{event.step + 1}" max="{event.steps}"></progress> {note}')
        elif not isinstance(event, (Saved, TrainFinished)):
            lines.append(str(event))
            if isinstance(event, EpochDone):
                rows.append(event.row)
                with TemporaryDirectory() as folder:
                    draw_curves(Path(folder) / "curves.png", rows, event.shown)
                    image = base64.b64encode((Path(folder) / "curves.png").read_bytes()).decode()
                curve = f'<img alt="losses and scores" width="700" src="data:image/png;base64,{image}">'
            redraw()

    yield show
    redraw()


def _losses(event: BatchDone) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
