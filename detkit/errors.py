"""The one error that is meant for a person."""

from __future__ import annotations

from typing import Any


class DetkitError(Exception):
    """A user's mistake or a state that a user can mend: what happened, where, and what to do about it.

    ``code`` is the exit code of the command line: 2 for wrong input or usage, 4 for a run that had to stop.
    """

    def __init__(self, what: str, where: str = "", do: str = "", *, code: int = 2) -> None:
        super().__init__("\n".join(line for line in (what, where, do) if line))
        self.what, self.where, self.do, self.code = what, where, do, code

    def __reduce__(self) -> tuple[Any, ...]:
        # Keeps the three lines when the error crosses from a data worker's process.
        return (_rebuild_error, (type(self), self.what, self.where, self.do, self.code))


def _rebuild_error(kind: type[DetkitError], what: str, where: str, do: str, code: int) -> DetkitError:
    return kind(what, where, do, code=code)
