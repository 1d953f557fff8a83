"""Findings that need the images or all labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from detkit.data.check import check_annotations
from detkit.data.dataset import read


def names(path: Path, **options: bool) -> dict[str, int]:
    return {f.name: f.count for f in check_annotations(read(path), **options).facts["findings"]}


def test_labels(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    first = value["annotations"][0]
    value["annotations"] += [dict(first, id=1), dict(first, id=2, bbox=[5, 5, 1, 1])]
    value["categories"] += [{"id": 77, "name": "ghost"}, {"id": 78, "name": "Ghost "}]
    coco_file.write_text(json.dumps(value))
    assert names(coco_file) == {
        "tiny box (a side below 2 pixels)": 1,
        "box over the whole image": 1,
        "same box and class twice in an image": 1,
        "class without boxes": 2,
        "class names that differ only in case or spaces": 1,
    }
    coco_file.write_text('{"images": [], "annotations": [], "categories": []}')
    assert names(coco_file) == {"the data set holds no images": 1}


def test_images(coco_file: Path) -> None:
    images = coco_file.parents[1] / "train"
    shutil.copyfile(images / "a.png", images / "empty.png")
    data = (images / "b ü.png").read_bytes()
    (images / "b ü.png").write_bytes(data[: len(data) - 20])
    found = names(coco_file)
    assert found["broken image"] == 1
    assert found["same image twice"] == 1
    assert found["image's size is not the one in the labels"] == 1
    assert "broken image" not in names(coco_file, decode=False), "its header is whole"
    (images / "a.png").unlink()
    assert names(coco_file)["missing image"] == 1


def test_ignored_objects_are_counted(coco_file: Path) -> None:
    assert check_annotations(read(coco_file)).lines()[0] == (
        "3 images, 3 boxes, 2 classes (1 crowd, 1 difficult: neither right nor wrong when scored)"
    )
