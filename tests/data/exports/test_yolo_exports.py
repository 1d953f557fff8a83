"""YOLO's text files as the tools write them: each export holds the scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.dataset import read, splits
from detkit.errors import DetkitError

# Makes the export in a folder; returns what a person would name, and the findings that the reader must have.
Export = Callable[[Any, Path], tuple[Path, dict[str, int]]]


def box(photo: Any, b: Any) -> list[float]:
    """Centre and size as fractions."""
    return [(b.x + b.w / 2) / photo.width, (b.y + b.h / 2) / photo.height, b.w / photo.width, b.h / photo.height]


def polygon(photo: Any, b: Any) -> list[float]:
    return [v for x, y in b.polygon for v in (x / photo.width, y / photo.height)]


def pose(photo: Any, b: Any) -> list[float]:
    """The box and three points within it, the last of them not visible."""
    x, y, w, h = box(photo, b)
    return [x, y, w, h, x, y, 2, x + w / 4, y + h / 4, 1, 0, 0, 0]


def label(scene: Any, folder: Path, row: Callable[[Any, Any], list[float]] = box, name: str = "{}") -> None:
    """Writes a text file per image into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in scene:
        lines = [f"{scene.classes.index(b.name)} {' '.join(f'{v:.6f}' for v in row(photo, b))}\n" for b in photo.boxes]
        (folder / f"{name.format(photo.stem)}.txt").write_text("".join(lines))


def text(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def roboflow(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    name = "{}_jpg.rf.0a1b2c"
    scene.draw(root / "train" / "images", *(f"{name.format(p.stem)}.jpg" for p in scene))
    label(scene, root / "train" / "labels", name=name)
    scene.draw(root.parent / "train" / "images")  # another data set, which the yaml does not mean
    text(root / "README.roboflow.txt", "exported via roboflow.com")
    places = [f"{key}: ../{folder}/images" for key, folder in (("train", "train"), ("val", "valid"), ("test", "test"))]
    text(root / "data.yaml", *places, "", "nc: 2", "names: ['cat', 'dog']", "", "roboflow:", "  license: MIT")
    return root, {"part that is not there (left out)": 2}


def roboflow_darknet(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "train")
    label(scene, root / "train")
    text(root / "train" / "_darknet.labels", "cat", "dog")
    return root, {}


def cvat_yolo(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "obj_train_data")
    label(scene, root / "obj_train_data")
    text(root / "obj.names", "cat", "dog")
    text(root / "train.txt", *(f"data/obj_train_data/{p.file}" for p in scene))
    lines = "train = data/train.txt", "names = data/obj.names", "backup = backup/"
    text(root / "obj.data", "classes = 2", *lines)
    return root, {"path from elsewhere (found by its last parts)": 1}


def cvat_ultralytics(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images" / "train")
    label(scene, root / "labels" / "train")
    text(root / "train.txt", *(f"data/images/train/{p.file}" for p in scene))
    text(root / "data.yaml", "names:", "  0: cat", "  1: dog", "path: .", "train: train.txt")
    return root, {}


def label_studio(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images", *(f"1a2b3c4d-{p.file}" for p in scene))
    label(scene, root / "labels", name="1a2b3c4d-{}")
    text(root / "classes.txt", "cat", "dog")
    text(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {}}')
    return root, {}


def fiftyone_5(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images" / "val")
    label(scene, root / "labels" / "val")
    text(root / "dataset.yaml", "path: /home/me/export", "val: ./images/val/", "names:", "  0: cat", "  1: dog")
    return root, {"path of the data.yaml is not here (its own folder taken)": 1}


def fiftyone_4(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "data")
    label(scene, root / "data")
    text(root / "obj.names", "cat", "dog")
    text(root / "images.txt", *(f"data/{p.file}" for p in scene))
    return root, {}


def labelimg(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "day 1")
    label(scene, root / "day 1")
    text(root / "day 1" / "classes.txt", "cat", "dog", "")
    return root, {}


def without_yaml(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "photos")
    label(scene, root / "annotations" / "yolo")
    text(root / "classes.txt", "cat", "dog")
    return root, {}


def drawn(row: Callable[[Any, Any], list[float]], findings: dict[str, int], *lines: str) -> Export:
    def export(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
        scene.draw(root / "images")
        label(scene, root / "labels", row)
        text(root / "custom.yaml", "train: images", "names: [cat, dog]", *lines)
        return root, findings

    return export


def hexagon(photo: Any, b: Any) -> list[float]:
    return polygon(photo, b) + polygon(photo, b)[:4]


def far_pose(photo: Any, b: Any) -> list[float]:
    return [*box(photo, b), 0.01, 0.99, 0.99, 0.01]


EXPORTS: dict[str, Export] = {
    "Roboflow": roboflow,
    "Roboflow, Darknet": roboflow_darknet,
    "CVAT YOLO 1.1": cvat_yolo,
    "CVAT Ultralytics YOLO": cvat_ultralytics,
    "Label Studio": label_studio,
    "FiftyOne YOLOv5": fiftyone_5,
    "FiftyOne YOLOv4": fiftyone_4,
    "labelImg": labelimg,
    "images and labels in folders of other names": without_yaml,
    "oriented boxes": drawn(polygon, {"oriented box made into an upright one": 5}),
    "polygons": drawn(hexagon, {"polygon made into a box": 5}),
    "pose": drawn(pose, {}, "kpt_shape: [3, 3]"),
    "pose without kpt_shape": drawn(
        pose, {"key points told by the numbers themselves, as the yaml has no kpt_shape": 1}
    ),
    "pose, points outside the box": drawn(far_pose, {}, "kpt_shape: [2, 2]"),
    "scores": drawn(lambda p, b: [*box(p, b), 0.5], {"last column taken as a score (left out)": 5}),
    "polygons with scores": drawn(
        lambda p, b: [*hexagon(p, b), 1], {"last column taken as a score (left out)": 5, "polygon made into a box": 5}
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_holds_the_scene(name: str, scene: Any, tmp_path: Path) -> None:
    path, findings = EXPORTS[name](scene, tmp_path / "export")
    (path / "._data.yaml").write_bytes(b"\0")
    for folder in [path, *(p for p in path.rglob("*") if p.is_dir())]:  # what macOS leaves
        (folder / "._alpha.jpg").write_bytes(b"\0")
        (folder / ".DS_Store").write_bytes(b"\0")
    label(scene, path / "__MACOSX")
    a = read(path)
    scene.check(a, findings)
    scene.check_round_trips(a, tmp_path)
    assert a.source is not None
    assert a.source.format == "yolo"
    for part in splits(path):
        assert len(read(path, split=part)) == 3


def test_the_points_of_a_pose_are_kept(scene: Any, tmp_path: Path) -> None:
    path, _ = EXPORTS["pose"](scene, tmp_path)
    points = read(path).points
    assert points is not None
    np.testing.assert_allclose(points[0], [[14, 12, 2], [19, 15, 1], [0, 0, 0]], atol=1e-3)


def test_a_box_and_points_that_are_read_as_a_polygon_elsewhere(scene: Any, tmp_path: Path) -> None:
    """[0, 2, 4, 2] of 15 x 10 pixels, with three points of two numbers."""
    from detkit.io.images import write_image

    write_image(tmp_path / "a.png", np.zeros((10, 15, 3), np.uint8))
    text(tmp_path / "a.txt", "0 0.133333 0.3 0.266667 0.2 0.1 0.2 0.3 0.4 0.5 0.6")
    text(tmp_path / "data.yaml", "train: .", "names: [cat]", "kpt_shape: [3, 2]")
    np.testing.assert_allclose(read(tmp_path).xywh, [[0, 2, 4, 2]], atol=1e-4)


def test_classes_without_names_are_numbers(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path / "images")
    label(scene, tmp_path / "labels")
    a = read(tmp_path)
    assert a.classes == ("0", "1")
    assert [f.name for f in a.findings] == ["no list of class names, a classes.txt (classes are numbers)"]
    np.testing.assert_allclose(a.xywh[0], [4, 6, 20, 12], atol=1e-3)


def test_parts_are_folders_or_lists(scene: Any, tmp_path: Path) -> None:
    for part in ("train", "valid"):
        scene.draw(tmp_path / part / "images" / "s1")
        label(scene, tmp_path / part / "labels" / "s1")
    text(tmp_path / "classes.txt", "cat", "dog")
    assert splits(tmp_path) == ["train", "valid"]
    scene.check(read(tmp_path, split="valid"))
    assert len(read(tmp_path)) == 6
    (tmp_path / "train" / "images" / "s1" / "alpha.jpg").unlink()
    (tmp_path / "valid" / "labels" / "s1" / "beta.txt").unlink()
    (tmp_path / "valid" / "images" / "trip.mp4").write_bytes(b"\0")
    assert {f.name: f.count for f in read(tmp_path).findings} == {
        "file that is not read as an image: .mp4 (skipped)": 1,
        "label file without an image (left out)": 1,
        "image without a label file (taken as without objects)": 1,
    }
    text(tmp_path / "val.txt", "valid/images/s1/alpha.jpg")
    assert splits(tmp_path) == ["val"]
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["names: [cat, dog]", "nc: 3", "train: images"], "nc is 3, but names has 2 classes"),
        (["names: cat", "train: images"], "class names cannot be read"),
        (["names: [cat, [dog]]", "train: images"], "class names cannot be read"),
        (["names: {a: cat}", "train: images"], "class names cannot be read"),
        (["names: [cat]", "train: {a: b}"], "train of this data.yaml cannot be read"),
        (["names: [cat]", "train: images", "kpt_shape: 17"], "kpt_shape of this data.yaml cannot be read"),
        (["names: [cat]", "train: nowhere", "val: no"], "train of this data.yaml is not there"),
        (["names: [cat]", "train: labels"], "this data set has no images"),
        (["just: [words"], "not YAML"),
    ],
)
def test_ten_wrong_yamls(scene: Any, tmp_path: Path, lines: list[str], message: str) -> None:
    scene.draw(tmp_path / "images")
    label(scene, tmp_path / "labels")
    text(tmp_path / "data.yaml", *lines)
    with pytest.raises(DetkitError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("lines", [["nc: 2"], ["train: null", "val: ''"]])
def test_a_yaml_that_names_no_part(scene: Any, tmp_path: Path, lines: list[str]) -> None:
    """As supervision writes it: the folders say what the parts are."""
    scene.draw(tmp_path / "train" / "images")
    label(scene, tmp_path / "train" / "labels")
    text(tmp_path / "data.yaml", "names: [cat, dog]", *lines)
    assert splits(tmp_path) == ["train"]
    scene.check(read(tmp_path))


def test_names_are_words_and_train_may_list_images(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path / "images" / "train")
    label(scene, tmp_path / "labels" / "train")
    names = "names: [no, 007, 1e3, ~, 2024-01-01]"
    text(tmp_path / "data.yaml", "train: [images/train/alpha.jpg, images/train/gamma.jpg]", names)
    a = read(tmp_path)
    assert a.classes == ("no", "007", "1e3", "~", "2024-01-01")
    assert [Path(file).name for file in a.files] == ["alpha.jpg", "gamma.jpg"]


def test_pixels_are_no_fractions(scene: Any, tmp_path: Path) -> None:
    path, _ = drawn(lambda p, b: [80, 60, 40, 30], {})(scene, tmp_path)
    assert [(f.name, f.count) for f in read(path).findings] == [
        ("numbers are not fractions of the image (line dropped)", 5)
    ]


def test_several_data_sets_in_a_folder_are_asked_about(scene: Any, tmp_path: Path) -> None:
    labelimg(scene, tmp_path / "one")
    cvat_ultralytics(scene, tmp_path / "two")
    scene.check(read(tmp_path))  # only one of them has a yaml
    cvat_ultralytics(scene, tmp_path / "three")
    with pytest.raises(DetkitError, match=r"2 YOLO data sets\n.*\ngive one of them as DATA: .*three/data.yaml"):
        read(tmp_path)


def test_odd_things_among_the_files(scene: Any, tmp_path: Path) -> None:
    path, _ = EXPORTS["pose"](scene, tmp_path)
    for file in (path / "labels").glob("*.txt"):
        file.write_text("")
    a = read(path)
    assert a.points is not None
    assert a.points.shape == (0, 3, 3)
    (path / "labels" / "a folder.txt").mkdir()
    text(path / "custom.yaml", "train: list.txt", "names: [cat]")
    text(path / "list.txt", "images/alpha.jpg", "images/be\0ta.jpg", "notes.pdf")
    assert {f.name: f.count for f in read(path).findings} == {"listed file is not an image (dropped)": 2}
    (path / "list.txt").write_bytes(b"images/\xff.jpg")
    with pytest.raises(DetkitError, match="cannot read this file"):
        read(path)
