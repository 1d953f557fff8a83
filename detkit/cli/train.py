"""``detkit train``: an experiment from a YAML file, or the default recipe on any data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.common import Printable
from detkit.errors import DetkitError

Devices = Annotated[
    int, Option(min=1, help="GPUs to train on, a process for each; without GPUs, processes on the CPU.")
]


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
    name: Annotated[str | None, Option(help="Of the run folder in runs/; a number is added where it is taken.")] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Run two steps and a batch of validation, estimate time and memory.")
    ] = False,
    devices: Devices = 1,
) -> Printable | int:
    """Train a detector. Without CONFIG, the default recipe on --data: no YAML is needed to start."""
    configs = [word for word in words or () if "=" not in word]
    overrides = [word for word in words or () if "=" in word]
    config = configs[0] if configs else None
    if len(configs) > 1:
        raise DetkitError(f"unexpected {configs[1]!r}", do="give one CONFIG, then KEY=VALUE overrides")
    if resume and (config or data or out or name):
        raise DetkitError("--resume goes on with a run as it was", do="leave out CONFIG, --data, --out and --name")
    if devices > 1 and "RANK" not in os.environ:
        from detkit import cli
        from detkit.engine.launch import launch_processes

        return launch_processes(cli.given, devices)
    if device:
        overrides.append(f"train.device={device}")
    from detkit import api, training

    if threads:
        api.set_threads(threads)
    done = training.train(
        config,
        data=data,
        format=format,
        overrides=overrides,
        out=out,
        name=name,
        resume=resume,
        dry_run=dry_run,
        strict=strict,
    )
    return done if os.environ.get("RANK", "0") == "0" else 0  # of several processes one speaks


def pretrain(
    words: Annotated[list[str], Argument(metavar="CONFIG [KEY=VALUE]...", help="A YAML file or a shipped name.")],
    data: Annotated[str, Option(help="A folder of images; labels in it are not read.")],
    device: options.Device = None,
    threads: options.Threads = None,
    out: options.Out = None,
    name: Annotated[str | None, Option(help="Of the run folder in runs/; a number is added where it is taken.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Two steps, then an estimate of time and memory.")] = False,
    devices: Devices = 1,
) -> Printable | int:
    """Train a backbone on images without labels. CONFIG is rotation, simclr or frame_order, or one of yours.

    model.backbone.weights=RUN then starts any training from it; detkit train --resume RUN goes on.
    """
    from detkit.training import check_pretext

    configs = [word for word in words if "=" not in word]
    check_pretext(configs[0] if configs else "", [word for word in words if "=" in word])
    return train(words, data, "images", None, device, threads, out, False, name, dry_run, devices)
