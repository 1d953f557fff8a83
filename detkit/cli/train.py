"""``detkit train``: an experiment from a YAML file, or the default recipe on any data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable, message
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.engine.events import Event


def train(
    words: Annotated[
        list[str] | None,
        Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, a shipped name, or a model to train on."),
    ] = None,
    data: Annotated[str | None, Option(help="A data set of any format to train on (docs/data.md).")] = None,
    format: options.Format = None,
    resume: Annotated[Path | None, Option(help="Go on with this run folder.")] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    out: options.Out = None,
    strict: options.Strict = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Run two steps and a batch of validation, estimate time and memory.")
    ] = False,
) -> Printable | int:
    """Train a detector. Without CONFIG, the default recipe on --data: no YAML is needed to start."""
    configs = [word for word in words or () if "=" not in word]
    overrides = [word for word in words or () if "=" in word]
    config = configs[0] if configs else None
    if len(configs) > 1:
        raise DetkitError(f"unexpected {configs[1]!r}", do="give one CONFIG, then KEY=VALUE overrides")
    if resume and (config or data or out):
        raise DetkitError("--resume goes on with a run as it was", do="leave out CONFIG, --data and --out")
    if not (config or data or resume):
        raise DetkitError("nothing to train on", do="detkit train --data DATA, or detkit train CONFIG.yaml")
    if device:
        overrides.append(f"train.device={device}")
    from detkit import api, training

    if threads:
        api.set_threads(threads)
    run = partial(training.train, config, data=data, format=format, overrides=overrides, out=out, resume=resume)
    run = partial(run, dry_run=dry_run, strict=strict)
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
        run()
        return 0
    with _progress() as show:
        return run(on_event=show)


@contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Draws the engine's events: a moving bar for a person, a line per epoch for a pipe."""
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
        elif not isinstance(event, TrainFinished):  # the result, which is printed at the end
            bar.console.print(str(event), markup=False) if bar.live.is_started else message(str(event))

    with bar:
        yield show
