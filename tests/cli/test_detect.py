"""detect loses nothing: what ends a run, and what is left then."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.cli import Terminated, main
from detkit.cli.detect import on_disk
from detkit.cli.options import Answers
from detkit.io.images import write_image
from detkit.io.video import VideoReader, VideoWriter
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample


class Counting(Predictor):
    """One box per image; an error in place of the answer number ``last``."""

    classes = ("cat",)

    def __init__(self, last: int = 10**9, error: BaseException | None = None) -> None:
        self.left, self.error = last, error

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.left -= len(samples)
        if self.left < 0 and self.error is not None:
            raise self.error
        return [Detections([[1, 2, 30, 20]], [0.5], [0], self.classes)] * len(samples)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Counting:
    one = Counting()
    monkeypatch.setattr(Answers, "predictor", lambda *_, **__: one)
    return one


def picture(shade: int = 100) -> np.ndarray:
    return np.full((48, 64, 3), shade, np.uint8)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        write_image(tmp_path / "photos" / f"{i}.jpg", picture(40 * i))
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (Terminated(), 143), (MemoryError(), 4), (BrokenPipeError(), 0)],
)
def test_a_run_that_ends_early_keeps_what_is_done(
    photos: Path, detector: Counting, error: BaseException, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    detector.left, detector.error = 4, error
    assert main(["detect", str(photos), "--out", "a.jsonl", "--save"]) == code
    said = capfd.readouterr().err
    name = "a.partial.jsonl" if code == 4 else "a.jsonl"
    assert sorted(os.listdir()) == [name, "photos", "runs"]
    lines = Path(name).read_text().splitlines()
    assert [Path(json.loads(line)["source"]).name for line in lines] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert sorted(os.listdir("runs/detect")) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert (f"4 images done, up to {photos}/3.jpg" in said) == (code != 0)
    assert "Traceback" not in said


def test_a_stopped_video_plays_up_to_its_last_frame(
    tmp_path: Path, detector: Counting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter("film.avi", 10) as writer:
        for i in range(20):
            writer.write(picture(10 * i))
    detector.left, detector.error = 7, KeyboardInterrupt()
    assert main(["detect", "film.avi", "--save", "--out", "a.json"]) == 130
    assert "7 images done, up to film.avi frame 6" in capsys.readouterr().err
    with VideoReader("runs/detect/film.mp4") as reader:
        assert len(list(reader)) == 7
    assert [found["frame"] for found in json.loads(Path("a.json").read_text())] == list(range(7))


def test_steps_side_by_side_give_what_one_after_the_other_does(
    tmp_path: Path, detector: Counting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter("film.avi", 10) as writer:
        for i in range(12):
            writer.write(picture(10 * i))
    # What reaches the encoder: x264, looking ahead, is not repeatable, so equal frames may differ in the file.
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(VideoWriter, "write", lambda *at, write=VideoWriter.write: (drawn.append(at[1]), write(*at)))
    said = []
    for side_by_side in (True, False):
        monkeypatch.setattr("detkit.cli.detect.on_disk", lambda _, answer=side_by_side: answer)
        assert main(["detect", "film.avi", "--save", "--json", "--batch", "5"]) == 0
        said.append(capsys.readouterr().out)
        with VideoReader(next(Path("runs").glob("*/film.mp4"))) as reader:
            assert len(list(reader)) == 12
        shutil.rmtree("runs")
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 12
    assert np.array_equal(drawn[:12], drawn[12:])
    assert not np.array_equal(drawn[0], drawn[1])


def test_what_may_keep_one_waiting_is_not_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    assert on_disk([str(tmp_path), str(tmp_path / "a.jpg")])
    for source in ("-", "0", "http://host/" + 300 * "x", "a\0b", str(tmp_path / "pipe")):
        assert not on_disk([str(tmp_path), source])


RUN = """
import sys
from test_detect import Answers, Counting, main
import detkit.cli.detect as verb

def told(file, lines=verb._lines):
    for line in lines(file):
        yield line
        print("next", file=sys.stderr, flush=True)

verb._lines = told
Answers.predictor = lambda *_, **__: Counting()
sys.exit(main(sys.argv[1:]))
"""


class Run(subprocess.Popen[str]):
    """A run in ``folder`` that reads names of images, and writes a.jsonl and the same to its output."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 2))}
        words = [sys.executable, "-c", RUN, "detect", "--list", "-", "--out", "a.jsonl", "--json"]
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        super().__init__(words, cwd=folder, text=True, env=environment, **pipes)

    def look(self, name: str) -> dict[str, Any]:
        """What is written of an image, when the run has done with it and asks for the next one."""
        assert self.stdin is not None
        assert self.stdout is not None
        assert self.stderr is not None
        self.stdin.write(f"{name}\n")
        self.stdin.flush()
        found = json.loads(self.stdout.readline())
        assert self.stderr.readline() == "next\n"
        return dict(found)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_real_signals(tmp_path: Path, signum: int, code: int) -> None:
    """Images come in by a pipe one at a time, so that the run is known to wait for the third."""
    write_image(tmp_path / "a.png", picture())
    with Run(tmp_path) as process:
        assert [process.look("a.png")["source"] for _ in range(2)] == ["a.png"] * 2
        process.send_signal(signum)
        assert process.wait(timeout=600) == code
    left = tmp_path / ("a.partial.jsonl" if code == -9 else "a.jsonl")
    assert [json.loads(line)["source"] for line in left.read_text().splitlines()] == ["a.png"] * 2


def test_a_clock_that_goes_back(
    photos: Path, detector: Counting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.time", itertools.count(2e9, -3600).__next__)
    assert main(["detect", "photos", "--out", "a.jsonl", "--save"]) == 0
    assert len(Path("a.jsonl").read_text().splitlines()) == len(os.listdir("runs/detect")) == 6
    assert "warning" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that even root cannot write to")
def test_output_that_cannot_be_written(photos: Path, detector: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "photos", "--save", "--out", "/proc/a.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "/proc/a.jsonl" in said
    assert len(said.splitlines()) == 3
    assert not list(Path().rglob("*.jsonl"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """What ``| head -1`` does."""
    write_image(tmp_path / "a.png", picture())
    with Run(tmp_path) as process:
        process.look("a.png")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write("a.png\na.png\n")
        process.stdin.close()
        assert process.wait(timeout=600) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_a_list_of_sources(photos: Path, detector: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "list.txt").write_text("photos/1.jpg\r\n\nphotos/missing.jpg\nphotos/2.jpg\n")
    assert main(["detect", "photos/0.jpg", "--list", "photos/list.txt", "--json"]) == 3
    out, said = capsys.readouterr()
    assert [json.loads(line)["source"] for line in out.splitlines()] == [f"photos/{i}.jpg" for i in range(3)]
    assert "photos/missing.jpg: no such file" in said
    assert main(["detect", "--list", "missing.txt"]) == 2
    assert main(["detect"]) == 2
    said = capsys.readouterr().err
    assert "missing.txt" in said
    assert "--list FILE" in said


def test_what_was_put_right_is_said_once_and_counted(
    photos: Path, detector: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (1, 3, 4):
        (photos / f"{i}.jpg").write_bytes((photos / f"{i}.jpg").read_bytes()[:-2])
    for _ in range(2):
        assert main(["detect", "photos"]) == 0
        assert capsys.readouterr().err.splitlines() == [
            f"detkit: {Path('photos/1.jpg')}: the end marker is missing; all pixels are there",
            "detkit: 3 files: the end marker is missing; all pixels are there",
        ]
