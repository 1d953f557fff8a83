"""``detkit config``: every value in force of one experiment, or a shipped one to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from detkit.cli import options
from detkit.cli.common import Printed, emit
from detkit.errors import DetkitError


def config(
    file: Annotated[str, typer.Argument(metavar="FILE|NAME", help="A YAML file, or a shipped config's name.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to change.")] = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Print a config: with every value in force for a FILE, as it was written for a shipped NAME."""
    from pathlib import Path

    from detkit.config.experiment import read_config, shipped

    for change in overrides or ():
        if "=" not in change:
            raise DetkitError(f"{change!r} is not KEY=VALUE", do="write train.epochs=20, say")
    if not Path(file).is_file() and not overrides and not as_json:
        print(shipped(file).read_text(encoding="utf-8"), end="")
        return 0
    from detkit.engine.options import TrainOptions

    checked = read_config(file, overrides or (), train_schema=TrainOptions)
    emit(Printed(checked.to_dict(), checked.to_yaml().splitlines()), as_json)
    return 0
