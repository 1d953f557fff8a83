"""Where an image file's bytes lie: on the disk, in a tar shard (``shards/000.tar/a.jpg``) or at an address.

A shard is read at any place, by the offsets that its headers give, so the order of training, and where a run goes on,
are those of loose files. This is WebDataset's layout of samples (a plain tar of files).
"""

from __future__ import annotations

import io
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

from detkit.errors import DetkitError

_TAR = ".tar/"


def bytes_of(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        DetkitError: A shard or a member that is not there or cut off; what ``detkit.io.remote.reaching`` raises.
        OSError: As reading a file does.
    """
    if is_address(path):
        from detkit.io.remote import read_address

        return read_address(path)
    tar, member = _in_tar(path)
    if tar is None:
        return Path(path).read_bytes()
    place = _offsets(tar, _time(tar)).get(member)
    if place is None:
        raise DetkitError("this shard holds no such file", path, "check the name: tar -tf lists them")
    with open(tar, "rb") as file:
        file.seek(place[0])
        data = file.read(place[1])
    if len(data) < place[1]:
        raise DetkitError("this tar file is cut off", tar, "copy it again")
    return data


def identity_of(path: str) -> str:
    """Differs between files, and once a file is another; raises as ``bytes_of``."""
    if is_address(path):
        from detkit.io.remote import filesystem, reaching

        fs, place = filesystem(path)
        with reaching(path):
            return f"{path} {fs.ukey(place)}"
    found = os.stat(_in_tar(path)[0] or path)
    return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def opened(path: str) -> BinaryIO:
    """The file, to read; see ``bytes_of``."""
    stored = is_address(path) or _in_tar(path)[0] is not None
    return io.BytesIO(bytes_of(path)) if stored else open(path, "rb")


def is_address(path: str) -> bool:
    """True for s3://... and its like, which fsspec reads; what http serves is fetched only where a person asks."""
    return "://" in path and not path.startswith(("http://", "https://", "ftp://"))


def is_there(path: str) -> bool:
    """True for a file on the disk or in a shard; an address is believed."""
    tar, member = _in_tar(path)
    return is_address(path) or (os.path.isfile(path) if tar is None else member in _offsets(tar, _time(tar)))


def tar_members(folder: Path) -> dict[str, str]:
    """Of each file in a folder's tar shards its path from the folder on (``000.tar/a.jpg``), by its name."""
    found: dict[str, str] = {}
    for tar in sorted(folder.glob("*.tar")):
        found |= {name: f"{tar.name}/{name}" for name in _offsets(str(tar), _time(str(tar)))}
    return found


def _in_tar(path: str) -> tuple[str | None, str]:
    start, mark, member = path.partition(_TAR)
    tar = start + _TAR[:-1]
    return (tar, member) if mark and os.path.isfile(tar) else (None, "")


def _time(tar: str) -> int:
    return os.stat(tar).st_mtime_ns


@cache
def _offsets(tar: str, changed: int) -> dict[str, tuple[int, int]]:
    """Offset and length of each file; ``changed``: of the shard, so that a new one is looked at anew."""
    try:
        with tarfile.open(tar, "r:") as file:
            return {one.name.removeprefix("./"): (one.offset_data, one.size) for one in file if one.isfile()}
    except tarfile.TarError as error:
        do = "shards are plain tar files, not compressed: copy it again, or unpack it"
        raise DetkitError(f"this tar file cannot be read ({error})", tar, do) from None
