"""``detkit compress``: a smaller file that loads and predicts nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detkit.cli import main
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.toy import CLASSES, toy_sample
from detkit.engine.options import TrainOptions
from detkit.structures import Limits


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    parts = {
        "size": 64,
        "backbone": {"name": "lenet_textbook", "taps": [1]},
        "proposals": {"name": "windows", "windows": [32], "aspects": [1.0]},
        "head": {"name": "roi", "layers": "mlp", "width": 64, "size": 3},
    }
    detector = build_detector(Config({}, check_model(parts, Place()), {}, TrainOptions(), EvaluateOptions()), CLASSES)
    detector.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_smaller_model_of_nearly_the_same_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compress", str(model), "--ranks", "64, 64", "-o", "full.safetensors"]) == 0
    assert "weights off by 0.0%" in capsys.readouterr().out
    assert main(["compress", str(model), "--ranks", "16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out"] == "model-svd.safetensors"
    assert report["bytes"] == (tmp_path / report["out"]).stat().st_size < model.stat().st_size
    assert report["parameters"] < report["before"]
    assert [layer["rank"] for layer in report["layers"]] == [16]
    assert main(["info", "model-svd.safetensors"]) == 0
    sample = toy_sample(0, 64)
    scores = [
        load_detector(path).predict_samples([sample], Limits(conf=0.0))[0].scores
        for path in (model, "full.safetensors")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "a"], "whole numbers"),
        (["--ranks", "-3"], "whole numbers"),
        (["--ranks", "1.5"], "whole numbers"),
        (["--ranks", ""], "whole numbers"),
        (["--ranks", "²"], "whole numbers"),
        (["--ranks", "0"], "does not lie within"),
        (["--ranks", "65"], "does not lie within"),
        (["--ranks", "4,4,4"], "a rank for each of the 2 layers"),
        (["--ranks", "4", "-o", "model.safetensors"], "exists"),
        ([], "--ranks"),
        (["--rank", "4"], "--rank"),
    ],
)
def test_typical_mistakes(
    model: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["compress", "model.safetensors", *words]) == 2
    assert said in capsys.readouterr().err


def test_models_without_such_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "default", "--ranks", "4"]) == 2
    assert "no fully connected layers" in capsys.readouterr().err
    assert main(["compress", "nowhere.safetensors", "--ranks", "4"]) == 2
