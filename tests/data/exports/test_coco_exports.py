"""COCO's json as the tools write it: each export holds the scene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.data.coco import CocoFormat
from detkit.data.dataset import format_of, read, splits

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


def roboflow(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """A json beside the images of each part; category 0 is the project's name, which here is a class's, too."""
    for name, photos in {"train": scene.photos[:2], "valid": scene.photos[2:]}.items():
        value = coco(scene, lambda file: f"{Path(file).stem}_jpg.rf.0a1b2c.jpg")
        kept = [i for i, p in enumerate(scene, 1) if p in photos]
        value["images"] = [one for one in value["images"] if one["id"] in kept]
        value["annotations"] = [one for one in value["annotations"] if one["image_id"] in kept]
        for number, category in enumerate(value["categories"], 1):
            category.update(id=number, supercategory="cat")
        value["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
        write(root / name / "_annotations.coco.json", value)
        scene.draw(root / name, *(f"{p.stem}_jpg.rf.0a1b2c.jpg" for p in scene))
        for photo in set(scene.photos) - set(photos):
            (root / name / f"{photo.stem}_jpg.rf.0a1b2c.jpg").unlink()
    return root, {"category over all others, without boxes (Roboflow's; dropped)": 2}


def fiftyone(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "data")
    write(root / "labels.json", {"info": {"year": ""}, "licenses": []} | coco(scene))
    return root, {}


def beside_images(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images")
    write(root / "annotations.json", coco(scene))
    return root, {}


def labelme(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """labelme's own converter: drawings lie beside the images."""
    scene.draw(root / "JPEGImages")
    scene.draw(root / "Visualization")
    write(root / "annotations.json", {"info": {}} | coco(scene, lambda file: f"JPEGImages/{file}"))
    return root, {}


MENDED = {"file name of another machine or upload (found by its last part)": 3}


def label_studio(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images", *(f"90fbb0c7-{p.file}" for p in scene))
    write(root / "result.json", coco(scene, lambda file: f"images\\1\\90fbb0c7-{file}"))
    return root, MENDED


def label_studio_own_images(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Without its copies of the images, which have a prefix."""
    scene.draw(root)
    name = "..\\..\\label-studio\\media\\upload\\4\\cb0618f6-"
    return write(root / "result.json", coco(scene, lambda file: name + file)), MENDED


def label_studio_local_files(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images")
    write(root / "result.json", coco(scene, lambda file: f"/data/local-files/?d=images/{file}"))
    return root, MENDED


def of_another_machine(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images" / "train")
    write(root / "train.json", coco(scene, lambda file: f"C:\\Users\\me\\images\\train\\{file}"))
    return root, MENDED


def back_slashes(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images" / "train")
    write(root / "annotations" / "instances_train.json", coco(scene, lambda file: f"images\\train\\{file}"))
    return root, MENDED


def lvis(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """No file_name; validation images lie in two folders."""
    value = coco(scene)
    homes = ["train2017", "val2017", "val2017"]
    scene.draw(root / "all")
    for image, home in zip(value["images"], homes, strict=True):
        (root / home).mkdir(exist_ok=True)
        (root / "all" / image["file_name"]).rename(root / home / image["file_name"])
        image["coco_url"] = f"http://images.cocodataset.org/{home}/{image.pop('file_name')}"
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [2] if home == "train2017" else []}
    for category in value["categories"]:
        category |= {"frequency": "c", "synset": f"{category['name']}.n.01"}
    write(root / "lvis_v1_val.json", {"info": {}} | value)
    return root, {"image some of whose objects may have no box (LVIS's not_exhaustive_category_ids)": 1}


def objects365(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "val" / "patch0")
    names = lambda file: f"images/v1/patch0/{file}"  # noqa: E731
    value = {"licenses": []} | coco(scene, names)
    for number, one in enumerate(value["annotations"]):
        one["id"] = 2**40 + number
        one["isfake"], one["isreflected"] = 0, 0
    write(root / "annotations" / "zhiyuan_objv2_val.json", value)
    return root, MENDED


EXPORTS: dict[str, Export] = {
    "CVAT COCO 1.0": cvat,
    "Roboflow": roboflow,
    "FiftyOne": fiftyone,
    "annotations.json beside images": beside_images,
    "labelme's COCO": labelme,
    "Label Studio": label_studio,
    "Label Studio, own images": label_studio_own_images,
    "Label Studio, local files": label_studio_local_files,
    "absolute paths of another machine": of_another_machine,
    "back slashes": back_slashes,
    "LVIS": lvis,
    "Objects365": objects365,
}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_holds_the_scene(name: str, scene: Any, tmp_path: Path) -> None:
    path, findings = EXPORTS[name](scene, tmp_path / "export")
    assert isinstance(format_of(path), CocoFormat)
    a = read(path)
    scene.check(a, findings)
    assert all(f.note or "no area" in f.name for f in a.findings), "nothing is wrong with these"
    scene.check_round_trips(a, tmp_path, findings if name == "LVIS" else None)


def test_parts(scene: Any, tmp_path: Path) -> None:
    path, _ = roboflow(scene, tmp_path)
    assert splits(path) == ["train", "valid"]
    assert [len(read(path, split=name)) for name in splits(path)] == [2, 1]
    assert read(path).classes == scene.classes, "the root of the same name is gone"


@pytest.mark.parametrize("name", ["CVAT COCO 1.0", "FiftyOne", "Label Studio", "labelme's COCO"])
def test_one_json_is_one_piece(name: str, scene: Any, tmp_path: Path) -> None:
    assert splits(EXPORTS[name](scene, tmp_path)[0]) == []


def test_categories_with_boxes_are_no_root(scene: Any, tmp_path: Path) -> None:
    value = coco(scene)
    value["categories"][0]["supercategory"] = "none"
    value["categories"][1]["supercategory"] = "cat"
    scene.draw(tmp_path)
    scene.check(read(write(tmp_path / "a.json", value)))


def test_detections_beside_a_data_set_are_no_part(scene: Any, tmp_path: Path) -> None:
    path, findings = beside_images(scene, tmp_path)
    write(path / "detections.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
    write(path / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {"contributor": "Label Studio"}})
    scene.check(read(path), findings)
