"""All verbs in one list. Their files import what is heavy only when they run, so ``--help`` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import detkit
from detkit.cli.common import printed
from detkit.registry import import_from

GROUPS = {"data": "data", "import": "import_", "inspect": "inspect"}  # and their files
WORK = (
    "detect:detect",
    "train:train",
    "evaluate:evaluate",
    "evaluate:compare",
    "compress:compress",
    "propose:propose",
    "label:label",
    "serve:serve",
)
ABOUT = ("about:config", "about:models", "about:info", "about:doctor", "quickstart:quickstart")

app = typer.Typer(
    name="detkit",
    help="Object detection in one small package: detect, train, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: the same everywhere, and quick
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"detkit {detkit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error (any place on the line).")
    ] = False,
) -> None:
    """Object detection in one small package: detect, train, evaluate."""


for name, file in GROUPS.items():
    group: typer.Typer = import_from(f"detkit.cli.{file}:app")
    for command in group.registered_commands:
        command.callback = command.callback and printed(command.callback)
    app.add_typer(group, name=name)
for place in (*WORK, *ABOUT):  # a file and a function in it, whose name is the verb's
    app.command()(printed(import_from(f"detkit.cli.{place}")))
