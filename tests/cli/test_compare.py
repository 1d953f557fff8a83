"""``detkit compare``: which runs it takes and refuses, what it prints and draws. The models are stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detkit.cli import main
from detkit.config.datasets import train_val_datasets
from detkit.config.experiment import read_config
from detkit.engine.options import TrainOptions
from detkit.engine.run_folder import data_hash
from detkit.io.images import write_image
from detkit.structures import Detections, Limits, Sample

SIDE, IMAGES = 40, 8


def write_coco(folder: Path, shift: int = 0) -> Path:
    """Images that are dark but for one bright square, the object."""
    folder.mkdir()
    annotations = []
    for i in range(IMAGES):
        x = (3 * i + shift) % 20
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[x : x + 16, x : x + 16] = 255
        write_image(folder / f"{i}.png", image)
        box = {"bbox": [x, x, 16, 16], "area": 256, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1, **box})
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(IMAGES)],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": annotations,
    }
    (folder / "labels.json").write_text(json.dumps(data))
    return folder / "labels.json"


class Finder:
    """Finds the bright square, in every image or in every second one."""

    classes = ("square",)
    protocol = "coco"
    iou = 0.5

    def __init__(self, every: int) -> None:
        self.every = every

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        found = []
        for sample in samples:
            rows = np.flatnonzero(sample.image.max(axis=(1, 2)))
            box = [rows[0], rows[0], rows[-1] + 1, rows[-1] + 1]
            right = [box] if int(sample.path.split("/")[-1][0] if sample.path else 0) % self.every == 0 else []
            boxes = np.array(right, np.float32).reshape(-1, 4)
            found.append(Detections(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes)), self.classes))
        return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder: config.yaml and run.json, as training leaves them."""

    def make(name: str, train: Path, val: Path, minutes: float = 1.0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        overrides = [f"data.train={json.dumps(str(train))}", f"data.val={json.dumps(str(val))}"]
        config = read_config("yolo", overrides, train_schema=TrainOptions)
        (folder / "config.yaml").write_text(config.to_yaml())
        record = {"data_hash": data_hash(train_val_datasets(config)[0]), "minutes": minutes}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.fixture
def runs(tmp_path: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    from detkit import api

    train, val, other = (write_coco(tmp_path / name, shift) for name, shift in (("t", 0), ("v", 1), ("o", 2)))
    monkeypatch.setattr(api, "load", lambda path, **_: Finder(2 if str(path).endswith("half") else 1))
    return {
        "whole": run("whole", train, val),
        "half": run("half", train, val, 2.0),
        "other": run("other", other, val),
        "elsewhere": run("elsewhere", train, other),
        "data": val,
    }


def test_table_image_and_json(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(runs["half"]), str(runs["whole"]), "--timed", "2", "--bootstrap", "50"]
    assert main([*words, "--json", "-o", str(tmp_path / "c.png")]) == 0
    got = json.loads(capsys.readouterr().out)
    half, whole = got["runs"]
    assert whole["AP50"] == pytest.approx(1)
    assert 0.3 < half["AP50"] < 0.6
    assert half["minutes"] == 2
    assert half["seconds"]["median"] > 0
    assert {(one["metric"], one["significant"]) for one in got["differences"]} == {("AP", True), ("AP50", True)}
    assert got["data"]["parts"]["data"]["boxes"] == got["images"] == 8
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("more than noise")


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["whole"], "two or more"),
        (["whole", "whole"], "two or more"),
        (["whole", "other"], "other was trained on other data than"),
        (["whole", "elsewhere"], "elsewhere is judged on other images"),
        (["whole", "half", "--split", "test"], "no test data"),
        (["whole", "nowhere"], "no such run folder"),
        (["whole", "v"], "run.json of this folder is missing"),
        (["whole", "yolo"], "no trained run"),
        (["whole", "half", "-o", "c.doc"], "c.doc"),
        (["whole", "half", "-o", "data"], "plots cannot be written"),
        (["whole", "half", "--bootstrap", "0"], "--bootstrap"),
        (["runs/a", "runs/a/"], "two different runs are compared"),
        (["whole", "half", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    needle: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *(str(runs.get(word, word)) for word in words)]) == 2
    said = capsys.readouterr()
    assert needle in said.err.replace(f"{tmp_path}/", "")
    assert not said.out


def test_given_data_allows_other_runs_and_says_who_knows_it(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Finder, "classes", ("square", "disc"))
    data = tmp_path / "o" / "labels.json"
    words = ["compare", str(runs["whole"]), str(runs["other"]), "--data", str(data), "--bootstrap", "3", "--timed", "1"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "other was trained on these very images" in said
    assert "whole was trained on" not in said
    assert said.count("since the data does not have them: disc") == 2


def test_a_config_stands_for_its_newest_run(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    runs["half"].rename(tmp_path / "runs" / "yolo2")
    (tmp_path / "runs" / "yolo2" / "best.safetensors").touch()
    assert main(["compare", str(runs["whole"]), "yolo", "--bootstrap", "3", "--timed", "1", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["runs"]] == [str(runs["whole"]), "yolo"]


def test_classifiers_are_refused(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detkit import api

    monkeypatch.setattr(api, "load", lambda path, **_: SimpleNamespace(protocol="classify"))
    assert main(["compare", str(runs["whole"]), str(runs["half"])]) == 2
    assert "classifies whole images" in capsys.readouterr().err
