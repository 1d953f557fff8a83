"""``detkit data``: output shapes, exit codes and ten typical mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main
from detkit.io.images import read_image, write_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A YOLO data set of eight images with two boxes each, and no findings."""
    root = tmp_path / "set"
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        write_image(root / "images" / "train" / f"{i}.png", rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
        lines = "".join(f"{c} 0.5 {0.4 + c / 10} {0.2 + i / 20} 0.3\n" for c in (0, 1))
        (root / "labels" / "train" / f"{i}.txt").write_text(lines)
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    return root / "data.yaml"


def test_check(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"images": 8, "boxes": 16, "findings": []}
    (data.parent / "labels" / "train" / "1.txt").unlink()  # worth a note
    assert main(["data", "check", str(data)]) == 0
    assert "notes:\n      1  image without a label file" in capsys.readouterr().out
    assert main(["data", "check", str(data), "--strict"]) == 3
    (data.parent / "labels" / "train" / "0.txt").write_text("0 1 2\n")
    assert main(["data", "check", str(data), "--format", "yolo"]) == 3
    assert "0.txt:1" in capsys.readouterr().out


def test_stats(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(data), "--json", "--out", str(tmp_path / "s.png")]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["classes"]["cat"] == {"boxes": 8, "images": 8}
    assert np.asarray(numbers["rgb"]["covariance"]).shape == (3, 3)
    assert (tmp_path / "s.png").is_file()
    assert main(["data", "stats", str(data)]) == 0
    assert "16" in capsys.readouterr().out


@pytest.mark.parametrize("augment", ["0", "2"])
def test_show(data: Path, tmp_path: Path, augment: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    assert main(["data", "show", str(data), "-n", "2", "--augment", augment, "--size", "64", "--out", str(out)]) == 0
    assert read_image(out).shape[1] == 6 + (70 * 3 if augment == "2" else 70 * 2)


def test_convert_and_back(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", str(data), "--to", "coco", "--out", str(tmp_path / "c"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["boxes"] == 16
    assert main(["data", "convert", str(tmp_path / "c"), "--to", "voc", "--out", str(tmp_path / "v")]) == 0
    assert main(["data", "check", str(tmp_path / "v")]) == 0


def test_split(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split", str(data), "--val", "0.25", "--out", str(tmp_path / "o"), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert parts["val"] == {"images": 2, "classes": {"cat": 2, "dog": 2}}
    data.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    assert main(["data", "split", str(data)]) == 0
    assert "all of train, val together, to be drawn anew; --split takes one part" in capsys.readouterr().err


def test_anchors(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "anchors", str(data), "-k", "3", "--size", "128"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"anchors", "average_iou"}
    assert len(result["anchors"]) == 3
    assert main([*command, "--grid", "2", "--distance", "euclidean", "--plot", str(tmp_path / "a.png")]) == 0
    assert "lose their slot" in capsys.readouterr().out
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "nowhere"],
        ["check", "DATA", "--split", "vall"],
        ["check", "DATA", "--images", "nowhere"],
        ["check", "DATA", "--format", "yola"],
        ["check", "DATA", "--format", "voc"],
        ["stats", "DATA", "--out", "plot.xyz"],
        ["show", "DATA", "--out", "DATA"],
        ["convert", "DATA", "--to", "pascal", "--out", "o"],
        ["convert", "DATA", "--to", "voc", "--out", "o.json"],
        ["split", "DATA", "--val", "0.7", "--test", "0.5"],
        ["anchors", "DATA", "-k", "0"],
        ["anchors", "DATA", "--distance", "manhattan"],
        ["chekc", "DATA"],
    ],
)
def test_mistakes(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(str(data) if word == "DATA" else word for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err
    assert "Traceback" not in captured.err
