"""Videos: what is written comes back, what is cut is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.io import video
from detkit.io.video import Codec, VideoReader, VideoWriter


def frame(i: int, width: int = 160, height: int = 120) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : 8 * (i + 1)] = (200, 40, 40)
    return image


def write(path: Path, frames: int = 12, fps: float = 10) -> VideoWriter:
    with VideoWriter(path, fps) as writer:
        for i in range(frames):
            writer.write(frame(i))
    return writer


@pytest.fixture(params=["OpenCV", "PyAV"])
def encoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose encoders are used."""
    if request.param == "PyAV":
        pytest.importorskip("av")
    else:
        monkeypatch.setattr(video, "_QUICK", {})
    return str(request.param)


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_frames_come_back_in_rgb(tmp_path: Path, suffix: str) -> None:
    writer = write(tmp_path / f"ä{suffix}")
    with VideoReader(tmp_path / f"ä{suffix}") as reader:
        frames = list(reader)
        assert (reader.width, reader.height, reader.frames_read) == (160, 120, 12)
        assert reader.fps == pytest.approx(10)
        assert not reader.cut_short
    assert len(frames) == 12
    for i, image in enumerate(frames):
        assert np.abs(image.astype(int) - frame(i)).mean() < 8
    assert writer.codec is not None
    assert (writer.notice is None) == writer.codec.plays_in_browsers
    assert [p.name for p in tmp_path.iterdir()] == [f"ä{suffix}"]


def test_a_codec_that_browsers_lack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_QUICK", {})
    plain = Codec("mp4v", "MPEG-4 Part 2", False)
    monkeypatch.setitem(video._CODECS, ".mp4", (Codec("none", "no such codec", True), plain))
    writer = write(tmp_path / "a.mp4")
    assert writer.codec == plain
    assert "browsers do not" in str(writer.notice)
    monkeypatch.setitem(video._CODECS, ".mp4", (Codec("none", "no such codec", True),))
    with pytest.raises(DetkitError, match="no video encoder"):
        write(tmp_path / "b.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_nothing_is_left_when_there_is_nothing_to_play(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(DetkitError, match="no frame"), VideoWriter(path, 10):
        pass
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 10):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="uint8"), VideoWriter(path, 10) as writer:
        writer.write(frame(0)[..., 0])
    with pytest.raises(DetkitError, match="suffix"):
        VideoWriter(tmp_path / "a.mov")
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(DetkitError, match="exists"):
        write(path)
    assert path.read_text() == "mine"


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_was_filmed_before_a_stop_or_an_error_plays(
    tmp_path: Path, suffix: str, stop: type[BaseException], recwarn: pytest.WarningsRecorder
) -> None:
    def filmed() -> None:
        with VideoWriter(tmp_path / f"a{suffix}", 10) as writer:
            for i in range(5):
                writer.write(frame(i))
            if stop is KeyboardInterrupt:
                raise stop
            writer.write(frame(0, 100))

    with pytest.raises(stop):
        filmed()
    name = f"a{suffix}" if stop is KeyboardInterrupt else f"a.partial{suffix}"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    kept = [str(w.message) for w in recwarn if "kept" in str(w.message)]
    assert [text.endswith(name) for text in kept] == [True] * (stop is ValueError)
    with VideoReader(tmp_path / name) as reader:
        assert len(list(reader)) == 5


@pytest.mark.usefixtures("encoders")
def test_odd_sizes_and_unknown_rates(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", float("nan")) as writer:
        for i in range(4):
            writer.write(frame(i, 161, 121))
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.fps == pytest.approx(25)
        assert len(list(reader)) == 4


def test_an_encoder_that_is_not_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setitem(video._QUICK, ".mp4", (Codec("none", "none", True), "no such encoder", {}))
    assert write(tmp_path / "a.mp4").codec in video._CODECS[".mp4"]


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"no video" * 99, "cannot be opened"),
    ],
)
def test_what_is_no_video(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, data: bytes | None, what: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DetkitError, match=what) as caught:
        VideoReader(tmp_path / name)
    assert caught.value.do
    assert capfd.readouterr().err == ""


def test_a_cut_video_is_noticed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    with VideoWriter(tmp_path / "a.avi", 10) as writer:
        for _ in range(60):
            writer.write(noise.integers(0, 255, (120, 160, 3), dtype=np.uint8))
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    with VideoReader(tmp_path / "cut.avi") as reader:
        good = len(list(reader))
        assert 20 <= good <= 31
        assert reader.cut_short


class FakeCapture:
    """Answers like cv2.VideoCapture: three frames at 30 a second, of a claimed number."""

    def __init__(self, claimed: float, seconds: float = 0.0, opened: bool = True) -> None:
        self.left, self.claimed, self.seconds, self.opened, self.released = 3, claimed, seconds, opened, False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, key: int) -> float:
        import cv2

        known = {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_COUNT: self.claimed}
        known[cv2.CAP_PROP_POS_MSEC] = self.seconds * 1000
        return known.get(key, float("nan"))

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, np.full((4, 6, 3), (1, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("name", "claimed", "seconds", "cut"),
    [
        ("a.mp4", 3, 0.1, False),
        ("a.mp4", 5, 0.1, False),
        ("a.mp4", 90, 0.1, True),
        ("a.mkv", 90, 2.5, False),  # few frames, but the time was reached: a varying rate
        ("a.mkv", 90, 0.1, True),
        ("a.mkv", -1, 0.1, False),
        ("a.mkv", float("nan"), 0.1, False),
    ],
)
def test_cut_short_needs_frames_and_time(name: str, claimed: float, seconds: float, cut: bool) -> None:
    with VideoReader(name, capture=lambda _: FakeCapture(claimed, seconds)) as reader:
        assert [f[0, 0].tolist() for f in reader] == [[3, 2, 1]] * 3
        assert reader.cut_short is cut


def test_cameras() -> None:
    fake = FakeCapture(-1)
    with VideoReader(0, capture=lambda _: fake) as reader:
        assert (reader.where, reader.frames_total) == ("camera 0", None)
        assert len(list(reader)) == 3
        assert not reader.cut_short
    assert fake.released
    with pytest.raises(DetkitError, match="camera cannot be opened"):
        VideoReader(7, capture=lambda _: FakeCapture(-1, opened=False))


@pytest.mark.shared_data
def test_a_real_video(shared_data: Path) -> None:
    with VideoReader(shared_data / "videos" / "car-detection.mp4") as reader:
        assert (reader.width, reader.height, reader.frames_total, reader.fps) == (768, 432, 377, 12.5)
        assert sum(1 for _ in reader) == 377
        assert not reader.cut_short
