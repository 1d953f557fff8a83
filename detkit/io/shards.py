"""Detections of very many images: a folder of Parquet files, one per shard, and the manifest of what is in each.

``_manifest.parquet`` has a row group per shard (source, bytes); ``shard-00000.parquet`` has the first one's rows:
source, width, height, detections as in ``detect --json``, and error where an image could not be read. A file takes its
name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detkit.errors import DetkitError
from detkit.io.remote import filesystem, reaching, unless_the_store_fails
from detkit.io.stored import is_address

MANIFEST = "_manifest.parquet"  # readers of a folder of Parquet files pass over what begins so
_OTHER = "give another folder, the same sources and options as before, or --overwrite to start over"


def arrow() -> Any:
    """``pyarrow``, and ``pyarrow.parquet`` in it; DetkitError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DetkitError("Parquet files need pyarrow", do='pip install "detkit[scale]"') from None
    return pyarrow


@contextmanager
def opened_parquet(file: BinaryIO, where: str, do: str) -> Iterator[Any]:
    """The ``ParquetFile`` in ``file``; DetkitError, which says ``where`` and what to ``do``, if it is none."""
    pa = arrow()
    try:
        with file:
            yield pa.parquet.ParquetFile(file)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DetkitError("this Parquet file is damaged", where, do) from error


def _row_schema(pa: Any) -> Any:
    numbers = pa.list_(pa.float64())
    columns = {"label": pa.string(), "label_id": pa.int32(), "score": pa.float64(), "box": numbers}
    found = pa.list_(pa.struct({**columns, "points": pa.list_(numbers)}))
    size = {"width": pa.int32(), "height": pa.int32()}
    return pa.schema({"source": pa.string(), **size, "detections": found, "error": pa.string()})


@dataclass(frozen=True)
class Manifest:
    """What is to be detected, and how.

    Attributes:
        key: Differs from other manifests'; every shard holds it.
        sources: As they were named.
        settings: Of the detector; an output holds the detections of one.
        counts: Images of each shard.
    """

    key: str
    sources: Sequence[str]
    settings: Mapping[str, object]
    counts: Sequence[int] = field(repr=False)


class Shards:
    """A folder of shards, on this machine's disk or at an address.

    Args:
        out: The folder.
    """

    def __init__(self, out: str) -> None:
        self.out, self._pa = out, arrow()
        self._fs, root = filesystem(out)
        self._root = root.rstrip("/")

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine; None: it lies elsewhere."""
        return Path(self._root) if "file" in self._fs.protocol else None

    def path(self, number: int) -> str:
        """A shard's file, as its file system calls it."""
        return f"{self._root}/shard-{number:05d}.parquet"

    def exists(self) -> bool:
        """True if there is a manifest."""
        with reaching(self.out):
            return bool(self._fs.exists(f"{self._root}/{MANIFEST}"))

    def begin(
        self, files: Iterable[tuple[str, int | None]], size: int, sources: Sequence[str], settings: Mapping[str, object]
    ) -> None:
        """Writes the manifest.

        Args:
            files: Name of each image, and its bytes if they are known.
            size: Images per shard.
            sources: What the names come from.
            settings: Of the detector, as JSON can hold them.
        """
        pa = self._pa
        schema = pa.schema({"source": pa.string(), "bytes": pa.int64()})
        rows = iter(files)
        if not (first := list(islice(rows, 1))):
            raise DetkitError("no image was found", do="name images, a folder that holds some, or a list of them")
        with reaching(self.out):
            bucket = self._root.partition("/")[0]
            if bucket and not self._fs.exists(bucket):  # makedirs would make it, however it was misspelled
                raise DetkitError("there is no such bucket", self.out, "correct its name, or make it first")
            self._fs.makedirs(self._root, exist_ok=True)
        rows, digest = chain(first, rows), hashlib.sha256(f"{size} {json.dumps(settings, sort_keys=True)}".encode())
        with self._whole(MANIFEST) as file, pa.parquet.ParquetWriter(file, schema) as writer:
            while chunk := list(islice(rows, size)):
                names = [_as_utf8(name) for name, _ in chunk]
                writer.write_table(pa.table([names, [length for _, length in chunk]], schema=schema))
                digest.update(repr(chunk).encode("utf-8", "backslashreplace"))
            about = {"key": digest.hexdigest()[:32], "sources": [*map(_as_utf8, sources)], "settings": settings}
            writer.add_key_value_metadata({"detkit": json.dumps(about)})

    @cached_property
    def manifest(self) -> Manifest:
        """Of this folder.

        Raises:
            DetkitError: There is none, or it is damaged.
        """
        with self._opened(MANIFEST) as file:
            footer = file.metadata
            about = json.loads(footer.metadata[b"detkit"])
            counts = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        return Manifest(about["key"], about["sources"], about["settings"], counts)

    def check(self, sources: Sequence[str], settings: Mapping[str, object]) -> None:
        """Raises DetkitError where the manifest is of other sources, or of a detector that is set otherwise."""
        before = self.manifest
        if list(map(_as_utf8, sources)) != list(before.sources):
            what = f"this folder holds the detections of {', '.join(before.sources)}"
            raise DetkitError(what, self.out, _OTHER)
        for name, value in settings.items():
            if before.settings.get(name) != value:
                old, new = ("default" if one is None else one for one in (before.settings.get(name), value))
                what = f"this folder's detections were made with {name} {old}, not {new}"
                raise DetkitError(what, self.out, _OTHER)

    def changes(self, names: Iterable[str]) -> tuple[int, int]:
        """How many of the images that the sources hold now are not in the manifest, and how many of its own are gone.

        Raises:
            DetkitError: All of its images are gone.
        """
        now = np.fromiter((hash(_as_utf8(name)) for name in names), np.int64)
        with self._opened(MANIFEST) as file:
            rows = (row for batch in file.iter_batches(columns=["source"]) for row in batch.column(0).to_pylist())
            before = np.fromiter(map(hash, rows), np.int64)
        gone = len(np.setdiff1d(before, now))
        if gone and not np.isin(before, now).any():
            do = "start it in the same folder as before (is the disk there?), give another output, or --overwrite"
            raise DetkitError("not one image of this folder's list is there", self.out, do)
        return len(np.setdiff1d(now, before)), gone

    def files(self, number: int) -> list[tuple[str, int | None]]:
        """The images of a shard, each with its bytes if they were known."""
        with self._opened(MANIFEST) as file:
            columns = file.read_row_group(number).to_pydict()
        return list(zip(columns["source"], columns["bytes"], strict=True))

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a shard, in place of one that is there."""
        schema = _row_schema(self._pa).with_metadata({"detkit": self.manifest.key})
        with self._whole(self.path(number).rpartition("/")[2]) as file:
            self._pa.parquet.write_table(self._pa.Table.from_pylist(rows, schema), file)

    def clear(self) -> None:
        """Removes the shards, and then the manifest."""
        with reaching(self.out):
            for name in sorted(self._names(), reverse=True):
                if re.fullmatch(rf"shard-\d+\.parquet|{MANIFEST}", name):
                    self._fs.rm(f"{self._root}/{name}")

    def sweep(self, part: tuple[int, int]) -> None:
        """Removes what killed processes left half written, of the shards of this (k, n) only, whose lock one holds."""
        for path in self.folder.glob(".*.partial") if self.folder else ():
            number = re.match(r"\.shard-(\d+)\.", path.name)
            if (int(number[1]) % part[1] == part[0] - 1) if number else part[1] == 1:
                path.unlink(missing_ok=True)

    def missing(self, tell: Callable[[str], None] = lambda text: None) -> list[int]:
        """The shards that are not there, or not whole, which is told.

        Raises:
            DetkitError: A shard of another manifest.
        """
        with reaching(self.out):
            there = self._names()
        missing = []
        for number, count in enumerate(self.manifest.counts):
            name = self.path(number).rpartition("/")[2]
            if name not in there:
                missing.append(number)
                continue
            key, rows = self.manifest.key, -1
            with unless_the_store_fails(), self._opened(name) as file:
                key, rows = (file.metadata.metadata or {}).get(b"detkit", b"").decode(), file.metadata.num_rows
            if key != self.manifest.key:
                do = "each run needs a folder of its own: move the file away"
                raise DetkitError("this shard is of another run", f"{self.out}/{name}", do)
            if rows != count:
                tell(f"{self.out}/{name} is not whole: it is made again")
                missing.append(number)
        return missing

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the manifest's order, one shard in memory at a time.

        Raises:
            DetkitError: A shard is missing or damaged.
        """
        if missing := self.missing():
            what = f"{len(missing)} of {len(self.manifest.counts)} shards are missing or not whole"
            raise DetkitError(what, self.out, "run the same detkit detect --shards again: it makes what is missing")
        for number in range(len(self.manifest.counts)):
            with self._opened(self.path(number).rpartition("/")[2]) as file:
                table = file.read()
            yield from table.to_pylist()

    def _names(self) -> set[str]:
        self._fs.invalidate_cache()
        return {str(name).rpartition("/")[2] for name in self._fs.ls(self._root, detail=False)}

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """A Parquet file of this folder; DetkitError where it is none."""
        where, do = f"{self.out}/{name}", "move it away: the same command makes it again"
        with reaching(where), opened_parquet(self._fs.open(f"{self._root}/{name}", "rb"), where, do) as file:
            yield file

    @contextmanager
    def _whole(self, name: str) -> Iterator[Any]:
        """A file to write, which is called so when the block has ended well."""
        temporary = f"{self._root}/.{name}.{secrets.token_hex(4)}.partial"
        with reaching(f"{self.out}/{name}"):
            try:
                with self._fs.open(temporary, "wb") as file:
                    yield file
                self._fs.mv(temporary, f"{self._root}/{name}")
            except BaseException:
                with suppress(Exception):
                    self._fs.rm(temporary)
                raise


def is_shards(path: str | Path) -> bool:
    """True for a folder that holds a manifest of shards, and for any address: nothing else is read there."""
    return is_address(str(path)) or (Path(path) / MANIFEST).is_file()


def _as_utf8(name: str) -> str:
    """Parquet holds no other text; a name that is none is an image that cannot be read."""
    return name.encode("utf-8", "backslashreplace").decode()
