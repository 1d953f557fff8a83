"""All verbs in one list. Their files import what is heavy only when they run, so ``--help`` is quick."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import detkit
from detkit.cli.common import printed
from detkit.cli.examples import epilog
from detkit.registry import import_from

# Under each heading a file and a function in it, whose name is the verb's; or a file that holds several.
VERBS = {
    "Use": ("detect:detect", "track:track", "match", "serve:serve", "quickstart:quickstart"),
    "Data": ("data", "label:label", "propose:propose"),
    "Train": ("train:train", "train:pretrain", "adapt:adapt", "about:config", "about:models"),
    "Judge": ("evaluate:evaluate", "evaluate:compare"),
    "Explain": ("inspect", "style:style", "about:info", "help_:help_"),
    "Deploy": ("import_", "export:export", "compress:compress", "about:doctor"),
}


def name_of(place: str) -> str:
    """Of a verb or of a group of them, on the command line."""
    return place.rpartition(":")[2].rstrip("_")


class Grouped(TyperGroup):
    """Lists the verbs under their headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As click's, which has one list for all."""
        longest = max(map(len, self.commands))
        for heading, places in VERBS.items():
            rows = [(name.ljust(longest), self.commands[name]) for name in map(name_of, places)]
            with formatter.section(heading):
                formatter.write_dl(
                    [(name, one.get_short_help_str(formatter.width - 6 - longest)) for name, one in rows]
                )


def _version(value: bool) -> None:
    if value:
        print(f"detkit {detkit.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error (any place on the line).")
    ] = False,
) -> None:
    """Object detection: detect, train, evaluate."""


@cache
def _verb(name: str, place: str) -> Any:
    """A command's function, or the app of a group of commands."""
    found = import_from(f"detkit.cli.{place if ':' in place else f'{place}:app'}")
    if not isinstance(found, typer.Typer):
        return printed(found)
    for command in found.registered_commands:
        assert command.callback is not None
        command.epilog = epilog(f"{name} {command.name or command.callback.__name__}")
        command.callback = printed(command.callback)
    return found


def app_of(words: Sequence[str] = ()) -> typer.Typer:
    """The command, with the one verb that ``words`` begin with, which is quicker made; else with all of them."""
    app = typer.Typer(
        name="detkit",
        cls=Grouped,
        help="Object detection: detect, train, evaluate.",
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help: the same everywhere, and quick
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    places = {name_of(place): place for place in itertools.chain(*VERBS.values())}
    for name in words[:1] if words and words[0] in places else places:
        verb = _verb(name, places[name])
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name)
        else:
            app.command(name, epilog=epilog(name))(verb)
    return app
