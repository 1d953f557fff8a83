"""``detkit inspect``: images in a folder, numbers on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main
from detkit.data.toy import toy_sample, write_toy_data
from detkit.detector import Detector
from detkit.explain.features import published_network
from detkit.io.images import read_image, write_image

LENET = ["lenet5", "--weights", "none"]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    write_image(path, toy_sample(0, 64).image)
    return str(path)


def run(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["inspect", *words, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(read_image(file).std() > 0 for file in found["files"])
    assert all(Path(file).parent == out for file in found["files"])
    return found


def test_filters_and_maps(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filters", *LENET], tmp_path / "f", capsys)["filters"] == [6, 5, 5]
    assert read_image(tmp_path / "f" / "filters.png").shape == (2 * 56 + 6, 3 * 56 + 6, 3)
    found = run(["maps", *LENET, photo], tmp_path / "m", capsys)
    assert found["maps"] == {"stage 0": [6, 28, 28], "stage 1": [16, 10, 10], "stage 2": [120, 1, 1]}
    assert [Path(file).name for file in found["files"]] == ["stage0.png", "stage1.png", "stage2.png"]


def test_a_shipped_detector(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(["cam", "default", photo, "--classes", "dog,car", "--size", "96"], tmp_path / "c", capsys)
    assert [row["class"] for row in found["cam"]] == ["dog", "car"]
    assert all(0 < row["score"] < 1 and row["stage"] in range(5) for row in found["cam"])
    assert [Path(file).name for file in found["files"]] == ["photo-cam.jpg"]


def test_torchvisions_faster_rcnn_is_looked_into_as_detkits_own(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stand_in(name: str, size: tuple[int, int] = (800, 1333)) -> Detector:
        return published_network("lenet5", "none", size[0])

    monkeypatch.setattr("detkit.importers.torchvision.import_torchvision", stand_in)
    words = ["maps", "torchvision/fasterrcnn_resnet50_fpn", photo, "--size", "48", "--stage", "0"]
    assert run(words, tmp_path / "m", capsys)["maps"] == {"stage 0": [6, 44, 44]}


def test_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy_data(tmp_path / "toy", train=10, val=1, size=48)
    words = ["patches", *LENET, str(data), "--split", "train", "--stage", "1", "--channels", "3,0", "--window", "12"]
    found = run(words, tmp_path / "p", capsys)
    assert (found["field"], found["stride"], found["images"]) == (14, 2, 10)
    assert list(found["channels"]) == ["3", "0"]
    assert all(len(row) == 9 for row in found["channels"].values())


def test_edges(photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(["edges"], tmp_path / "e", capsys)
    assert found["answers"]["vertical"] == [[0, 30, 30, 0]] * 4
    assert found["learned"]["error"] < 1e-9
    found = run(["edges", photo, "--learn", "scharr"], tmp_path / "e", capsys)
    assert found["answers"]["red"] == [62, 62]
    np.testing.assert_allclose(found["learned"]["weights"], [[3, 0, -3], [10, 0, -10], [3, 0, -3]], atol=0.05)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "edges"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "      0    30    30     0" in lines
    assert any("learned from sobel's answers" in line for line in lines)
    assert Path(lines[-1]).is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "inspect"),
        (["filters"], "MODEL|BACKBONE"),
        (["filters", "lenet6"], "lenet6"),
        (["filters", "lenet5"], "no ImageNet weights of lenet5 [E051]\n  --weights\n  set it to none"),
        (["filters", "default", "--weights", "none"], "--weights is for a backbone"),
        (["filters", "lenet5", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["filters", "torchvision/nonsense"], "torchvision/nonsense"),
        (["filters", "torchvision/ssd300_vgg16"], "only fasterrcnn_resnet50_fpn"),
        (["maps", *LENET, "PHOTO", "--stage", "7"], "stages 0 to 2"),
        (["maps", *LENET, "nowhere.jpg"], "nowhere.jpg"),
        (["maps", *LENET, "PHOTO", "--size", "12"], "--size"),
        (["maps", *LENET, "PHOTO", "--count", "0"], "--count"),
        (["cam", "default", "PHOTO", "--classes", "dgo"], "did you mean dog?"),
        (["cam", *LENET, "PHOTO", "--stage", "-1"], "stages 0 to 2"),
        (["patches", *LENET, "PHOTO"], "not a data set"),
        (["patches", *LENET, "PHOTO", "--channels", "a,b"], "--channels"),
        (["edges", "PHOTO", "--learn", "prewitt"], "vertical, horizontal"),
        (["edges", "PHOTO", "--out", "PHOTO"], "PHOTO"),
        (["edgse"], "edgse"),
    ],
)
def test_mistakes(
    words: list[str],
    said: str,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *(photo if word == "PHOTO" else word for word in words)]) == 2
    captured = capsys.readouterr()
    assert said.replace("PHOTO", "photo") in captured.err + ("" if words else captured.out)
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("runs/*/*"))


def test_nothing_is_overwritten(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "edges", photo, "--out", str(tmp_path / "e")]
    assert main(words) == 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    (tmp_path / "e" / "stage2-patches.jpg").touch()  # told before the data is looked for
    assert main(["inspect", "patches", *LENET, "nowhere", "--out", str(tmp_path / "e")]) == 2
    assert "stage2-patches.jpg" in capsys.readouterr().err
