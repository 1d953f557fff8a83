"""Plots as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.errors import DetkitError
from detkit.io.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def written_figure(path: Path, width: float, height: float, *, overwrite: bool = False) -> Iterator[Figure]:
    """A matplotlib figure to draw in; ``path`` holds it after the block.

    Args:
        path: The file; its suffix is the format.
        width: Inches.
        height: Inches.
        overwrite: Replace the file if it exists.

    Raises:
        DetkitError: another ending than an image's, a file that exists, a full disk.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    kind, figure = image_format(path), Figure(figsize=(width, height), layout="constrained")
    yield figure
    with atomic_path(path, overwrite) as temporary:
        figure.savefig(temporary, dpi=110, format=kind)


def image_format(path: Path) -> str:
    """The suffix of ``path`` as matplotlib names it; DetkitError if it cannot write that."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("png", "jpg", "jpeg", "pdf", "svg", "webp"):
        what = f"plots cannot be written as {path.suffix or 'a file without suffix'}"
        raise DetkitError(what, str(path), "use .png, .jpg, .pdf or .svg")
    return suffix
