"""Images in tar shards and at addresses: read as loose files are, and trained on in the same order."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader
from detkit.data.resize import Resize
from detkit.data.toy import write_toy_data
from detkit.errors import DetkitError
from detkit.io.images import image_size, read_image
from detkit.io.stored import is_there


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The toy data's training images, 4 in a shard, in WebDataset's layout beside their labels."""
    write_toy_data(tmp_path, train=10, val=4, size=64)
    files = sorted((tmp_path / "train").iterdir())
    (tmp_path / "shards").mkdir()
    for start in range(0, len(files), 4):
        with tarfile.open(tmp_path / "shards" / f"{start // 4:05d}.tar", "w") as tar:
            for file in files[start : start + 4]:
                tar.add(file, f"./{file.name}" if start else file.name)
                tar.addfile(tarfile.TarInfo(f"{file.stem}.cls"))
    return tmp_path / "shards"


def labels_of(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*train*.json")) or sorted(folder.glob("**/*train*.json"))))


def batches(labels: Path, images: Path | str | None, start: int) -> list[tuple[np.ndarray, tuple[object, ...]]]:
    dataset = Dataset(read(labels, images=images))
    with Loader(dataset, resize=Resize(64), batch=3, seed=5, shuffle=True) as loader:
        return [(b.pixels.numpy(), b.image_ids) for epoch in (0, 1) for b, _ in loader.epoch(epoch, start)]


@pytest.mark.parametrize("start", [0, 2])
def test_training_sees_the_same_images_in_the_same_order(shards: Path, start: int) -> None:
    labels = labels_of(shards.parent)
    loose, packed = batches(labels, None, start), batches(labels, shards, start)
    assert [ids for _, ids in loose] == [ids for _, ids in packed]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(loose, packed, strict=True))


def test_check_knows_what_lies_in_a_shard(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(labels_of(shards.parent)), "--images", str(shards)]) == 0
    assert "nothing to complain of" in capsys.readouterr().out
    first = sorted((shards.parent / "train").iterdir())[0]
    inside = f"{shards}/00000.tar/{first.name}"
    assert is_there(inside)
    assert image_size(inside) == image_size(first)
    assert np.array_equal(read_image(inside), read_image(first))
    assert not is_there(f"{shards}/00000.tar/other.png")
    with pytest.raises(DetkitError, match="this shard holds no such file"):
        read_image(f"{shards}/00000.tar/other.png")
    with pytest.raises(DetkitError, match="no such file"):
        read_image(f"{shards}/00009.tar/{first.name}")


def test_damaged_shards_are_told(shards: Path, tmp_path: Path) -> None:
    tar, names = shards / "00000.tar", sorted(file.name for file in (tmp_path / "train").iterdir())
    whole = tar.read_bytes()
    read_image(f"{tar}/{names[3]}")
    tar.write_bytes(whole[: whole.index(names[3].encode()) + 600])
    with pytest.raises(DetkitError, match=r"cut off|holds no such file|cannot be read"):
        read_image(f"{tar}/{names[3]}")
    tar.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DetkitError, match="this tar file cannot be read"):
        read_image(f"{tar}/{names[0]}")


def test_images_at_addresses(shards: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store, labels = fsspec.filesystem("memory"), labels_of(tmp_path)
    for file in (tmp_path / "train").iterdir():
        store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    value = json.loads(labels.read_text())
    for image in value["images"]:
        image["file_name"] = f"memory://bucket/{Path(image['file_name']).name}"
    there = tmp_path / "there.json"
    there.write_text(json.dumps(value))
    a, b = batches(labels, None, 0), batches(there, None, 0)
    c = batches(labels, "memory://bucket/", 0)
    assert all(np.array_equal(x, y) and np.array_equal(x, z) for (x, _), (y, _), (z, _) in zip(a, b, c, strict=True))
    with pytest.raises(DetkitError, match="only the images of COCO's json"):
        read(tmp_path / "train", images="memory://bucket", format="images")
    store.rm("/", recursive=True)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fsspec.core", raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DetkitError, match=r"needs another package[\s\S]*pip install 'detkit\[scale\]'"):
        read_image("memory://photos/a.jpg")
