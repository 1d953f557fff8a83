"""``detkit help``: what an error's number means."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from detkit.errors import DetkitError, error_pages
from detkit.printed import Printed


def help_(
    number: Annotated[
        str | None, typer.Argument(metavar="NUMBER|WORDS", help="An error's number, or words of its message.")
    ] = None,
) -> Printed:
    """Explain an error by its number. Without one, list them all."""
    pages = error_pages()
    if number is None:
        titles = {page.number: page.title for page in pages.values()}
        return Printed(titles, [f"{one}  {title}" for one, title in titles.items()])
    digits = re.fullmatch(r"\[?e?0*(\d+)\]?", number.strip(), re.IGNORECASE)
    page = pages.get(f"E{digits[1]:0>3}" if digits else DetkitError(number.strip()).number)
    if page is None:
        do = f"detkit help lists them all, {min(pages)} to {max(pages)}; of a verb: detkit VERB --help"
        raise DetkitError(f"there is no error {number}", do=do)
    text = re.sub(r"\[([^\]]+)\]\(\.\./docs/([^)]+)\)", r"\1 (docs/\2)", page.text)
    return Printed({"number": page.number, "title": page.title, "text": page.text}, text.rstrip().splitlines())
