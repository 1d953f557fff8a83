"""``detkit track``: from videos, folders and files of detections; what it writes, and ten mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main
from detkit.cli.options import Answers
from detkit.io.images import write_image
from detkit.io.video import VideoReader, VideoWriter
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample


class Bright(Predictor):
    """Finds the one bright block."""

    classes = ("block",)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        found = []
        for sample in samples:
            rows, columns = np.nonzero(sample.image[..., 0] > 128)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append(Detections([box], [0.9], [0], self.classes))
        return found


def scene(i: int) -> np.ndarray:
    image = np.zeros((64, 96, 3), np.uint8)
    image[4 * i : 4 * i + 16, 40:56] = 255
    return image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Answers, "predictor", lambda *_, **__: Bright())
    for i in range(10):
        write_image(tmp_path / "frames" / f"{i}.png", scene(i))
    with VideoWriter("film.avi", 10) as writer:
        for i in range(10):
            writer.write(scene(i))
    return tmp_path


def test_a_folder_and_a_video_are_followed_counted_and_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["--count", "line:0,30,96,30", "--count", "zone:0,30,96,64"]
    assert main(["track", "frames", "--fps", "10", *lines, "--out", "t.txt"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["10 frames: 1 block", "line:0,30,96,30: down 1 block; up 0"]
    rows = [line.split(",") for line in Path("t.txt").read_text().splitlines()]
    assert [row[:6] for row in rows[:2]] == [
        ["1", "1", "40.00", "0.00", "16.00", "16.00"],
        ["2", "1", "40.00", "4.00", "16.00", "16.00"],
    ]
    assert main(["track", "film.avi", *lines, "--out", "t.csv", "--save", "--json"]) == 0
    *frames, totals = map(json.loads, capsys.readouterr().out.splitlines())
    assert [frame["frame"] for frame in frames] == list(range(10))
    assert {found["track_id"] for frame in frames for found in frame["detections"]} == {1}
    assert totals["tracks"] == {"block": 1}
    assert totals["counts"][0] == {"name": "line:0,30,96,30", "down": {"block": 1}, "up": {}}
    assert Path("t.csv").read_text().splitlines()[0].endswith(",y2,track_id")
    with VideoReader("runs/track/film.mp4") as reader:
        assert len(list(reader)) == 10


def test_files_of_detections_give_the_same_with_and_without_the_video(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "film.avi", "--out", "d.jsonl"]) == 0
    assert main(["detect", "film.avi", "--out", "d.txt", "--format", "mot"]) == 0
    assert Path("d.txt").read_text().startswith("1,-1,")
    for source in ([], ["film.avi"]):
        for file in ("d.jsonl", "d.txt"):
            assert main(["track", *source, "--predictions", file, "--out", "t.txt", "--overwrite"]) == 0
            rows = [line.split(",")[:2] for line in Path("t.txt").read_text().splitlines()]
            assert rows == [[str(i), "1"] for i in range(1, 11)]
    capsys.readouterr()


LINE = '{"source": "film.avi", "frame": %d, "width": 96, "height": 64, "detections": []}\n'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no video was named"),
        (["nothing.mp4"], "no such file"),
        (["film.avi", "--conf", "2"], "conf must"),
        (["--predictions", "long.jsonl", "--conf", "-1"], "conf must"),
        (["film.avi", "--lost", "soon"], "'soon' is no time"),
        (["film.avi", "--count", "line:0,0,9"], "neither a line nor a zone"),
        (["film.avi", "--count", "line:0,900,96,900"], "outside the image, which has 96 x 64"),
        (["film.avi", "--out", "t.xml"], "cannot tell the format"),
        (["film.avi", "--out", "t", "--format", "voc"], "voc has no place for tracks"),
        (["--predictions", "unsorted.jsonl"], "frame 1 comes after frame 2"),
        (["--predictions", "empty.jsonl"], "the detections file is empty"),
        (["--predictions", "scores.txt"], "a score of 40"),
        (["--predictions", "rows.txt"], "this is not a row of MOT's"),
        (["film.avi", "--predictions", "long.jsonl"], "the video ends with frame 9"),
        (["film.avi", "--predictions", "long.jsonl", "--model", "x"], "not both"),
        (["--predictions", "long.jsonl", "--save"], "nothing to draw on"),
        (["--predictions", "long.jsonl", "--camera-motion"], "the camera's motion is unknown"),
        (["--predictions", "long.jsonl", "--appearance"], "has no looks"),
        (["--predictions", "long.jsonl", "--classes", "cat"], "no class 'cat'"),
        (["film.avi", "--appearance"], "only a detkit model has a neck"),
        (["film.avi", "--fps", "0"], "fps"),
    ],
)
def test_mistakes(folder: Path, words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("unsorted.jsonl").write_text(LINE % 2 + LINE % 1)
    Path("empty.jsonl").write_text("")
    Path("scores.txt").write_text("1,-1,0,0,9,9,40\n")
    Path("rows.txt").write_text("1,-1,0,0,9\n")
    Path("long.jsonl").write_text(LINE % 0 + LINE % 12)
    before = sorted(os.listdir())
    assert main(["track", *words]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert [name for name in sorted(os.listdir()) if name not in before] == []
