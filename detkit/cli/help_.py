"""``detkit help``: what an error's number means."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from detkit.errors import DetkitError, error_pages, nearest
from detkit.printed import Printed


def help_(
    number: Annotated[
        str | None, typer.Argument(metavar="[NUMBER|WORDS]", help="An error's number, or words of its message.")
    ] = None,
) -> Printed:
    """Explain an error by the number that it ends with; without one, list them all."""
    pages = error_pages()
    if number is None:
        return Printed(
            {page.number: page.title for page in pages.values()}, [f"{p.number}  {p.title}" for p in pages.values()]
        )
    page = pages.get(number.upper().strip("[]"))
    if page is None and " " in number.strip():
        page = pages.get(DetkitError(number.strip()).number)
    if page is None:
        raise DetkitError(
            f"there is no error {number}", do=nearest(number.upper(), pages, otherwise="detkit help lists them")
        )
    text = re.sub(r"\[([^\]]+)\]\(\.\./docs/([^)]+)\)", r"\1 (docs/\2)", page.text)
    return Printed({"number": page.number, "title": page.title, "text": page.text}, text.rstrip().splitlines())
