"""What is wrong in an export ends in three lines for a person, or is counted; never in a traceback or in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.data.convert import convert_annotations
from detkit.data.cvat import CvatFormat
from detkit.data.dataset import format_of, read, splits
from detkit.data.labelme import LabelmeFormat
from detkit.errors import DetkitError

SHAPE = {"label": "cat", "points": [[1, 2], [11, 12]], "shape_type": "rectangle"}
REGION = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}, "region_attributes": {}}
FIGURE = {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [3, 4]]}}


def labelme(root: Path, text: str) -> Path:
    (root / "alpha.json").write_text(text)
    return root


def via(root: Path, text: str) -> Path:
    (root / "via.json").write_text(text)
    return root / "via.json"


def supervisely(root: Path, text: str) -> Path:
    (root / "ds" / "ann").mkdir(parents=True)
    (root / "ds" / "ann" / "alpha.jpg.json").write_text(text)
    return root


def fiftyone(root: Path, text: str) -> Path:
    (root / "labels.json").write_text(text)
    return root / "labels.json"


def csv(root: Path, text: str) -> Path:
    (root / "boxes.csv").write_text(text)
    return root / "boxes.csv"


def label_studio(root: Path, text: str) -> Path:
    (root / "project.json").write_text(text)
    return root / "project.json"


def createml(root: Path, text: str) -> Path:
    (root / "_annotations.createml.json").write_text(text)
    return root / "_annotations.createml.json"


def coco(root: Path, text: str) -> Path:
    (root / "coco.json").write_text(text)
    return root / "coco.json"


def j(value: object) -> str:
    return json.dumps(value)


NAMES = {
    "labelme": labelme,
    "via": via,
    "supervisely": supervisely,
    "fiftyone": fiftyone,
    "label_studio": label_studio,
    "createml": createml,
    "csv": csv,
    "coco": coco,
}
LISTS = ("label_studio", "createml")
TASK = {"data": {"image": "alpha.jpg"}, "annotations": [{"result": []}]}
OBJECT = {"label": "cat", "coordinates": {"x": 6, "y": 7, "width": 10, "height": 4}}

# format, what the file holds, what the error says
ERRORS: list[tuple[str, str, str]] = [
    *((name, text, message) for name in NAMES if name != "csv" for text, message in (
        ("", "empty|not JSON"), ("[" if name in LISTS else "{", "not JSON"),
        ("[]", "a list|not a|names no"), ("null", "not a"), ('"x"', "not a"),
        ("{}", "not a|names no"), ('{"a": NaN}', "not"),
    )),
    ("labelme", j({"shapes": 5}), "not a file of labelme"),
    ("labelme", j({"shapes": [{"label": "a", "points": [[1]]}]}), "not a file of labelme"),
    ("labelme", j({"shapes": [SHAPE]})[:-9], "not JSON"),
    ("via", j({"_via_img_metadata": 5}), "not a json of VIA's"),
    ("via", j({"a.jpg1": {"filename": "a.jpg", "regions": 3}}), "not a json of VIA's"),
    ("via", j({"a.jpg1": {"filename": 5, "regions": []}}), "not a json of VIA's"),
    ("via", j({"_via_img_metadata": {}}), "names no image"),
    ("via", j({"a.jpg1": {"filename": "a.jpg", "regions": [{**REGION, "region_attributes": {"x": "1", "z": "2"}}]}}),
     "which attribute"),
    ("supervisely", j({"objects": 5}), "not a Supervisely annotation"),
    ("supervisely", j({"objects": [{**FIGURE, "points": 3}]}), "not a Supervisely annotation"),
    ("supervisely", j({"objects": [FIGURE], "size": 3}), "not a Supervisely annotation"),
    ("label_studio", j([5]), "not a json of Label Studio's"),
    ("label_studio", j([{"data": {}, "annotations": []}]), "names no image\\n.*\\ntask without an image"),
    ("label_studio", j([{**TASK, "annotations": 3}]), "names no image\\n.*\\ntask that cannot be read"),
    ("createml", j([{"image": "alpha.jpg", "annotations": [{"label": "cat"}]}]), "not a json of Create ML's"),
    ("createml", j([{"annotations": [OBJECT]}]), "names no image\\n.*\\nrecord without an image"),
    ("fiftyone", j({"classes": ["a"], "labels": []}), "not a FiftyOne"),
    ("fiftyone", j({"classes": ["a"], "labels": {}}), "names no image"),
    ("fiftyone", j({"labels": {"a": [{"label": "cat"}]}}), "not a FiftyOne"),
    ("fiftyone", j({"labels": {"a": [{"label": "cat", "bounding_box": [0, 0, 1]}]}}), "not a FiftyOne"),
    *(("csv", text, "no columns") for text in (
        "", "\n\n", "a,b\n1,2\n", "image,label\na.jpg,cat\n", "x1,y1,x2,y2,label\n1,2,3,4,cat\n",
        "image,x1,y1,x2,label\na.jpg,1,2,3,cat\n", "a.jpg,1,2,3,4\n", "a.jpg,one,2,3,4,cat\n", "\0\0\0", "{}",
    )),
    ("csv", "image,x1,y1,x2,y2,label\n", "names no image"),
    ("csv", "image,x1,y1,x2,y2,label\na.jpg,1,2,3,4,\"" + "x" * 200_000, "not csv"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), ERRORS)
def test_errors(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = NAMES[name](tmp_path, text)
    # Of formats with a file for each image, what is wrong with the first is what to do.
    if name in ("labelme", "supervisely"):
        message = f"nothing of the format|names no image\\n.*\\n.*({message})"
    with pytest.raises(DetkitError, match=message) as error:
        read(path, format=name)
    assert str(tmp_path) in error.value.where
    assert error.value.do


# format, what the file holds, the finding that names it, and how many boxes are left
FINDINGS: list[tuple[str, str, str, int]] = [
    ("labelme", j({"shapes": [SHAPE, {**SHAPE, "points": []}]}), "rectangle has no area (dropped)", 1),
    ("labelme", j({"shapes": [SHAPE, {**SHAPE, "points": [[1, 1]]}]}), "box of zero size (dropped)", 1),
    ("labelme", j({"shapes": [{**SHAPE, "label": None}]}), "box without a class (called object)", 1),
    ("labelme", j({"shapes": [{**SHAPE, "points": [[1, 1], [900, 9]]}]}),
     "box sticks out of the image (clipped for training)", 1),
    ("via", j({"a": {"filename": "alpha.jpg", "regions": [REGION]}}), "box without a class (called object)", 1),
    ("via", j({"a": {"filename": "alpha.jpg", "regions": [REGION, {"shape_attributes": {"name": "rect", "x": None}}]}}),
     "region without its numbers (dropped)", 1),
    ("via", j({"a": {"filename": "alpha.jpg", "regions": [{"shape_attributes": {"name": "polygon", "all_points_x": [],
     "all_points_y": []}}]}}), "region without its numbers (dropped)", 0),
    ("supervisely", j({"objects": [FIGURE, {**FIGURE, "geometryType": "point"}]}), "point has no area (dropped)", 1),
    ("supervisely", j({"objects": [{"geometryType": "bitmap", "bitmap": {"data": "AAAA", "origin": [0, 0]}}]}),
     "bitmap has no area (dropped)", 0),
    ("fiftyone", j({"labels": {"alpha": [{"bounding_box": [0, 0, 1, 0.5], "confidence": 0.5, "label": "cat"}]}}),
     "score of a box (left out)", 1),
    ("fiftyone", j({"labels": {"gone": [{"bounding_box": [0, 0, 1, 0.5], "label": "cat"}]}}),
     "image's size is unknown (its boxes dropped)", 0),
    *(("label_studio", j([{**TASK, "annotations": [{"result": [{"value": value}]}]}]),
       "region without its numbers (dropped)", 0)
      for value in ({"points": []}, {"points": [[1, None]]}, {"x": 1, "y": "a", "width": 3, "height": 4},
                    {"height": 3}, {"x": 1, "y": 1, "width": 3, "height": 4, "original_width": 0})),
    ("label_studio", j([{**TASK, "annotations": [{"result": [{"value": {"x": 1, "y": 1, "width": 3, "height": 4}}]}]}]),
     "box without a class (called object)", 1),
    ("createml", j([{"image": "alpha.jpg", "annotations": [OBJECT, {**OBJECT, "label": ""}]}]),
     "box without a class (called object)", 2),
    ("csv", "image,x1,y1,x2,y2,label\nalpha.jpg,1,2,3,4,cat\nalpha.jpg,1,x,3,4,cat\n",
     "line whose box is not four numbers (dropped)", 1),
    ("csv", "image,x1,y1,x2,y2,label\nalpha.jpg,1,2,3,4,cat\n,1,2,3,4,cat\n", "line without an image (dropped)", 1),
    ("csv", "image,x1,y1,x2,y2,label\nalpha.jpg,1,2,3,4,cat\nalpha.jpg,9,2,3,4,cat\n",
     "box of negative size (dropped)", 1),
    ("csv", "image,x1,y1,x2,y2,label\nalpha.jpg,1,2,3,4,cat\nalpha.jpg,nan,2,3,4,cat\n",
     "box is not finite (dropped)", 1),
    ("csv", "image,x1,y1,x2,y2,label\nalpha.jpg,0.5,0.5,1.0,1.0,cat\n",
     "coordinates are fractions of the image (made pixels)", 1),
    ("csv", "image,x,y,w,h\nalpha.jpg,1,2,3,4\n", "box without a class (called object)", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "finding", "boxes"), FINDINGS)
def test_findings(name: str, text: str, finding: str, boxes: int, scene: Any, tmp_path: Path) -> None:
    make: Callable[[Path, str], Path] = NAMES[name]
    path = make(tmp_path, text)
    scene.draw(tmp_path / "ds" / "img" if name == "supervisely" else tmp_path)
    a = read(path, format=name)
    found = {f.name: f for f in a.findings}
    assert found[finding].count == 1
    assert str(tmp_path) in found[finding].examples[0]
    assert len(a.labels) == boxes


def test_bad_files_among_good_ones_are_counted(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path)
    for stem, text in {"alpha": j({"shapes": [SHAPE]}), "beta": "{", "gamma": j({"other": []})}.items():
        (tmp_path / f"{stem}.json").write_text(text)
    a = read(tmp_path)
    assert {f.name: f.count for f in a.findings} == {
        "label file cannot be read (image dropped)": 2,
        "image that no label names (left out)": 2,
    }
    assert (len(a), len(a.labels)) == (1, 1)


def test_crowds_of_open_images(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path)
    text = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\nalpha,/m/1,0,0.5,0,0.5,1\nalpha,/m/1,0.5,1,0.5,1,0\n"
    (tmp_path / "boxes.csv").write_text(text)
    a = read(tmp_path)
    assert a.crowd.tolist() == [True, False]
    assert a.xywh.tolist() == [[0, 0, 32, 24], [32, 24, 32, 24]]


def test_parts_share_their_classes(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path / "images")
    for part, row in {"train": "alpha.jpg,1,2,3,4,zebra", "val": "beta.jpg,1,2,3,4,cat"}.items():
        (tmp_path / f"{part}.csv").write_text(f"image,x1,y1,x2,y2,label\n{row}\n")
    assert read(tmp_path, split="val").classes == ("cat", "zebra")
    with pytest.raises(DetkitError, match="no part 'test'"):
        read(tmp_path, split="test")


def test_no_label_file_of_a_folder_is_left_out(scene: Any, tmp_path: Path) -> None:
    """Kaggle has train.csv and train_labels.csv; a part's folder may hold several."""
    for part in ("train", "val"):
        scene.draw(tmp_path / "parts" / part)
    for name in ("train.csv", "train_labels.csv", "parts/train/a.csv", "parts/train/b.csv", "parts/val/a.csv"):
        (tmp_path / name).write_text("image,x1,y1,x2,y2,label\nalpha.jpg,1,2,3,4,cat\n")
    assert splits(tmp_path) == ["train", "train_labels"]
    assert splits(tmp_path / "parts") == ["train/a", "train/b", "val"]
    assert len(read(tmp_path / "parts").labels) == 3


def test_a_file_for_each_image_is_not_read_as_coco(scene: Any, tmp_path: Path) -> None:
    for k in range(60):
        (tmp_path / f"{k:03}.json").write_text(j({"version": "5", "shapes": [SHAPE], "imagePath": f"{k:03}.jpg"}))
    assert isinstance(format_of(tmp_path), LabelmeFormat)
    assert len(read(tmp_path)) == 60


def test_odd_names_survive_csv_and_labelme(scene: Any, tmp_path: Path) -> None:
    names = ['a, "b"; c.jpg', "ü  x.jpg", "#1.jpg"]
    scene.draw(tmp_path / "in", *names)
    labels = ['cat, "big"', "no", "007"]
    for k, (name, label) in enumerate(zip(names, labels, strict=True)):
        value = {"shapes": [{**SHAPE, "label": label}], "imagePath": name}
        (tmp_path / "in" / f"{k}.json").write_text(j(value))
    for to in ("csv", "labelme", "coco", "yolo", "voc"):
        convert_annotations({"train": read(tmp_path / "in")}, to, tmp_path / to)
        a = read(tmp_path / to)
        found = {Path(file).name: a.classes[label] for file, label in zip(a.files, a.labels, strict=True)}
        assert found == dict(zip(names, labels, strict=True)), to


def test_a_label_file_brings_no_foreign_image_into_a_copy(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path / "secret")
    for name in ("../../secret/alpha.jpg", str(tmp_path / "secret" / "alpha.jpg")):
        (tmp_path / "a" / "labels").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "labels" / "x.json").write_text(j({"shapes": [SHAPE], "imagePath": name}))
        with pytest.raises(DetkitError, match="outside the image folder"):
            convert_annotations({"train": read(tmp_path / "a" / "labels")}, "csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "found", "do"),
    [
        (
            {"label_2/alpha.txt": "car 0.0 0 -1 4 6 24 18 -1 -1 -1 -1 -1 -1 -1"},
            "3 .jpg, 1 .txt",
            "begins with 'car 0.0",
        ),
        ({"data.json": '{"dm_format_version": "1.0", "items": []}'}, "3 .jpg, 1 .json", "Datumaro's own json"),
        (
            {"a.csv": 'id,image,label\n1,a.jpg,"[{""rotation"": 0, ""original_width"": 9}]"'},
            "3 .jpg, 1 .csv",
            "Label Studio's own csv",
        ),
        ({"a.tfrecord": ""}, "3 .jpg, 1 .tfrecord", "records in binary files are not read"),
        ({}, "3 .jpg", "images without labels"),
    ],
)
def test_a_folder_that_is_not_known_is_described(
    files: dict[str, str], found: str, do: str, scene: Any, tmp_path: Path
) -> None:
    """None of them is class folders either, though image_2 has images."""
    scene.draw(tmp_path / "train" / "image_2")
    for name, text in files.items():
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text(text)
    if not files:
        (tmp_path / "train").rename(tmp_path / "mine")
    with pytest.raises(DetkitError, match="not a data set that detkit knows") as error:
        read(tmp_path)
    assert error.value.where.endswith(found)
    assert do in error.value.do


@pytest.mark.parametrize(
    ("files", "do"), [({"a.zip": ""}, "unpack a.zip"), ({"x/1.txt": "0 .5 .5 .1 .1"}, "without their images")]
)
def test_a_folder_without_images_is_described(files: dict[str, str], do: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DetkitError) as error:
        read(tmp_path)
    assert do in error.value.do


def test_a_flag_in_words_is_what_it_says(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path)
    flags = [{"difficult": "0"}, {"iscrowd": "0"}, {"difficult": "1"}, {"iscrowd": "true"}, {"difficult": "False"}]
    boxes = [{"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], **flag} for k, flag in enumerate(flags)]
    value = {"images": [{"id": 1, "file_name": "alpha.jpg"}], "categories": [{"id": 1, "name": "cat"}]}
    a = read(coco(tmp_path, j({**value, "annotations": boxes})))
    assert a.difficult.tolist() == [False, False, True, False, False]
    assert a.crowd.tolist() == [False, False, False, True, False]


def test_cvats_own_xml_in_a_folder_called_annotations_is_not_vocs(scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    box = '<image name="alpha.jpg"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="8"/></image>'
    (tmp_path / "annotations" / "all.xml").write_text(f"<?xml version='1.0'?>\n<annotations>{box}</annotations>")
    assert isinstance(format_of(tmp_path), CvatFormat)
    assert read(tmp_path).xywh.tolist() == [[1, 2, 8, 6]]


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "names no image"),
        ('<track id="0"/>', "names no image\\n.*\\ntrack of a video"),
        ("<image", "names no image\\n.*\\nannotation file is not XML"),
        ('<image name="alpha.jpg"><box label="cat" xtl="1" ytl="a" xbr="3"/></image>', ""),
    ],
)
def test_a_wrong_xml_of_cvat(inside: str, message: str, scene: Any, tmp_path: Path) -> None:
    scene.draw(tmp_path)
    (tmp_path / "annotations.xml").write_text(f"<annotations>{inside}</annotations>")
    if message:
        with pytest.raises(DetkitError, match=message):
            read(tmp_path)
    else:
        assert "box is not finite (dropped)" in {found.name for found in read(tmp_path).findings}
