"""A small data set on disk, and detections on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from detkit.data.annotations import Annotations
from detkit.data.dataset import read
from detkit.tables import Results


class Case(NamedTuple):
    """What a report is made of, and the file it came from."""

    file: Path
    annotations: Annotations
    results: Results


# xywh on images of 120 x 80: label 0 is the cat, 1 the dog; "cow & <calf>" has no object.
OBJECTS = [(0, 0, [10, 10, 40, 40]), (0, 1, [60, 10, 40, 40]), (1, 0, [5, 5, 30, 60]), (2, 0, [80, 40, 30, 30])]
FOUND = [
    (0, 0, [10, 10, 40, 40], 0.9),  # right
    (0, 0, [60, 10, 40, 40], 0.8),  # a dog taken for a cat
    (1, 0, [5, 5, 30, 60], 0.7),  # right
    *((1, 1, [90, 50, 20, 20], score) for score in (0.6, 0.3, 0.2)),  # nothing there
    (2, 0, [80, 40, 30, 30], 0.1),  # right, but late
]


@pytest.fixture(scope="session")
def kept_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A ``case`` that no test changes."""
    return made(tmp_path_factory.mktemp("case"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Three images (one with a difficult name), four objects, seven detections."""
    return made(tmp_path)


def made(folder: Path) -> Case:
    names = ["a.jpg", "b & <i>.jpg", "c d#é.jpg"]
    rng = np.random.default_rng(0)
    for name in names:
        encoded = cv2.imencode(".jpg", rng.integers(0, 255, (80, 120, 3), np.uint8))[1]
        (folder / name).write_bytes(encoded.tobytes())
    categories = [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "cow & <calf>"))]
    data = {
        "images": [{"id": i, "file_name": name, "width": 120, "height": 80} for i, name in enumerate(names)],
        "categories": categories,
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, k, box) in enumerate(OBJECTS, 1)
        ],
    }
    file = folder / "labels.json"
    file.write_text(json.dumps(data))
    image, label, xywh, score = zip(*FOUND, strict=True)
    results = Results(np.array(image), np.array(label), np.array(xywh, float), np.array(score))
    return Case(file, read(file), results)
