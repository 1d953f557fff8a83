"""Small data sets in each format, drawn here: two red and one blue block, and an image without objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.io.images import write_image

CLASSES = ("red", "blue thing")
IMAGES = {"a": (40, 60), "b ü": (50, 30), "empty": (20, 20)}  # height, width
# image, class, x, y, w, h in zero-based pixels, crowd, difficult
OBJECTS = [("a", 0, 5, 6, 20, 10, 0, 0), ("a", 1, 30, 10, 30, 30, 1, 0), ("b ü", 0, 0, 0, 30, 50, 0, 1)]


def draw_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, (height, width)) in enumerate(IMAGES.items()):
        write_image(folder / f"{name}.png", np.full((height, width, 3), 40 + 60 * k, np.uint8))


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    draw_images(tmp_path / "coco" / "train")
    ids = {name: 10 * (k + 1) for k, name in enumerate(IMAGES)}
    images = [
        {"id": ids[n], "file_name": f"{n}.png", "height": h, "width": w, "licence": 7} for n, (h, w) in IMAGES.items()
    ]
    annotations = [
        {"id": 100 + k, "image_id": ids[n], "category_id": 5 * (c + 1), "bbox": [x, y, w, h], "area": 0.5 * w * h,
         "iscrowd": crowd, "difficult": difficult, "segmentation": [[x, y, x + w, y, x, y + h]], "extra": {"k": 1.50}}
        for k, (n, c, x, y, w, h, crowd, difficult) in enumerate(OBJECTS)
    ]  # fmt: skip
    categories = [{"id": 5 * (c + 1), "name": name, "supercategory": "block"} for c, name in enumerate(CLASSES)]
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    draw_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, (height, width) in IMAGES.items():
        rows = [
            f"<object>\n<name>{CLASSES[c]}</name><difficult>{d}</difficult>"
            f"<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>\n"
            for n, c, x, y, w, h, _, d in OBJECTS
            if n == name
        ]
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation>\n<filename>{name}.png</filename>\n{size}\n{''.join(rows)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nempty\n")
    (root / "ImageSets" / "Main" / "red_train.txt").write_text("a 1\nempty -1\n")
    return root


@pytest.fixture
def yolo_file(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    draw_images(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    for name, (height, width) in IMAGES.items():
        rows = [
            f"{c} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
            for n, c, x, y, w, h, *_ in OBJECTS
            if n == name
        ]
        (root / "labels" / "train" / f"{name}.txt").write_text("".join(rows))
    file = root / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nnames: [red, blue thing]\n")
    return file
