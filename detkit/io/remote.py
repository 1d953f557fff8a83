"""Files behind an address (s3://, gs://, hdfs://, memory://, ...), as fsspec reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import splitext
from typing import Any

from detkit.errors import DetkitError
from detkit.io.files import write_error
from detkit.io.images import IMAGE_SUFFIXES
from detkit.io.video import without_password


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Explains what goes wrong in the block with a store of files; what a library says itself may hold a credential.

    Raises:
        DetkitError: In place of every exception; with code 4 where it is no single file's fault.
    """
    where = without_password(address)
    try:
        yield
    except DetkitError:
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise DetkitError("no such file", where, "check the path") from None
    except PermissionError:
        do = "check the store's credentials, in the environment or in the file where it looks for them"
        raise DetkitError("the store refuses access", where, do, code=4) from None
    except ImportError as error:
        do = "pip install 'detkit[scale]'" if (error.name or "").startswith("fsspec") else str(error)
        raise DetkitError("this kind of address needs another package", where, do) from None
    except Exception as error:  # each store has its own kinds
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            do = "give s3://, gs://, hdfs://, file:// or another that fsspec knows"
            raise DetkitError("there is no such kind of address", where, do) from None
        if isinstance(error, OSError) and (full := write_error(error, where)).code == 4:
            raise full from None
        kind = type(error).__name__  # NoCredentialsError, DefaultCredentialsError, ...
        what = "credentials are missing" if "Credential" in kind else f"the store cannot be reached ({kind})"
        raise DetkitError(what, where, "check the address, the network and the credentials", code=4) from None


@contextmanager
def unless_the_store_fails() -> Iterator[None]:
    """Passes over what goes wrong in the block with a single file; an error of code 4 goes on."""
    try:
        yield
    except DetkitError as error:
        if error.code == 4:
            raise


def filesystem(place: str) -> tuple[Any, str]:
    """fsspec's file system of a path or an address, and the path in it."""
    with reaching(place):
        from fsspec.core import url_to_fs

        if "::" in place:
            raise DetkitError("chained addresses are not opened", without_password(place), "unpack the files first")
        if without_password(place) != place and "@" in place:
            do = "it would be written into every row: set it where the store's own tools look for it"
            raise DetkitError("a password or a user stands in the address", without_password(place), do)
        fs, path = url_to_fs(place)
        return fs, str(path)


def listed(address: str) -> Iterator[tuple[str, int | None]]:
    """Address and size in bytes of the images directly in a folder, of all that match a pattern, or of one file.

    Raises:
        DetkitError: Nothing is there, or it cannot be reached.
    """
    fs, path = filesystem(address)
    start = address.removesuffix(path) if address.endswith(path) else ""
    with reaching(address):
        if any(mark in path for mark in "*?["):
            there = fs.glob(path, detail=True).values()
        elif fs.isdir(path):
            there = [one for one in fs.ls(path, detail=True) if splitext(one["name"])[1].lower() in IMAGE_SUFFIXES]
        else:
            there = [fs.info(path)]
        found = {str(one["name"]): one.get("size") for one in there if one["type"] == "file"}
        if not found:
            raise DetkitError("no image lies there", without_password(address), "give a folder, or a pattern with *")
        for name in sorted(found):
            yield start + name if start else fs.unstrip_protocol(name), found[name]


def read_address(address: str, size: int | None = None) -> bytes:
    """A file's bytes; DetkitError as ``reaching``. A known ``size``, if not 0, spares s3fs a request for it."""
    fs, path = filesystem(address)
    with reaching(address):
        return bytes(fs.cat_file(path, start=0 if size else None))
