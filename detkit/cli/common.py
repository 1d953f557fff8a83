"""What every verb shares besides its options: results on stdout, messages on stderr.

A verb returns what is to be printed (alone, or with an exit code), and ``printed`` makes a command of it; or, having
said all, an exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Protocol

from detkit.cli import options
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.predictor import Predictor


def load_predictor(
    models: Sequence[str] | None,
    *,
    ensemble: bool,
    tta: str | None,
    device: str | None,
    threads: int | None,
    size: int | None = None,
    precision: str = "fp32",
) -> Predictor:
    """What ``--model``, ``--ensemble``, ``--tta`` and their kind ask for.

    Args:
        models: Files, run folders or names; none: the shipped default.
        ensemble: Fuse two or more.
        tta: Views by name, several by commas.
        device: As ``detkit.load``.
        threads: As ``detkit.load``.
        size: As ``detkit.load``.
        precision: As ``detkit.load``.

    Raises:
        DetkitError: Several models without ``--ensemble`` or one with it, and all that ``detkit.load`` raises.
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


def progress(done: int, total: int, unit: str = "batches") -> None:
    """How far a long task is, on one line of stderr, for a person who is watching."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {unit}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def message(text: str) -> None:
    """A line for people, on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """``message`` of something that a result's reader should know."""
    message(f"detkit: {text}")


class Printable(Protocol):
    """What a verb prints: the result of the one function that it calls."""

    def to_dict(self) -> Mapping[str, object]:
        """For ``--json``."""

    def lines(self) -> Sequence[str]:
        """For a person."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A ``Printable`` of what is at hand, for results that have no class of their own."""

    facts: Mapping[str, object]
    text: Sequence[str]

    def to_dict(self) -> Mapping[str, object]:
        return self.facts

    def lines(self) -> Sequence[str]:
        return self.text


Result = Printable | tuple[Printable, int] | int


def printed(verb: Callable[..., Result]) -> Callable[..., int]:
    """``verb`` as a command that also has ``--plugin`` and ``--json``, and returns an exit code; a verb that prints
    as it goes is told ``as_json``."""
    own = signature(verb, eval_str=True)

    @wraps(verb)
    def command(*, as_json: bool, plugin: None, **given: object) -> int:
        result = verb(**given, as_json=as_json) if "as_json" in own.parameters else verb(**given)
        if isinstance(result, int):
            return result
        shown, code = result if isinstance(result, tuple) else (result, 0)
        emit(shown, as_json)
        return code

    added = [
        Parameter("plugin", Parameter.KEYWORD_ONLY, default=None, annotation=options.Plugins),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=options.Json),
    ]
    mine = [one for name, one in own.parameters.items() if name != "as_json"]
    vars(command)["__signature__"] = own.replace(parameters=[*mine, *added])
    return command


def emit(result: Printable, as_json: bool) -> None:
    """Prints a result on stdout: its lines, or one JSON document, in which NaN is null since JSON has none."""
    from detkit.arrays import plain

    lines = result.lines()
    if as_json:
        lines = [json.dumps(plain(result.to_dict()), ensure_ascii=False, allow_nan=False)]
    for line in lines:
        print(line, flush=True)
