"""YOLO txt folders and VOC result files as detections."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.io.detections import open_writer, read_detections
from detkit.io.sources import Frame
from detkit.structures import Detections

CLASSES = ("cat", "dining table", "table")


@pytest.fixture
def data(tmp_path: Path) -> SimpleNamespace:
    """Three images; the data does not say how large the last one is."""
    cv2.imwrite(str(tmp_path / "c.v2.png"), np.zeros((50, 200, 3), np.uint8))
    return SimpleNamespace(
        image_ids=["a", "b", "c"],
        files=["photos/a.jpg", "photos/b.jpg", str(tmp_path / "c.v2.png")],
        sizes=np.array([[100, 200], [100, 100], [0, 0]]),
        classes=CLASSES,
        class_ids=(1, 2, 3),
    )


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_yolo_by_hand(tmp_path: Path, data: SimpleNamespace) -> None:
    folder = write(tmp_path / "y", a="0 0.5 0.5 0.5 0.2 0.9\n\n2 0.25 0.5 0.1 0.1 0.4\n", b="")
    (folder / "c.v2.txt").write_text("1 0.5 0.5 1 1 0.7")
    got, notes = read_detections(folder, data)
    assert got.image.tolist() == [0, 0, 2]
    assert got.label.tolist() == [0, 2, 1]
    assert got.xywh == pytest.approx(np.array([[50, 40, 100, 20], [40, 45, 20, 10], [0, 0, 200, 50]]))
    assert got.score.tolist() == [0.9, 0.4, 0.7]
    assert notes == ["no classes.txt: class 0 is taken as cat, and so on"]


def test_yolo_as_detkit_writes_it(tmp_path: Path, data: SimpleNamespace) -> None:
    found = Detections(np.array([[10, 20, 60, 70], [0, 0, 5, 5]]), np.array([0.9, 0.5]), np.array([0, 1]))
    with open_writer("yolo", tmp_path / "out", ("table", "cat")) as writer:
        writer.write(Frame(np.zeros((100, 200, 3), np.uint8), "photos/a.jpg"), found)
    got, notes = read_detections(tmp_path / "out", data)
    assert got.label.tolist() == [2, 0]
    assert got.xywh == pytest.approx(np.array([[10, 20, 50, 50], [0, 0, 5, 5]]), abs=1e-3)
    assert notes == ["2 of 3 images have no file in out"]


def test_voc_by_hand(tmp_path: Path, data: SimpleNamespace) -> None:
    folder = write(
        tmp_path / "v",
        comp4_det_test_cat="a 0.9 1 1 10 20\nb 0.8 5 6 5 6\n",
        **{"comp4_det_test_dining table": "c.v2 0.5 1 1 200 50\n"},
    )
    got, notes = read_detections(folder, data)
    assert got.image.tolist() == [0, 1, 2]
    assert got.label.tolist() == [0, 0, 1]
    assert got.xywh.tolist() == [[0, 0, 10, 20], [4, 5, 1, 1], [0, 0, 200, 50]]
    assert notes == ["no file for table: every such object counts as missed"]
    one, _ = read_detections(folder / "comp4_det_test_cat.txt", data)
    assert len(one) == 2


def test_names_in_another_spelling_are_matched_where_that_is_plain_and_said(
    tmp_path: Path, data: SimpleNamespace
) -> None:
    folder = write(tmp_path / "v", comp4_det_val_Cat="a 0.9 1 1 10 20\n", comp4_det_val_DiningTable="b 0.8 5 6 9 9\n")
    got, notes = read_detections(folder, data)
    assert got.label.tolist() == [0, 1]
    assert notes == [
        "no file for table: every such object counts as missed",
        "classes matched by another spelling: Cat as cat, DiningTable as dining table",
    ]
    data.classes = ("cat", "CAT", "table")
    with pytest.raises(DetkitError, match="class 'Cat' is not in the data"):  # it may be either
        read_detections(folder / "comp4_det_val_Cat.txt", data)


@pytest.mark.parametrize(
    ("files", "what", "where"),
    [
        ({}, "no txt files", ""),
        ({"a": "0 0.5 0.5 0.5 0.2"}, "5 words in a line of 6", "line 1"),
        ({"a": "0 0.5 0.5 0.5 0.2 high"}, "high", "line 1"),
        ({"a": "0 0.5 0.5 0.5 0.2 nan"}, "not a finite number", "line 1"),
        ({"a": "\n0 0.5 0.5 0.5 0.2 1.2"}, "outside 0..1", "line 2"),
        ({"a": "3 0.5 0.5 0.5 0.2 0.9"}, "class 3", "line 1"),
        ({"a": "cat 0.5 0.5 0.5 0.2 0.9"}, "class cat", "line 1"),
        ({"a": "0 0.5 0.5 0.5 0.2 0.9", "classes": "cow"}, "class 'cow'", "line 1"),
        ({"aa": "0 0.5 0.5 0.5 0.2 0.9"}, "image aa", "aa.txt"),
        ({"comp4_det_test_cow": "a 0.9 1 1 10 20"}, "class 'cow'", "comp4"),
        ({"comp4_det_test_cat": "z 0.9 1 1 10 20"}, "image z", "line 1"),
        ({"comp4_det_test_cat": "a 0.9 30 1 10 20"}, "negative size", "line 1"),
        ({"comp3_det_test_cat": "", "comp4_det_test_cat": ""}, "comp3_det_test_cat.txt and comp4", ""),
    ],
)
def test_mistakes(tmp_path: Path, data: SimpleNamespace, files: dict[str, str], what: str, where: str) -> None:
    with pytest.raises(DetkitError) as error:
        read_detections(write(tmp_path / "d", **files), data)
    assert what in error.value.what
    assert where in error.value.where
