"""``detkit config``: every value in force of one experiment, or a shipped one to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from detkit.cli.common import Printed


def config(
    file: Annotated[str, Argument(metavar="FILE|NAME", help="A YAML file, or a shipped config's name.")],
    overrides: Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Values to change.")] = None,
    as_json: bool = False,
) -> Printed | int:
    """Print a config: with every value in force for a FILE, as it was written for a shipped NAME."""
    from detkit.config.experiment import read_config, shipped
    from detkit.engine.options import TrainOptions

    if not Path(file).is_file() and not overrides and not as_json:
        print(shipped(file).read_text(encoding="utf-8"), end="")
        return 0
    checked = read_config(file, overrides or (), train_schema=TrainOptions)
    return Printed(checked.to_dict(), checked.to_yaml().splitlines())
