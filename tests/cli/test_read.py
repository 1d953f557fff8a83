"""What ``train`` and ``evaluate`` tell of the data that they read, and where they stop."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import detkit
from detkit.cli import main
from detkit.engine.events import DataRead, Event
from detkit.io.images import write_image

QUICK = ("train.epochs=1", "train.batch=4", "train.workers=0", "train.device=cpu", "model.size=32")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(12):
        write_image(tmp_path / f"images/{i}.png", np.full((60, 80, 3), 20 * i, np.uint8))
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat]\n")
    return tmp_path


@pytest.fixture
def coco(images: Path) -> Path:
    """65 annotations, of which 45 have no area, on twelve images; the last of these is without boxes."""
    sizes = [(8 + k % 9, 6 + k % 7) for k in range(20)] + [(0, 5)] * 45
    rows = [{"id": k, "image_id": k % 11, "category_id": 1, "bbox": [3, 3, *size]} for k, size in enumerate(sizes)]
    files = [{"id": i, "file_name": f"images/{i}.png", "width": 80, "height": 60} for i in range(12)]
    path = images / "labels.json"
    path.write_text(json.dumps({"images": files, "categories": [{"id": 1, "name": "cat"}], "annotations": rows}))
    return path


@pytest.mark.parametrize(
    ("label", "words"),
    [("0 80 60 40 30", ["12 x", "dropped)", "labels/0.txt:1"]), (None, ["images/0.png"])],
)
def test_nothing_left_to_learn_from_stops_with_examples(
    images: Path, label: str | None, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "labels").mkdir()
    for i in range(12 if label else 0):
        (images / f"labels/{i}.txt").write_text(f"{label}\n")
    assert main(["train", "--data", str(images / "data.yaml"), "-o", str(images / "run")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ["no box is left to learn from", *words])
    assert said.strip().splitlines()[-3].startswith("detkit: no box is left")
    assert not (images / "run").exists()


def test_train_tells_what_it_read_and_strict_refuses_it(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []
    detkit.train("toy", data=coco, overrides=QUICK, out=coco.parent / "run", dry_run=True, on_event=heard.append)
    summary = next(event for event in heard if isinstance(event, DataRead)).summary
    parts = summary.parts.values()
    assert sum(part["images"] for part in parts) == 12
    assert sum(part["boxes"] for part in parts) == 20
    assert [(one.name, one.count) for one in summary.findings] == [("box of zero size (dropped)", 45)]
    assert main(["train", "toy", "--data", str(coco), "--strict", "-o", str(coco.parent / "other"), *QUICK]) == 2
    said = capsys.readouterr().err
    assert "  cat" in said
    assert "45 labels or images are left out" in said
    assert "annotation 20 (image 9)" in said


def test_evaluate_tells_the_same_everywhere(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(coco.read_text())["annotations"][:20]
    found = coco.parent / "found.json"
    found.write_text(json.dumps([{**row, "score": 0.5 + row["id"] / 100} for row in rows]))
    words = ["evaluate", "--predictions", str(found), str(coco), "--json"]
    assert main([*words, "--check", "pycocotools"]) == 0
    said = capsys.readouterr()
    got = json.loads(said.out)
    assert got["data"]["parts"]["data"] | {"classes": 0} == {
        "images": 12,
        "images_without_boxes": 1,
        "boxes": 20,
        "crowd": 0,
        "difficult": 0,
        "classes": 0,
    }
    assert got["metrics"]["AP"] == pytest.approx(1.0)  # the first annotation has the id 0
    assert got["check"]["pycocotools"]["AP"] < 1
    number = f"its AP would be {got['check']['pycocotools']['AP']:.4f}"
    for text in ("45 x box of zero size (dropped)", "id 0", number, "45 boxes without area", "--keep-degenerate"):
        assert text in said.err
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert detkit.evaluate(found, coco).metrics == got["metrics"]
    assert any("45 x box of zero size" in str(one.message) for one in warned)
    assert any(number in str(one.message) for one in warned)
    heard: list[Event] = []
    detkit.evaluate(found, coco, on_event=heard.append, keep_degenerate=True)
    assert isinstance(heard[0], DataRead)
    assert heard[0].summary.parts["data"]["boxes"] == 65
    assert main([*words, "--strict"]) == 2
    assert main([*words, "--keep-degenerate", "--check", "pycocotools"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["metrics"]["AR100"] == pytest.approx(20 / 65)


def test_a_detection_set_of_boxes_that_fill_their_images_stays_one(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 80, 60]} for i in range(12)]
    files = [{"id": i, "file_name": f"images/{i}.png", "width": 80, "height": 60} for i in range(12)]
    path, found = images / "labels.json", images / "found.json"
    path.write_text(json.dumps({"images": files, "categories": [{"id": 1, "name": "cat"}], "annotations": rows}))
    found.write_text(json.dumps([{**row, "score": 0.5 + row["id"] / 100} for row in rows]))
    assert main(["evaluate", "--predictions", str(found), str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "coco"
    assert detkit.evaluate(found, path).metrics["AP"] == pytest.approx(1.0)
