"""Files appear whole or not at all, whatever the disk does."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.errors import DetkitError
from detkit.io.files import atomic_folder, atomic_path, growing, numbered_folder, write_bytes, write_text


def test_text_is_utf8_with_plain_newlines(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "ü.txt", "ä\nb\n")
    assert (tmp_path / "new" / "ü.txt").read_bytes() == "ä\nb\n".encode()


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(DetkitError) as caught:
        write_text(path, "new")
    assert caught.value.code == 2
    assert path.read_text() == "old"
    write_text(path, "new", overwrite=True)
    assert path.read_text() == "new"


def test_an_error_inside_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_path(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 4), (errno.EFBIG, 4), (errno.EACCES, 2), (errno.EROFS, 2), (errno.EIO, 2)],
)
def test_disk_errors_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    def fail(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DetkitError) as caught:
        write_bytes(tmp_path / "a.bin", b"x")
    assert caught.value.code == code
    assert caught.value.where.endswith("a.bin")
    assert caught.value.do
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_reading_something_else_is_not_explained_as_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
import numpy as np
from detkit.errors import DetkitError
from detkit.structures import Detections
from detkit.io.sources import Frame
from detkit.io.detections import open_writer
from detkit.io.video import VideoWriter
from detkit.io.images import write_image
from detkit.io.files import write_text
kind, path = sys.argv[1:]
noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
boxes = np.tile(np.asarray([[1, 2, 30, 40]], np.float32), (100, 1))
found = Detections(boxes, np.full(100, 0.5), np.zeros(100), ("cat",))
try:
    if kind == "text":
        write_text(path, "x" * 100000)
    elif kind == "image":
        write_image(path, noise)
    elif kind == "video":
        with VideoWriter(path, 25) as writer:
            for _ in range(40):
                writer.write(np.roll(noise, 7))
    else:
        with open_writer(kind, path, ("cat",)) as writer:
            for i in range(1 if kind in ("yolo", "voc") else 20):
                many = found[np.arange(100).repeat(10)]
                writer.write(Frame(noise, f"{i}.jpg"), many)
except DetkitError as error:
    print(error)
    sys.exit(error.code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a process's file size")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("text", "a.txt"),
        ("image", "a.png"),
        ("video", "a.mp4"),
        ("video", "a.avi"),
        ("jsonl", "a.jsonl"),
        ("coco", "a.json"),
        ("csv", "a.csv"),
        ("yolo", "a"),
        ("voc", "a"),
    ],
)
def test_a_full_disk_ends_with_code_4_and_leaves_nothing(tmp_path: Path, kind: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, kind, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "no room" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_joins_one_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(DetkitError, match="not empty"), atomic_folder(path):
        pass
    (path / "kept").write_text("0")
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "a").write_text("2")
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "b").write_text("3")
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "c").write_text("4")
    found = {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}
    assert found == {"a": "2", "kept": "0", "deep/er/b": "3", "deep/c": "4"}
    with pytest.raises(ValueError, match="boom"), atomic_folder(tmp_path / "other") as folder:
        raise ValueError("boom")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_stopped_folder_joins_one_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("0")
    with pytest.raises(DetkitError, match="not empty"), growing(path, folder=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def stopped() -> None:
        with growing(path, True, folder=True) as folder:
            assert folder == tmp_path / "out.partial"
            (folder / "a").write_text("1")
            (folder / "b").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "1", "b": "2"}


def test_numbered_folders_never_repeat(tmp_path: Path) -> None:
    names = [numbered_folder(tmp_path / "runs", "detect").name for _ in range(3)]
    assert names == ["detect", "detect2", "detect3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DetkitError):
        numbered_folder(tmp_path / "file", "detect")
