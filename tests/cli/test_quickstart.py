"""The first command a new user types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main, quickstart
from detkit.io.images import read_image, write_image
from detkit.ops.boxes import iou


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_model_finds_the_officer(folder, capsys):
    assert main(["quickstart", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    photos = {found["source"]: found["detections"] for found in answer["found"]}
    people = [d for d in photos["grace_hopper.jpg"] if d["label"] == "person"]
    assert len(people) == 1
    officer = np.array([[20.0, 20.0, 512.0, 600.0]])  # by eye
    assert iou(np.array([people[0]["box"]], np.float64), officer)[0, 0] > 0.7
    image = read_image(folder / "quickstart.jpg")
    assert image.shape[0] == 600  # as high as the first photo
    assert answer["image"] == "quickstart.jpg"


real = quickstart.find_spec


def test_only_matplotlib_is_needed(monkeypatch):
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None if name == "skimage" else real(name))
    assert [path.name for path in quickstart.installed_photos()] == ["grace_hopper.jpg"]


def test_own_images_take_the_place_of_the_packages(folder, capsys):
    write_image(folder / "mine.png", np.zeros((50, 80, 3), np.uint8))
    assert main(["quickstart", "mine.png"]) == 0
    assert capsys.readouterr().out.splitlines() == ["mine.png: 0 found", "drawn: quickstart.jpg"]
    assert read_image(folder / "quickstart.jpg").shape == (50, 80, 3)


def test_a_drawing_is_not_overwritten_unasked(folder, capsys):
    Path("quickstart.jpg").write_bytes(b"mine")
    assert main(["quickstart"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("quickstart.jpg").read_bytes() == b"mine"


def test_a_image_that_is_none_is_said(capsys):
    Path("text.jpg").write_text("no image")
    assert main(["quickstart", "text.jpg"]) == 2
    assert "text.jpg" in capsys.readouterr().err
    assert not Path("quickstart.jpg").exists()
