"""Fetching one file whose contents are known beforehand."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import IO

from detkit.errors import DetkitError
from detkit.io.files import atomic_path

CONNECT = 10.0  # seconds: an absent network is reported, not waited for


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


def _blocks(url: str) -> Iterator[bytes]:
    try:
        with _opened(url) as response:
            while block := response.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DetkitError(f"the download failed ({reason})", url, "check the connection and try again") from error


def _opened(url: str) -> IO[bytes]:
    """``urlopen`` that answers within CONNECT seconds: the socket's limit starts anew with each address of a server,
    and looking up its name has none."""
    answer: Future[IO[bytes]] = Future()

    def ask() -> None:
        try:
            answer.set_result(urllib.request.urlopen(url, timeout=CONNECT))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=CONNECT)
    except TimeoutError:
        raise TimeoutError(f"no answer within {CONNECT:.0f} seconds") from None
