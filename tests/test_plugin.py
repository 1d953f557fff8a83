"""Parts from outside, in a package that is installed beside detkit: trained, resumed, evaluated and used to detect."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detkit import api, registry, training
from detkit.engine.events import EpochDone
from detkit.errors import DetkitError

PACKAGE = Path(__file__).parent / "plugin"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example package into."""
    target = tmp_path_factory.mktemp("site")
    source = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "plugin")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def plugin(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package importable and announced, and forgotten afterwards."""
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setattr(registry, "_allowed", set())
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "detkit_example"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy images in the example's own format."""
    folder = tmp_path_factory.mktemp("csv")
    runpy.run_path(str(PACKAGE / "draw.py"))["draw"](folder, train=8)
    return folder


def experiment(folder: Path, data: Path, module: str = "") -> Path:
    """The example's YAML file for this data; module: its parts by ``module:Name``, not as installed ones."""
    text = (PACKAGE / "experiment.yaml").read_text(encoding="utf-8").replace(": data/", f": {data}/")
    if module:
        text = text.replace("example_cnn", f"{module}.backbone:ExampleCNN")
        text = text.replace("example_centre", f"{module}.head:CentreHead")
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def detkit(*arguments: object, site: Path, code: int = 0, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "detkit", *map(str, arguments)]
    root = Path(__file__).resolve().parents[1]
    environment = {"PYTHONPATH": f"{site}:{root}", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def test_command_line_from_training_to_detection(installed: Path, data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data)
    detkit("train", config, "--out", "run", site=installed, cwd=tmp_path)
    judged = json.loads(detkit("evaluate", "run", data / "val", "--json", site=installed, cwd=tmp_path).stdout)
    assert judged["protocol"] == "example_recall"
    assert 0 <= judged["metrics"]["recall50"] <= 1
    coco = detkit("evaluate", "run", data / "val", "--protocol", "coco", "--json", site=installed, cwd=tmp_path)
    assert 0 <= json.loads(coco.stdout)["metrics"]["AP50"] <= 1
    image = data / "val" / "1000.png"
    found = json.loads(
        detkit("detect", image, "--model", "run", "--conf", "0", "--json", site=installed, cwd=tmp_path).stdout
    )
    assert found["detections"]
    assert {one["label"] for one in found["detections"]} <= {"circle", "square", "triangle"}
    checked = detkit("data", "check", data / "train", "--json", site=installed, cwd=tmp_path)
    assert json.loads(checked.stdout)["images"] == 8


def test_resume_in_another_folder_is_bit_equal(plugin: None, data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data)
    whole = training.train(config, out=tmp_path / "whole")

    def stop(event: Any) -> None:
        if isinstance(event, EpochDone) and event.epoch == 0:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(DetkitError, match="Ctrl-C"):
        training.train(config, out=tmp_path / "part", on_event=stop)
    moved = shutil.move(tmp_path / "part", tmp_path / "elsewhere")
    again = training.train(resume=moved)
    assert {k: v for k, v in again.row.items() if k != "minutes"} == {
        k: v for k, v in whole.row.items() if k != "minutes"
    }
    assert "recall50" in again.row


def test_a_module_in_a_yaml_file_trains_and_its_model_file_asks_for_it(
    installed: Path, data: Path, tmp_path: Path
) -> None:
    config = experiment(tmp_path, data, "detkit_example")
    detkit("train", config, "--out", "run", "train.epochs=1", site=installed, cwd=tmp_path)
    image = data / "val" / "1000.png"
    typed = ["detect", str(image), "--model", "run/best.safetensors", "--conf", "0", "--json"]
    refused = detkit(*typed, site=installed, cwd=tmp_path, code=2).stderr
    assert "may not import code by itself" in refused
    exact = f"detkit detect {image} --model run/best.safetensors --conf 0 --json --plugin detkit_example"
    assert f"{exact}\n" in refused
    both = ["--plugin", "detkit_example.backbone", "--plugin", "detkit_example.head"]
    assert json.loads(detkit(*typed, *both, site=installed, cwd=tmp_path).stdout)["detections"]
    assert json.loads(detkit(*typed, "--plugin", "detkit_example", site=installed, cwd=tmp_path).stdout)["detections"]


def test_a_run_folder_is_a_strangers_too(plugin: None, data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data, "detkit_example")
    run = training.train(config, out=tmp_path / "run", overrides=["train.epochs=1"]).run
    for name in [name for name in sys.modules if name.partition(".")[0] == "detkit_example"]:
        del sys.modules[name]
    for attempt in (
        lambda: training.train(resume=run),
        lambda: api.load(run),
        lambda: training.train(run / "config.yaml"),
    ):
        with pytest.raises(registry.UntrustedPart, match=r"detkit_example\.backbone"):
            attempt()
        assert "detkit_example.backbone" not in sys.modules
    detector = api.load(run, plugins=["detkit_example"])
    assert type(detector.head).__name__ == "CentreHead"


def test_an_override_is_a_persons_word(plugin: None, data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data)
    done = training.train(
        config,
        out=tmp_path / "run",
        overrides=["model.head.name=detkit_example.head:CentreHead", "train.epochs=1"],
    )
    assert done.best_epoch == 0
