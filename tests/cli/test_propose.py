"""detkit propose: what it prints, draws and measures, and typical mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from detkit.cli import main
from detkit.data.toy import write_toy_data


@pytest.fixture
def picture(tmp_path: Path) -> str:
    image = np.full((60, 80, 3), 30, np.uint8)
    image[10:40, 20:60] = (20, 200, 90)
    path = tmp_path / "one.png"
    cv2.imwrite(str(path), image)
    return str(path)


def test_prints_and_draws(picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["propose", picture, "-o", str(tmp_path / "drawn.png")]) == 0
    out = capsys.readouterr().out
    assert f"{picture}: {len(out.splitlines()) - 1} proposals" in out
    assert "   20    10    60    40" in out
    drawn = cv2.imread(str(tmp_path / "drawn.png"))
    assert (drawn != cv2.imread(picture)).any()


def test_json(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "sliding-window", "--windows", "32", "--aspects", "1", "--stride", "1"]
    assert main(["propose", picture, *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == picture
    assert found["method"] == "sliding-window"
    assert sorted(found["proposals"]) == [[0, 0, 32, 32], [32, 0, 64, 32]]


def test_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy_data(tmp_path / "toy", train=2, val=1)
    arguments = ["propose", str(data), "--split", "train", "--recall", "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "recall.png")]) == 0
    text = capsys.readouterr().out
    assert "2 images" in text
    assert (tmp_path / "recall.png").is_file()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recall"]
    assert [row["count"] for row in rows] == [100, 200, 500, 1000, 2000]
    recalls = [row["recall@0.5"] for row in rows]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.8
    assert main([*arguments, "--json", "--max", "7"]) == 0
    assert {row["proposals"] for row in json.loads(capsys.readouterr().out)["recall"]} == {7}
    with monkeypatch.context() as patch:  # nothing is searched for a plot that cannot be written
        patch.setattr("detkit.data.dataset.Dataset.load", lambda *_: pytest.fail("searched"))
        assert main([*arguments, "--out", str(tmp_path / "recall.doc")]) == 2
        assert "plots cannot be written" in capsys.readouterr().err


def test_a_model_without_an_rpn(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detkit import api

    for model in (SimpleNamespace(proposals=None), SimpleNamespace()):  # YOLO, torchvision's
        monkeypatch.setattr(api, "load", lambda name, model=model, **_: model)
        assert main(["propose", picture, "--method", "rpn", "-m", "some"]) == 2
        assert "no region proposal network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing.jpg"], "no such file"),
        (["."], "folder"),
        (["PICTURE", "--method", "rpm"], "no method 'rpm'"),
        (["PICTURE", "--method", "rpn"], "needs a model"),
        (["PICTURE", "-m", "yolo"], "selective-search does not look at --model"),
        (["PICTURE", "--windows", "64"], "take --method sliding-window"),
        (["PICTURE", "--method", "sliding-window", "--plan", "fast"], "take --method selective-search"),
        (["PICTURE", "--method", "rpn", "-m", "yolo", "--seed", "1"], "selective-search or sliding-window"),
        (["PICTURE", "--method", "sliding-window", "--device", "cpu"], "--device"),
        (["PICTURE", "--split", "val"], "only --recall looks at --split"),
        (["PICTURE", "--plan", "best"], "no plan 'best'"),
        (["PICTURE", "--method", "sliding-window", "--windows", "a,b"], "not a list of numbers"),
        (["PICTURE", "--method", "sliding-window", "--stride", "0"], "stride"),
        (["PICTURE", "--recall"], "not a data set"),
        (["PICTURE", "-o", "PICTURE"], "exists already"),
        (["PICTURE", "--max", "-1"], "max"),
    ],
)
def test_mistakes(picture: str, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [picture if word == "PICTURE" else word for word in arguments]
    assert main(["propose", *words]) == 2
    assert reason in capsys.readouterr().err
