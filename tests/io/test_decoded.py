"""Decoded images on the disk: the same to the bit, never those of another file, never more than was allowed."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader
from detkit.data.resize import Resize
from detkit.data.toy import write_toy_data
from detkit.errors import DetkitError
from detkit.io import decoded
from detkit.io.cache import cache_size
from detkit.io.decoded import DecodedImages
from detkit.io.images import read_sized, write_image


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (90, 130)) -> str:
    write_image(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8), overwrite=True)
    return str(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded."""
    found: list[str] = []

    def noted(path: str, *, reduce_to: int | None) -> tuple[np.ndarray, tuple[int, int]]:
        found.append(Path(path).name)
        return read_sized(path, reduce_to=reduce_to)

    monkeypatch.setattr(decoded, "read_sized", noted)
    return found


def same(images: DecodedImages, path: str, reduce_to: int | None = None) -> None:
    image, size = images.read(path, reduce_to)
    expected, whole = read_sized(path, reduce_to=reduce_to)
    assert size == whole
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, expected)


def test_each_is_decoded_once_and_stays_the_same_to_the_bit(place: Path, reads: list[str]) -> None:
    one, other = photo(place / "a.jpg"), photo(place / "b.png", 1, (33, 20))
    for images in (DecodedImages(1, 1), DecodedImages(1, 1)):
        for _ in range(2):
            same(images, one, 60)
            same(images, one)
            same(images, other, 60)
    assert reads == ["a.jpg", "a.jpg", "b.png"], "reduced and whole are two entries"


def test_an_entry_of_a_file_that_changed_is_never_found(place: Path, reads: list[str]) -> None:
    file, images = photo(place / "a.png"), DecodedImages(1, 1)
    before = os.stat(file)
    same(images, file)
    photo(place / "a.png", 1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some copying programs do
    same(images, file)
    assert reads == ["a.png", "a.png"]
    os.unlink(file)
    with pytest.raises(DetkitError, match="no such file"):
        images.read(file, None)


def test_shards_and_addresses(place: Path, reads: list[str]) -> None:
    store = fsspec.filesystem("memory")
    for seed in (0, 1):
        file = photo(place / "a.png", seed)
        with tarfile.open(place / "0.tar", "w") as tar:
            tar.add(file, "a.png")
        store.pipe_file("/decoded/a.png", Path(file).read_bytes())
        images = DecodedImages(1, 1)
        for _ in range(2):
            same(images, f"{place}/0.tar/a.png")
            same(images, "memory://decoded/a.png")
    assert len(reads) == 4
    store.rm("/decoded", recursive=True)
    with pytest.raises(DetkitError, match="no such file"):
        images.read("memory://decoded/a.png", None)


def test_no_more_than_was_allowed(place: Path, reads: list[str]) -> None:
    files = [photo(place / f"{i}.png", i, (100, 100)) for i in range(9)]  # 30,016 bytes each, and 132 of its file
    for _ in range(2):
        images = DecodedImages(130_000e-9, 1)
        for file in files:
            same(images, file)
    assert cache_size() == (4, 4 * 30_148)
    assert reads == [f"{i}.png" for i in [*range(9), *range(4, 9)]], "none gives way to another"
    for images in (DecodedImages(240_000e-9, 2), DecodedImages(240_000e-9, 2)):  # as two processes
        for file in files:
            same(images, file)
    assert cache_size()[1] < 240_000
    images = DecodedImages(1e-9, 1)  # less than is there
    same(images, files[8])
    same(images, files[0])


def test_damage_and_a_full_disk_are_said(place: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file, images = photo(place / "a.png"), DecodedImages(1, 1)
    same(images, file)
    (entry,) = images.folder.glob("*/*")
    data = bytearray(entry.read_bytes())
    data[500] ^= 1
    entry.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="the cached entry is damaged"):
        same(images, file)
    same(images, file)
    assert len(reads) == 2

    def full(*_: object, **__: object) -> None:
        raise DetkitError("no room left to write the file", "there", code=4)

    monkeypatch.setattr("detkit.io.cache.write_bytes", full)
    with pytest.warns(RuntimeWarning, match="nothing is cached: no room left"):
        same(images, photo(place / "b.png", 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_those_of_images_that_are_decoded_each_time(place: Path, workers: int) -> None:
    data = Dataset(read(write_toy_data(place / "toy", train=12, val=1, size=150), split="train"))
    batches = []
    for one in (data, replace(data, decoded=DecodedImages(1, workers or 1))):
        with Loader(one, resize=Resize(64), augment=Augment(), batch=4, workers=workers, shuffle=True) as loader:
            batches.append([batch.pixels.numpy() for epoch in (0, 1, 2) for batch, _ in loader.epoch(epoch)])
    assert cache_size()[0] == 12
    assert all(map(np.array_equal, *batches))
