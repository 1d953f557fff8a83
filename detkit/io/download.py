"""Fetching one file: with contents that are known beforehand, or an image or video that a person names."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from detkit.errors import DetkitError
from detkit.io.files import atomic_path

CONNECT = 10.0  # seconds: an absent network is reported, not waited for
LARGEST = 1 << 29  # bytes of an image or video that is fetched
_BYTES = ("application/octet-stream", "binary/octet-stream", "application/mp4")  # what servers also call them


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, sha256: str, to: str | Path) -> Path:
    """Makes sure that ``to`` holds the file with this SHA-256, downloading it from ``url`` if need be.

    A file that is there and right is kept without touching the network.

    Args:
        url: https, or file.
        sha256: Hexadecimal, or as many of its first digits as are known.
        to: The file; returned.

    Raises:
        DetkitError: no connection, contents other than promised (nothing is kept), disk full.
    """
    to = Path(to)
    if to.is_file() and sha256_of(to).startswith(sha256):
        return to
    if not url.startswith(("https://", "file://")):
        raise DetkitError("only https addresses are fetched", url, "give an https address")
    with atomic_path(to, overwrite=True) as temporary:
        digest = hashlib.sha256()
        with open(temporary, "wb") as file:
            for block in _blocks(url):
                file.write(block)
                digest.update(block)
        if not digest.hexdigest().startswith(sha256):
            do = "try again; if it stays so, the file at that address has changed: do not use it"
            raise DetkitError("the downloaded file is not the one expected (its SHA-256 differs)", url, do)
    return to


@contextmanager
def fetched(url: str, limit: int = LARGEST) -> Iterator[Path]:
    """An image or video from the network as a file without suffix that vanishes after the block.

    Args:
        url: http or https.
        limit: Bytes; larger files are refused.

    Raises:
        DetkitError: no connection, another type of content, too large, the connection broke off.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "file", 0
        with path.open("wb") as file:
            for block in _blocks(url, limit):
                size += len(block)
                if size > limit:
                    raise _too_large(url, limit)
                file.write(block)
        yield path


def _too_large(url: str, limit: int) -> DetkitError:
    return DetkitError(f"the file is larger than {limit >> 20} MB", url, "fetch it with other means and name the file")


def _blocks(url: str, limit: int | None = None) -> Iterator[bytes]:
    """The contents; with a limit of their bytes only those of an image or video."""
    import http.client

    try:
        with _opened(url) as response:
            promised = int(response.headers.get("Content-Length") or -1)
            if limit is not None:
                kind = response.headers.get_content_type()
                usable = kind.startswith(("image/", "video/")) or kind in _BYTES
                if not usable and response.headers["Content-Type"]:
                    what = f"this is no image and no video but {kind}"
                    raise DetkitError(what, url, "name the address of the file itself")
                if promised > limit:
                    raise _too_large(url, limit)
            while block := response.read(1 << 20):
                promised -= len(block)
                yield block
            if promised > 0:
                raise ConnectionError("the connection broke off")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DetkitError(f"the download failed ({reason})", url, "check the connection and try again") from error


def _opened(url: str) -> Any:
    """``urlopen`` that answers within CONNECT seconds: the socket's limit starts anew with each address of a server,
    and looking up its name has none."""
    import urllib.request

    answer: Future[object] = Future()
    asked = urllib.request.Request(url, headers={"User-Agent": "detkit"})  # some servers refuse Python's own name

    def ask() -> None:
        try:
            answer.set_result(urllib.request.urlopen(asked, timeout=CONNECT))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=CONNECT)
    except TimeoutError:
        raise TimeoutError(f"no answer within {CONNECT:.0f} seconds") from None
