"""Pretraining from the command line, and what its backbone is worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.cli import main
from detkit.config.build import load_detector
from detkit.data.dataset import Dataset, read
from detkit.io.images import write_image
from detkit.metrics import evaluate_results
from detkit.probing import embed, knn_scores, linear_scores
from detkit.tables import results_of, truth_of

SMALL = ["model.size=32", "model.backbone=resnet20", "train.batch=4", "train.epochs=1", "train.workers=0"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue images in train and test."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name, channel in (("blue", 2), ("red", 0)):
            for number in range(count):
                image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                image[..., channel] += 180
                (root / part / name).mkdir(parents=True, exist_ok=True)
                write_image(root / part / name / f"{number}.png", image)
    return root


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", "simclr", "--data", str(folders / "train"), *SMALL, "-o", str(out)]) == 0
    return out


def test_neighbours_vote_by_their_cosine() -> None:
    memory, labels = torch.tensor([[1.0, 0], [0, 1], [0, 2]]), torch.tensor([0, 1, 1])
    scores = knn_scores(memory, labels, torch.tensor([[3.0, 0], [1, 1]]), 3)
    assert scores[0].tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert scores[1].tolist() == pytest.approx([1 / 3, 2 / 3, 0])


def test_a_linear_layer_parts_what_a_line_parts() -> None:
    x = torch.tensor([[0.0, 5], [1, 5], [4, 5], [5, 5]])
    scores = linear_scores(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.5, 5], [6, 5]]), 2)
    assert scores.argmax(1).tolist() == [0, 1]
    assert scores.sum(1).tolist() == pytest.approx([1, 1])


def test_a_folder_of_images_is_read_by_name_only(folders: Path) -> None:
    found = read(folders, format="images")
    assert found.classes == ("image",)
    assert len(found) == 18
    assert found.labelled
    assert read(folders).classes == ("blue", "red")


def test_the_accuracy_is_the_mean_of_the_answers() -> None:
    truth = truth_of([{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}] * 4, ("image",))
    found = [{"boxes": [[0, 0, 9, 9]], "scores": [score], "labels": [0]} for score in (1.0, 0.5, 0.25)]
    results = results_of([*found, {"boxes": np.zeros((0, 4)), "scores": [], "labels": []}])
    assert evaluate_results(truth, results, "pretext").metrics == {"accuracy": pytest.approx(1.75 / 4)}


@pytest.mark.parametrize("by", ["knn", "linear"])
def test_a_probe_judges_the_backbone(run: Path, folders: Path, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run / "last.safetensors"), str(folders), "--protocol", by, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["metrics"]["top1"] == 1.0  # red and blue are told apart by any features
    assert (facts["known"], facts["judged"], facts["protocol"]) == (12, 6, by)


def test_another_training_starts_from_the_backbone(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "classify", "--data", str(folders), *SMALL, "model.head.layers=pool", "-o", str(tmp_path / "run")]
    assert main([*words, f"model.backbone.weights={run}"]) == 0
    assert "backbone weights from best.safetensors" in capsys.readouterr().err


def test_mistakes_are_told(run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "yolo", "--data", str(folders)]) == 2
    assert "the head yolo learns from labels" in capsys.readouterr().err
    assert main(["pretrain", "simclr", "--data", str(tmp_path)]) == 2
    assert "there is no image in this folder" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(folders / "train"), "--protocol", "knn"]) == 2
    assert "the parts are one" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(folders), "--protocol", "knn", "--iou", "0.5"]) == 2
    assert "this says nothing about a probe" in capsys.readouterr().err
    shutil.copytree(folders / "train" / "red", tmp_path / "apart" / "train" / "red")
    shutil.copytree(folders / "test" / "blue", tmp_path / "apart" / "test" / "blue")
    assert main(["evaluate", str(run), str(tmp_path / "apart"), "--protocol", "linear"]) == 2
    assert "train has red, test blue: no class in common" in capsys.readouterr().err
    out = ["-o", str(tmp_path / "run")]
    cached = ["model.backbone.frozen=1", "train.cache_features=true"]
    assert main(["pretrain", "simclr", "--data", str(folders), *SMALL, *cached, *out]) == 2
    assert "this head makes views of the images" in capsys.readouterr().err


def test_strips_hold_frames_in_their_order(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(9):
        write_image(tmp_path / "frames" / f"{number}.png", np.full((8, 10, 3), 20 * number, np.uint8))
    words = ["data", "strips", str(tmp_path / "frames"), "--out", str(tmp_path / "strips"), "--step"]
    assert main([*words, "2"]) == 0
    from detkit.io.images import read_image

    strips = sorted((tmp_path / "strips").iterdir())
    assert len(strips) == 3
    assert read_image(strips[1])[4, [5, 15, 25], 0].tolist() == pytest.approx([40, 80, 120], abs=2)
    run = str(tmp_path / "run")
    size = [*SMALL, "model.size=[32,96]", "train.batch=2"]
    assert main(["pretrain", "frame_order", "--data", str(tmp_path / "strips"), *size, "-o", run]) == 0
    assert main(["evaluate", run, str(folders), "--protocol", "knn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["top1"] == 1.0
    model, known = load_detector(run), Dataset(read(folders, split="test"))
    pixels = torch.from_numpy(known.load(0).image).permute(2, 0, 1)[None]  # 32 x 32, as one frame of a strip
    own = model.backbone((pixels - model.mean) / model.std)[-1].mean((2, 3))
    assert torch.allclose(embed(model, known)[0], own[0], atol=1e-5)
    assert main(["evaluate", run, str(tmp_path / "strips"), "--format", "images"]) == 0
    text = capsys.readouterr().out
    assert "accuracy" in text
    assert "best F1" not in text
    assert main(["adapt", run, str(tmp_path / "strips"), "-o", str(tmp_path / "adapted.safetensors")]) == 0
    assert main([*words, "5", "--overwrite"]) == 2
    assert "no 3 frames of one size, 5 apart" in capsys.readouterr().err
    assert main(["data", "strips", "missing.mp4", "--out", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
