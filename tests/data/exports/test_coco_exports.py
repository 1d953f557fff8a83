"""COCO's json as the tools write it: each export holds the scene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.data.dataset import read

# Makes the export in a folder; returns what a person would name, and the findings that the reader must have.
Export = Callable[[Any, Path], tuple[Path, dict[str, int]]]


def coco(scene: Any, file_name: Callable[[str], str] = str) -> dict[str, list[dict[str, Any]]]:
    images = [
        {"id": i, "file_name": file_name(p.file), "width": p.width, "height": p.height} for i, p in enumerate(scene, 1)
    ]
    annotations = [
        {"image_id": i, "category_id": scene.classes.index(b.name) + 1, "bbox": [b.x, b.y, b.w, b.h],
         "area": b.w * b.h, "iscrowd": 0, "segmentation": []}
        for i, p in enumerate(scene, 1) for b in p.boxes
    ]  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(scene.classes, 1)]
    return {
        "images": images,
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)],
        "categories": categories,
    }


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def cvat(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images")
    write(root / "annotations" / "instances_default.json", {"licenses": [], "info": {}} | coco(scene))
    return root, {}


EXPORTS: dict[str, Export] = {"CVAT COCO 1.0": cvat}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_holds_the_scene(name: str, scene: Any, tmp_path: Path) -> None:
    path, findings = EXPORTS[name](scene, tmp_path / "export")
    scene.check(read(path), findings)
