"""What every verb shares: options with one name everywhere, output on stdout, messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.detector import Predicting

DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="COCO json, VOC folder, data.yaml or class folders.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
SplitOption = Annotated[str | None, typer.Option("--split", help="Which part of DATA (train, val, ...).")]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="Folder of the images of a COCO json.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Write to exactly this path.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Weights file, run folder or shipped name.")]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Weights file, run folder, shipped name or torchvision/NAME; see --ensemble."),
]
EnsembleOption = Annotated[
    bool, typer.Option("--ensemble", help="Fuse the answers of two or more models (their weights are never averaged).")
]
TtaOption = Annotated[
    str | None,
    typer.Option(
        "--tta", help="Look again: flip (mirrored), scales (resized); a classifier: crops. Several by commas."
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps (default: the best).")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="fp32, bf16 (faster where the hardware has it, coarser) or auto.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: torch's choice).")]


def load_predictor(
    models: Sequence[str] | None,
    *,
    ensemble: bool,
    tta: str | None,
    device: str | None,
    threads: int | None,
    size: int | None = None,
    precision: str = "fp32",
) -> Predicting:
    """What ``--model``, ``--ensemble``, ``--tta`` and their kind ask for.

    Raises:
        DetkitError: several models without ``--ensemble`` or one with it, and all that ``detkit.load`` raises.
    """
    models = list(models or ())
    if len(models) > 1 and not ensemble:
        what = f"{len(models)} models without --ensemble: {', '.join(models)}"
        raise DetkitError(what, do="add --ensemble to fuse their answers, or name one model at a time")
    if ensemble and len(models) < 2:
        raise DetkitError("an ensemble needs two or more models", "--ensemble", "name another one")
    from detkit import api

    views = [] if tta is None else names_in(tta) or [tta]
    return api.load(models or None, device=device, threads=threads, size=size, precision=precision, tta=views)


def names_in(text: str) -> list[str]:
    """The names of a list such as ``cat, dog``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def is_config(name: str) -> bool:
    """Whether a word means a config: a YAML file, or a shipped one's name."""
    from detkit.config import shipped_configs

    return name in shipped_configs() or Path(name).suffix in (".yaml", ".yml")


def progress(done: int, total: int, unit: str = "batches") -> None:
    """How far a long task is, on one line of stderr, for a person who is watching."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {unit}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def message(text: str) -> None:
    """A line for people, on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN becomes null, since JSON has none."""
    from detkit.arrays import plain

    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), flush=True)
