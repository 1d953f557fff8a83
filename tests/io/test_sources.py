"""Whatever a user may name becomes one stream, and one bad image costs that image."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.errors import DetkitError
from detkit.io.download import fetched
from detkit.io.images import IMAGE_SUFFIXES, write_image
from detkit.io.sources import Failure, Frame, open_sources, skipped_in
from detkit.io.video import VideoWriter


def picture(shade: int = 100) -> np.ndarray:
    return np.full((30, 40, 3), shade, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("b.png", "a.jpg", "ü 猫.PNG", "deep/c.png", "deep/deeper/d.png")):
        write_image(tmp_path / name, picture(i * 10))
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(stream: object) -> list[str]:
    return [("!" if isinstance(f, Failure) else "") + Path(f.source).name for f in stream]  # type: ignore[attr-defined]


def test_a_folder_gives_its_own_images_and_one_failure(folder: Path) -> None:
    stream = list(open_sources([folder]))
    assert names(stream) == ["a.jpg", "b.png", "!broken.jpg", "ü 猫.PNG"]
    frame = stream[1]
    assert isinstance(frame, Frame)
    assert (frame.width, frame.height, frame.index, frame.fps) == (40, 30, None, None)
    assert frame.source == str(folder / "b.png")
    failure = stream[2]
    assert isinstance(failure, Failure)
    assert "text file" in failure.what
    assert failure.do


def test_patterns(folder: Path) -> None:
    assert names(open_sources([str(folder / "*.png")])) == ["b.png"]
    assert names(open_sources([str(folder / "**" / "*.png")])) == ["b.png", "c.png", "d.png"]
    assert names(open_sources([str(folder / "*.gif"), folder / "a.jpg"])) == ["!*.gif", "a.jpg"]
    write_image(folder / "a[1].png", picture())
    assert names(open_sources(str(folder / "a[1].png"))) == ["a[1].png"]


def test_what_is_missing_or_empty_costs_only_itself(folder: Path) -> None:
    (folder / "none").mkdir()
    stream = list(open_sources([folder / "missing.jpg", folder / "none", folder / "b.png", folder / "notes.txt"]))
    assert names(stream) == ["!missing.jpg", "!none", "b.png", "!notes.txt"]
    assert all(f.what and f.do for f in stream if isinstance(f, Failure))


def test_stdin_bytes_and_arrays() -> None:
    done, data = cv2.imencode(".png", picture(77))
    assert done
    for source, stdin in (("-", io.BytesIO(data.tobytes())), (data.tobytes(), None)):
        (frame,) = open_sources([source], stdin=stdin)
        assert isinstance(frame, Frame)
        assert (frame.image == 77).all()
    (frame,) = open_sources("-", stdin=io.BytesIO(data.tobytes()))
    assert frame.source == "-"
    for nothing in (b"", b"hello, world, no image"):
        (failure,) = open_sources("-", stdin=io.BytesIO(nothing))
        assert isinstance(failure, Failure)
        assert failure.source == "-"
    stream = list(open_sources([picture(), picture()[..., 0], picture().astype(float), Image.fromarray(picture(3))]))
    assert [type(f) for f in stream] == [Frame, Frame, Failure, Frame]
    assert [f.source for f in stream] == ["array 0", "array 1", "array 2", "array 3"]


class Camera:
    def __init__(self, frames: int) -> None:
        self.left = frames

    def isOpened(self) -> bool:
        return self.left > 0

    def get(self, key: int) -> float:
        return 30.0 if key == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (self.left >= 0), (picture() if self.left >= 0 else None)

    def release(self) -> None:
        self.left = 0


@pytest.mark.parametrize("source", ["0", 0])
def test_a_camera_by_its_number(source: str | int) -> None:
    stream = list(open_sources([source], camera=lambda number: Camera(3)))
    assert [type(f) for f in stream] == [Frame, Frame, Frame, Failure]
    assert [f.index for f in stream if isinstance(f, Frame)] == [0, 1, 2]
    assert {f.source for f in stream} == {"camera 0"}
    (failure,) = open_sources([source], camera=lambda number: Camera(0))
    assert "camera" in failure.what  # type: ignore[union-attr]


def test_a_stream_is_connected_again_until_it_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    connections = iter([Camera(3), Camera(0), Camera(2), *[Camera(0)] * 5])
    address = "rtsp://user:secret@host/live"
    with pytest.warns(UserWarning, match=r"^rtsp://host/live: lost after \d frames") as told:
        stream = list(open_sources(address, camera=lambda name: next(connections)))
    assert [type(f) for f in stream] == [Frame] * 5 + [Failure]
    assert [f.index for f in stream if isinstance(f, Frame)] == [0, 1, 2, 3, 4]
    assert {f.source for f in stream} == {"rtsp://host/live"}
    assert "5 frames" in stream[-1].what  # type: ignore[union-attr]
    assert len(told) == 2
    assert waits == [1, 2, 1, 2, 4, 8, 16]
    (failure,) = open_sources(address, camera=lambda name: Camera(0))  # a wrong address is not asked for again
    assert "cannot be opened" in failure.what  # type: ignore[union-attr]
    assert len(waits) == 7


ANSWERS: dict[str, tuple[str | None, bytes, int]] = {}  # by path: type of content, body, bytes that are promised more


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path not in ANSWERS:
            self.send_error(404)
            return
        kind, body, more = ANSWERS[self.path]
        self.send_response(200)
        if kind is not None:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + more))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses(served: str, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, data = cv2.imencode(".png", picture(77))
    assert done
    png = data.tobytes()
    ANSWERS.update({
        "/a.png": ("image/png", png, 0), "/film": ("video/x-msvideo", film.read_bytes(), 0),
        "/raw": ("application/octet-stream", png, 0), "/untold": (None, png, 0), "/cut": ("image/png", png[:-9], 9),
        "/page": ("text/html; charset=utf-8", b"<html>", 0), "/liar": ("image/png", b"<html>", 0),
    })  # fmt: skip
    for path in ("a.png", "raw", "untold", "moved.png"):
        frames = list(open_sources(f"{served}/{path}"))
        assert [type(f) for f in frames] == [Frame]
        assert frames[0].source == f"{served}/{path}"
        assert (frames[0].image == 77).all()  # type: ignore[union-attr]
    frames = list(open_sources(f"{served}/film"))
    assert [f.index for f in frames] == list(range(40))  # type: ignore[union-attr]
    told = {"page": "text/html", "liar": "text file", "cut": "broke off", "none": "Not Found", "a.png": "larger than"}
    for path, what in told.items():
        if path == "a.png":
            monkeypatch.setattr("detkit.io.sources.fetched", partial(fetched, limit=len(png) - 1))
        (failure,) = open_sources(f"{served}/{path}")
        assert what in failure.what, failure  # type: ignore[union-attr]
        assert failure.source == f"{served}/{path}"
    (failure,) = open_sources("ftp://host/a.png")
    assert "http" in failure.do  # type: ignore[union-attr]


def test_a_file_called_like_a_number_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", picture(5))
    os.rename("a.png", "0")
    (frame,) = open_sources("0")
    assert isinstance(frame, Frame)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    with VideoWriter(tmp_path / "film.avi", 10) as writer:
        for _ in range(40):
            writer.write(noise.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    return tmp_path / "film.avi"


def test_a_video_by_suffix_or_by_content(film: Path) -> None:
    frames = [f for f in open_sources(film) if isinstance(f, Frame)]
    assert [f.index for f in frames] == list(range(40))
    assert frames[0].fps == pytest.approx(10)
    assert frames[0].frames_total == 40
    plain = film.rename(film.with_name("film.dat"))
    assert len(list(open_sources(plain))) == 40


def test_a_video_cut_short_gives_its_frames_then_a_failure(film: Path) -> None:
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    stream = list(open_sources([film, picture()]))
    assert 15 <= len(stream) - 2 <= 21
    assert all(isinstance(f, Frame) for f in stream[:-2])
    assert isinstance(stream[-2], Failure)
    assert "cut short" in stream[-2].what
    assert isinstance(stream[-1], Frame)


def test_one_frame_in_memory(film: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    for frame in open_sources([film, film]):
        assert isinstance(frame, Frame)
        assert sum(r() is not None for r in alive) == 0
        alive.append(weakref.ref(frame.image))
        del frame
    assert len(alive) == 80


def test_lazy(folder: Path) -> None:
    stream = open_sources([folder / "a.jpg", folder / "b.png"])
    next(stream)
    (folder / "b.png").unlink()
    assert isinstance(next(stream), Failure)
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.shared_data
def test_a_real_video_cut_in_the_middle(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "videos" / "car-detection.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    kinds = [type(f) for f in open_sources(cut)]
    assert kinds.count(Failure) == 1
    assert kinds[-1] is Failure


def test_what_a_folder_leaves_out_is_told(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "c.svg", "d.svg", "e.txt", "._f.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert skipped_in(tmp_path) == "1 .mov (name it to see it), 1 .mp4 (name it to see it), 2 .svg"
    (tmp_path / "g.heic").write_bytes(b"x")
    assert ('1 .heic (pip install "detkit[heif]")' in skipped_in(tmp_path)) == (".heic" not in IMAGE_SUFFIXES)
    with pytest.raises(DetkitError):
        skipped_in(tmp_path / "nowhere")
