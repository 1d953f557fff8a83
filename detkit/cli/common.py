"""What every verb shares: options with one name everywhere, output on stdout, messages on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
SplitOption = Annotated[str | None, typer.Option("--split", help="Which part of DATA (train, val, ...).")]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="Folder of the pictures of a COCO json.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Write to exactly this path.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Weights file, run folder or shipped name.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps (default: the best).")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: torch's choice).")]


def message(text: str) -> None:
    """A line for people, on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN becomes null, since JSON has none."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and value != value:
        return None
    return str(value) if isinstance(value, Path) else value
