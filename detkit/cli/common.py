"""What every verb shares besides its options: results on stdout, messages on stderr.

A verb returns what is to be printed (alone, or with an exit code), and ``printed`` makes a command of it; or, having
said all, an exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Protocol

from detkit.cli import options

_LONG = 40  # steps, from which on a log file is told how far a task is


def progress(done: int, total: int, unit: str = "batches") -> None:
    """How far a task is, on stderr: one line that changes, where a person watches; in a log one for each tenth."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {unit}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif total >= _LONG and done and done % -(-total // 10) == 0:
        message(f"{done} of {total} {unit}")


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


Result = Printable | tuple[Printable, int] | int


def printed(verb: Callable[..., Result]) -> Callable[..., int]:
    """``verb`` as a command that also has ``--plugin`` and ``--json``, and returns an exit code.

    A verb that prints as it goes is told ``as_json``. An argument that is a dataclass stands for options of its fields.
    """
    own = signature(verb, eval_str=True)
    groups: dict[str, type] = {}
    known: list[Parameter] = []
    for name, argument in own.parameters.items():
        if isinstance(argument.annotation, type) and is_dataclass(argument.annotation):
            groups[name] = argument.annotation
            known += signature(argument.annotation, eval_str=True).parameters.values()
        elif name != "as_json":
            known.append(argument)

    @wraps(verb)
    def command(*, plugin: None, as_json: bool, **given: object) -> int:
        for name, group in groups.items():
            given[name] = group(**{key: given.pop(key) for key in signature(group).parameters})
        result = verb(**given, as_json=as_json) if "as_json" in own.parameters else verb(**given)
        if isinstance(result, int):
            return result
        shown, code = result if isinstance(result, tuple) else (result, 0)
        emit(shown, as_json)
        return code

    known += [
        Parameter("plugin", Parameter.KEYWORD_ONLY, default=None, annotation=options.Plugins),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=options.Json),
    ]
    everything = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in known]
    vars(command)["__signature__"] = own.replace(parameters=everything)
    return command


def emit(result: Printable, as_json: bool) -> None:
    """Prints a result on stdout: its lines, or one JSON document, in which NaN is null since JSON has none."""
    from detkit.arrays import plain

    lines = result.lines()
    if as_json:
        lines = [json.dumps(plain(result.to_dict()), ensure_ascii=False, allow_nan=False)]
    for line in lines:
        print(line, flush=True)
