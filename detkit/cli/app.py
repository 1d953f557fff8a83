"""All verbs in one list. Their files import what is heavy only when they run, so ``--help`` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import detkit
from detkit.cli import (
    compare,
    compress,
    config,
    data,
    detect,
    doctor,
    evaluate,
    import_,
    info,
    inspect,
    models,
    propose,
    quickstart,
    train,
)

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


app.command("detect")(detect.detect)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("compress")(compress.compress)
app.add_typer(data.app, name="data")
app.add_typer(import_.app, name="import")
app.command("propose")(propose.propose)
app.command("config")(config.config)
app.command("models")(models.models)
app.command("info")(info.info)
app.add_typer(inspect.app, name="inspect")
app.command("doctor")(doctor.doctor)
app.command("quickstart")(quickstart.quickstart)
