"""``detkit match`` on a model that was trained for a moment: verify, enrol, identify, search, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import detkit
from detkit.cli import main
from detkit.config.build import load_detector
from detkit.errors import DetkitError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six colours as identities, two of them in val alone."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
    others = {"yellow": (200, 200, 30), "violet": (160, 30, 200)}
    for part, shown in (("train", colours), ("val", others)):
        for name, colour in shown.items():
            for k in range(6):
                pixels = np.clip(np.array(colour) + rng.normal(0, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
                file = folder / part / name / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = ["model.size=24", "model.backbone={name: lenet_textbook, taps: [1]}", "model.head={name: embed, dim: 8}"]
    changes += ["train.batch=8", "train.per_identity=2", "train.workers=0", "train.ema=0", "train.lr=5e-3"]
    done = detkit.train("embed", data=data, epochs=6, overrides=changes, out=tmp_path_factory.mktemp("embed") / "run")
    assert done.row["rank1"] > 0.9
    return done.run


def test_verify_enrol_identify_search(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["-m", str(run), "--device", "cpu"]
    yellow, violet = ([str(data / f"val/{name}/{k}.png") for k in range(6)] for name in ("yellow", "violet"))
    assert main(["match", "verify", yellow[0], yellow[1], *model, "--threshold", "0.9"]) == 0
    assert "one identity" in capsys.readouterr().out
    found = ["--data", str(data), "--split", "val", "--false-accepts", "0.2", "--json"]
    code = main(["match", "verify", yellow[0], violet[1], *model, *found])
    facts = json.loads(capsys.readouterr().out)
    assert code == (0 if facts["same"] else 3)
    assert facts["same"] == (facts["likeness"] >= facts["threshold"])
    assert facts["threshold"] < 0.9
    assert main(["match", "verify", yellow[0], violet[1], *model, "--threshold", "0.95"]) == 3
    assert "two identities" in capsys.readouterr().out
    assert main(["match", "enrol", "known", "yellow", yellow[0], *model]) == 0
    assert "1 identity, 1 image" in capsys.readouterr().out
    assert main(["match", "enrol", "known", "violet", *violet[:2], *model]) == 0
    assert "2 identities, 3 images" in capsys.readouterr().out
    assert Path("known").stat().st_size < 2000  # vectors, no images
    assert main(["match", "identify", "known", yellow[3], violet[3], *model, "--threshold", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ": yellow (" in lines[0]
    assert ": violet (" in lines[1]
    assert main(["match", "identify", "known", str(data / "train/blue/0.png"), *model, "--threshold", "1.1"]) == 0
    assert "not recognised" in capsys.readouterr().out
    assert main(["match", "search", violet[0], str(data / "val/violet"), *model, "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split() == [violet[0], "1.000"]


def test_what_is_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image, model = str(data / "val/yellow/0.png"), ["-m", str(run), "--device", "cpu"]
    other = ["-m", str(run / "last.safetensors"), "--device", "cpu"]
    (tmp_path / "none").mkdir()
    (tmp_path / "text").write_text("no gallery")
    save_file({"table": np.zeros((1, 2))}, tmp_path / "odd", {"gallery": '{"model": "", "names": 5}'})
    assert main(["match", "enrol", "known", "yellow", image, *model]) == 0
    detector = load_detector(run / "last.safetensors")
    with torch.no_grad():
        next(detector.parameters()).add_(1)
    detector.save(tmp_path / "other.safetensors")
    shutil.copytree(data / "val" / "yellow", tmp_path / "alone" / "val" / "yellow")
    shutil.copytree(data / "train", tmp_path / "alone" / "train")
    changes = [
        f"data.train={{path: {tmp_path / 'alone'}, split: train}}",
        f"data.val={{path: {tmp_path / 'alone'}, split: val}}",
    ]
    small = ["model.size=24", "model.backbone={name: lenet_textbook, taps: [1]}", "train.batch=8", "train.workers=0"]
    detkit.train("embed", epochs=1, overrides=[*changes, *small], out=tmp_path / "one")
    for words, said in (
        (["identify", "known", image, "-m", "other.safetensors"], "made with another model"),
        (["identify", "text", image, *model], "no gallery"),
        (["identify", "odd", image, *model], "no gallery"),
        (["identify", "missing", image, *model], "missing"),
        (["search", image, "none", *model], "no image in this folder"),
        (["search", image, str(data / "val"), *model], "not in folders of its own"),
        (["search", image, "missing", *model], "no such folder"),
        (["verify", image, image, *model, "--false-accepts", "0.1"], "labelled images"),
        (["verify", image, image], "no threshold"),
        (["verify", image, image, "-m", "one"], "no threshold"),
        (["verify", image, image, *model, "--data", "alone", "--split", "val"], "all images are of one identity"),
        (["verify", image, "missing.png", *other], "missing.png"),
    ):
        capsys.readouterr()
        assert main(["match", *words]) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert "Traceback" not in error
    assert main(["detect", image, *model]) == 2
    assert "this model makes vectors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [("train.per_identity=1", "several images of an identity"), ("train.per_identity=3", "divisor of batch")],
)
def test_batches_need_pairs(data: Path, change: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=said):
        detkit.train("embed", data=data, overrides=[change], out=tmp_path / "run")


def test_an_identity_with_one_image_is_said(run: Path, data: Path, tmp_path: Path) -> None:
    for name in ("red", "blue", "green"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for k in range(1 if name == "red" else 3):
            shutil.copy(data / f"train/{name}/{k}.png", tmp_path / "few" / name)
    said: list[str] = []
    changes = ["model.size=24", "model.backbone={name: lenet_textbook, taps: [1]}", "model.head={name: embed, dim: 8}"]
    changes += ["train.batch=4", "train.per_identity=2", "train.workers=0", "data.val_share=0.3"]
    how = {"overrides": changes, "dry_run": True, "on_event": lambda event: said.append(str(event))}
    detkit.train("embed", data=tmp_path / "few", **how)
    assert any("identities have one image" in text for text in said)
    assert any("data.val: no identity has two images" in text for text in said)
    shutil.rmtree(tmp_path / "few/blue")
    for file in (tmp_path / "few/green").glob("[12].png"):
        file.unlink()
    with pytest.raises(DetkitError, match="no identity has two images: there are no pairs to judge"):
        detkit.evaluate(run, tmp_path / "few")
    with pytest.raises(DetkitError, match="no identity has two images"):
        detkit.train("embed", data=tmp_path / "few", **how)
