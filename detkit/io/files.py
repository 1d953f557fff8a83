"""Files that appear whole or not at all, plots too, and errors of the disk in a person's words."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.errors import DetkitError, nearest_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_ANOTHER = "choose another name, or allow overwriting (--overwrite)"
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Explains what goes wrong in the block when a file is opened and read.

    Args:
        where: The file, as a person knows it.

    Raises:
        DetkitError: In place of every OSError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DetkitError("no such file", where, nearest_path(where, "check the path")) from error
    except IsADirectoryError as error:
        raise DetkitError("this is a folder, a file was expected", where, "name a file in it") from error
    except PermissionError as error:
        raise DetkitError("the file may not be read", where, "check its permissions") from error
    except OSError as error:
        raise DetkitError(f"the file cannot be read ({error.strerror or error})", where, "check the disk") from error
    except ValueError as error:
        if not isinstance(error, UnicodeEncodeError) and "null byte" not in str(error):
            raise
        raise DetkitError("no file can have such a name", ascii(where), "check the path") from error


def refuse_deep_nesting(text: str, where: str) -> None:
    """Lets pass what people write; on thousands of brackets in one another readers of YAML take minutes.

    Raises:
        DetkitError: More than a hundred are open at once.
    """
    depth = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        if depth > 100:
            raise DetkitError("more than 100 brackets are open at once", where, "give a sound file")


def text_of(file: Path) -> str:
    """The text of a file in UTF-8; DetkitError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        do = "check its path, and save it as UTF-8"
        raise DetkitError(f"cannot read this file: {error}", str(file), do) from None


def names_in(file: Path) -> list[str]:
    """A name per line; empty ones are none."""
    return [line.strip() for line in text_of(file).splitlines() if line.strip()]


def digits_in(text: object) -> int | None:
    """The number that a text of up to 18 digits is; else None: Python refuses to read thousands of them."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 18 else None


def write_error(error: OSError, path: str | Path) -> DetkitError:
    """The error to show when writing ``path`` failed: code 4 if there is no room, else 2."""
    if error.errno in _FULL:
        do = "free some space, or write to another disk"
        return DetkitError("no room left to write the file", str(path), do, code=4)
    if error.errno in _FORBIDDEN:
        return DetkitError("writing is not permitted here", str(path), "choose a folder that you may write to")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return DetkitError("a file stands where a folder is needed", str(path), "choose another name")
    return DetkitError(f"the file cannot be written ({error.strerror or error})", str(path), "choose another path")


def refuse_existing(path: str | Path | None, overwrite: bool) -> None:
    """Does nothing where a file may be written, or where none is to be.

    Raises:
        DetkitError: ``path`` is a folder, or exists and may not be replaced.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise DetkitError("this is a folder, a file's name was expected", str(path), "add a file name")
    if not overwrite and os.path.lexists(path):
        raise DetkitError("the file exists already", str(path), _ANOTHER)


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the disk in the block, which writes ``path`` by way of ``temporary``, in a person's words."""
    try:
        yield
    except BrokenPipeError:  # of what is printed in the block
        raise
    except OSError as error:
        # Reading something else inside the block may fail too: that error is not ours to explain.
        ours = str(error.filename).startswith(str(temporary)) or error.filename in (str(path), str(path.parent), None)
        if ours or error.errno in _FULL | _FORBIDDEN:
            raise write_error(error, path) from error
        raise


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` with its suffix, which vanishes with the block; errors of the disk explained."""
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _explained(path, temporary):
            yield temporary
    finally:
        _remove(temporary)


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well and vanishes otherwise.

    The temporary name keeps the suffix; missing parent folders are made.

    Raises:
        DetkitError: ``path`` exists (and not ``overwrite``) or may not be written; code 4: the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    with _temporary(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        refuse_existing(path, overwrite)
        os.replace(temporary, path)


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


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` whose files become those of ``path`` when the block ends well.

    With ``overwrite`` they join a folder that exists and replace only files of the same name.

    Raises:
        DetkitError: ``path`` is a file, or a folder that is not empty (without ``overwrite``), or may not be written;
            code 4: the disk is full.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        _refuse_filled(path, overwrite)
        temporary.mkdir(parents=True)
        yield temporary
        _join(temporary, path)


def _refuse_filled(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise DetkitError("a file stands where a folder is needed", str(path), "choose another name")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise DetkitError("the folder is not empty", str(path), _ANOTHER)


def _join(temporary: Path, path: Path) -> None:
    """Moves what lies in ``temporary`` into the folder ``path``."""
    if not path.is_dir():
        os.replace(temporary, path)
    for folder, _, names in os.walk(temporary):
        home = path / os.path.relpath(folder, temporary)
        home.mkdir(exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), home / name)
    _remove(temporary)


@contextmanager
def growing(path: str | Path, overwrite: bool = False, *, folder: bool = False) -> Iterator[Path]:
    """A new empty file or folder for an output that grows for hours; it becomes ``path`` when the block ends.

    It lies beside ``path`` as ``NAME.partial.SUFFIX``, so that a process that is killed leaves it there. A block that
    is stopped (Ctrl-C, SIGTERM, a closed pipe) has ended, too; after an error what is not empty stays as it is, and a
    warning names it.

    Args:
        path: The file or folder.
        overwrite: Replace the file, or join the folder and replace files of the same name.
        folder: ``path`` is a folder.

    Raises:
        DetkitError: As ``atomic_path`` and ``atomic_folder``.
    """
    path = Path(path)
    refuse = _refuse_filled if folder else refuse_existing
    name = path.with_name(f"{path.stem[:60]}.partial")
    with _explained(path, name):
        refuse(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        for copy in count(1):
            partial = path.with_name(f"{name.name}{'' if copy == 1 else f'-{copy}'}{path.suffix}")
            with suppress(FileExistsError):
                partial.mkdir() if folder else partial.open("x").close()
                break
    failed: BaseException | None = None
    try:
        with _explained(path, partial):
            yield partial
    except BaseException as error:
        empty = not any(partial.iterdir()) if folder else not partial.exists() or not partial.stat().st_size
        if empty:
            _remove(partial)
            raise
        if isinstance(error, Exception) and not isinstance(error, BrokenPipeError):
            warnings.warn(f"what was written before the error is kept: {partial}", stacklevel=1)
            raise
        failed = error
    with _explained(path, partial):
        refuse(path, overwrite)
        _join(partial, path) if folder else os.replace(partial, path)
    if failed is not None:
        raise failed


def write_bytes(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Writes ``data`` to ``path`` atomically; errors as in ``atomic_path``."""
    with atomic_path(path, overwrite) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, *, overwrite: bool = False) -> None:
    """Writes ``text`` as UTF-8 with plain newlines to ``path`` atomically; errors as in ``atomic_path``."""
    write_bytes(path, text.encode("utf-8"), overwrite=overwrite)


def write_lines(path: str | Path, lines: Iterable[object], *, overwrite: bool = False) -> None:
    """``write_text`` of lines, each with its end."""
    write_text(path, "".join(f"{line}\n" for line in lines), overwrite=overwrite)


def numbered_folder(parent: str | Path, stem: str) -> Path:
    """Makes and returns a folder that did not exist: ``parent/stem``, or ``parent/stem2``, ``parent/stem3``, ...

    Two processes never get the same one.

    Raises:
        DetkitError: No folder can be made there.
    """
    parent = Path(parent)
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except OSError as error:
            if not isinstance(error, FileExistsError) or not parent.is_dir():
                raise write_error(error, folder) from error
            number += 1


def common_folder(files: Iterable[str]) -> str:
    """The absolute path of the deepest folder that holds all of the files."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])


def flat_names(files: Sequence[str], taken: set[str] | None = None) -> list[str]:
    """File names without folders; a number is added where two, or one and one of ``taken``, would be the same.

    Args:
        files: Paths.
        taken: Names in lower case, and these without their endings; the new ones are added.
    """
    taken, names = set() if taken is None else taken, []
    for file in files:
        stem, suffix = os.path.splitext(os.path.basename(file))
        own, k = stem, 2
        while own.lower() in taken:  # label files are named by the stem, so stems must differ
            own, k = f"{stem}_{k}", k + 1
        taken.add(own.lower())
        names.append(own + suffix)
    return names
