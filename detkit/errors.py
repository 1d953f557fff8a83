"""What is told to a person: the one error that is meant for them, and results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path


class DetkitError(Exception):
    """A user's mistake or a state that a user can mend: what happened, where, and what to do about it.

    ``code`` is the exit code of the command line: 2 for wrong input or usage, 4 for a run that had to stop.
    """

    def __init__(self, what: str, where: str = "", do: str = "", *, code: int = 2) -> None:
        super().__init__("\n".join(line for line in (what, where, do) if line))
        self.what, self.where, self.do, self.code = what, where, do, code

    @property
    def number(self) -> str:
        """Of the page that explains this kind of error (``detkit help E020``); empty for those of other packages."""
        fits = [
            (len(message), page.number)
            for page in error_pages().values()
            for message in page.messages
            if self.what.startswith(message.partition("…")[0])
            and re.fullmatch(".*?".join(map(re.escape, message.split("…"))), self.what, re.DOTALL)
        ]
        return max(fits)[1] if fits else ""

    def __reduce__(self) -> tuple[object, ...]:
        # Keeps the three lines when the error crosses from a data worker's process.
        return (_rebuild_error, (type(self), self.what, self.where, self.do, self.code))


class InputNote(UserWarning):
    """An input is used though something about it was put right or assumed; the command line says it once and counts."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.where = where


@dataclass(frozen=True)
class ErrorPage:
    """What is to know about one kind of error.

    Attributes:
        number: E and three digits.
        title: In a few words.
        text: The page, as Markdown.
        messages: What its errors say first; … stands for what differs.
    """

    number: str
    title: str
    text: str
    messages: tuple[str, ...]


@cache
def error_pages() -> Mapping[str, ErrorPage]:
    """The pages of errors.md by their numbers."""
    sections = re.split(r"^## ", Path(__file__).with_suffix(".md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = {}
    for section in sections[1:]:
        number, title = section.partition("\n")[0].split(" ", 1)
        messages = re.findall(r"^- `(.*)`$", section, re.MULTILINE)
        pages[number] = ErrorPage(number, title, f"{section.rstrip()}\n", tuple(messages))
    return pages


def _rebuild_error(kind: type[DetkitError], what: str, where: str, do: str, code: int) -> DetkitError:
    return kind(what, where, do, code=code)


def small_image_error(error: Exception) -> DetkitError | None:
    """What to tell a person of torch's error where an image is too small for a network that does not pad; else None."""
    text = str(error).partition("\n")[0]
    if "Kernel size can't be greater" not in text and "Output size is too small" not in text:
        return None
    return DetkitError("the images are too small for this network", text, "give a larger --size or model.size")


def some(values: Sequence[object]) -> str:
    """The first few of them, for a sentence."""
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def nearest(name: object, names: Iterable[object], *, otherwise: str | None = None) -> str:
    """What to do about an unknown name: the nearest of ``names``, or all of them.

    Args:
        name: What was given.
        names: What there is.
        otherwise: The sentence where none is near; None: the names are listed.
    """
    known = [str(one) for one in names]
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    if otherwise is not None:
        return otherwise
    return f"choose one of {', '.join(known)}" if known else "leave it out"


def nearest_path(path: str | Path, otherwise: str) -> str:
    """What to do about a path where nothing is: the nearest name beside it, or ``otherwise``."""
    path = Path(path)
    beside = [one.name for one in islice(path.parent.iterdir(), 1000)] if path.parent.is_dir() else []
    return nearest(path.name, beside, otherwise=otherwise)
