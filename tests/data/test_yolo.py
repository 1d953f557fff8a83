"""YOLO data.yaml: places, names, label lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit.data.dataset import read
from detkit.data.yolo import label_file
from detkit.errors import DetkitError


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("0 0.5 0.5 0.2", "wrong number of columns (line dropped)"),
        ("0 0.5 0.5 0.2 0.2 0.9", "wrong number of columns (line dropped)"),
        ("7 0.5 0.5 0.2 0.2", "unknown class number (line dropped)"),
        ("red 0.5 0.5 0.2 0.2", "line that is not numbers (dropped)"),
        ("0 nan 0.5 0.2 0.2", "box is not finite (dropped)"),
        ("0 0.5 0.5 0 0.2", "box of zero size (dropped)"),
        ("0 1.5 0.5 0.2 0.2", "box outside the image (dropped)"),
    ],
)
def test_bad_line(yolo_file: Path, line: str, finding: str) -> None:
    file = yolo_file.parent / "labels" / "train" / "empty.txt"
    file.write_text(f"\n{line}\n")
    a = read(yolo_file)
    assert [(f.name, f.count) for f in a.findings] == [(finding, 1)]
    assert f"{file}:2" in a.findings[0].examples[0]
    assert len(a) == 3
    assert len(a.labels) == 3


def test_polygon_becomes_a_box_and_is_counted(yolo_file: Path) -> None:
    (yolo_file.parent / "labels" / "train" / "empty.txt").write_text("1 0.1 0.2 0.5 0.2 0.3 0.9\n")
    a = read(yolo_file)
    np.testing.assert_allclose(a.xywh[3], [2, 4, 8, 14])
    assert a.findings[0].name == "polygon made into a box"


def test_missing_label_file_is_counted(yolo_file: Path) -> None:
    (yolo_file.parent / "labels" / "train" / "empty.txt").unlink()
    a = read(yolo_file)
    assert len(a) == 3
    assert a.findings[0].name.startswith("image without a label file")


def test_a_listed_path_where_nothing_is(yolo_file: Path) -> None:
    (yolo_file.parent / "list.txt").write_text("images/train/a.png\nimages/gone/b.png\n")
    yolo_file.write_text("train: list.txt\nnames: [red, blue thing]\n")
    (found,) = (f for f in read(yolo_file).findings if f.name.startswith("neither"))
    assert found.name == "neither image nor label file is there"
    assert (found.count, found.note) == (1, False)
    assert found.examples == (str(yolo_file.parent / "images" / "gone" / "b.png"),)


@pytest.mark.parametrize("place", ["list file", "several", "../ slip", "names as dict"])
def test_places_and_names(yolo_file: Path, place: str) -> None:
    root = yolo_file.parent
    (root / "list.txt").write_text("images/train/a.png\n./images/train/b ü.png\nimages/train/empty.png\n")
    train = {"list file": "list.txt", "several": "[images/train, list.txt]", "../ slip": "../images/train"}
    names = "{0: red, 1: blue thing}" if place == "names as dict" else "[red, blue thing]"
    yolo_file.write_text(f"train: {train.get(place, 'images/train')}\nnames: {names}\n")
    a = read(root)
    assert len(a) == 3
    assert len(a.labels) == 3
    assert a.classes == ("red", "blue thing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "has no names"),
        ("train: images/nope\nnames: [a, b]\n", "train of this data.yaml is not there"),
        ("train: [\n", "not YAML"),
        ("train: images/train\nnames: [a, a]\n", "used twice"),
    ],
)
def test_bad_yaml(yolo_file: Path, text: str, message: str) -> None:
    yolo_file.write_text(text)
    with pytest.raises(DetkitError, match=message) as error:
        read(yolo_file)
    assert str(yolo_file) in error.value.where


def test_label_file() -> None:
    image = str(Path("data/images/images/train/a.b.jpg"))
    assert label_file(image) == str(Path("data/images/labels/train/a.b.txt"))
