"""COCO's json: what is dropped is counted, ids of any kind, files that are no data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detkit.data.dataset import read
from detkit.errors import DetkitError


def change(file: Path, **changes: Any) -> None:
    """Changes the first annotation."""
    value = json.loads(file.read_text())
    value["annotations"][0].update(changes)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"image_id": 99}, "unknown image id (annotation dropped)"),
        ({"image_id": "ten"}, "unknown image id (annotation dropped)"),
        ({"image_id": 10.5}, "unknown image id (annotation dropped)"),
        ({"category_id": 1}, "unknown category id (annotation dropped)"),
        ({"bbox": [1, 2, float("nan"), 4]}, "box is not finite (dropped)"),
        ({"bbox": [1, 2, float("inf"), 4]}, "box is not finite (dropped)"),
        ({"bbox": [1, 2, -3, 4]}, "box of negative size (dropped)"),
        ({"bbox": [1, 2, 0, 4]}, "box of zero size (dropped)"),
        ({"bbox": [60, 2, 5, 4]}, "box outside the image (dropped)"),
        ({"bbox": [1, 2, 3]}, "annotation without a box of four numbers (dropped)"),
        ({"bbox": None}, "annotation without a box of four numbers (dropped)"),
        ({"bbox": ["x", 1, 2, 3]}, "box is not finite (dropped)"),
    ],
)
def test_bad_record_is_dropped_and_named(coco_file: Path, changes: dict[str, Any], finding: str) -> None:
    change(coco_file, **changes)
    a = read(coco_file)
    (found,) = a.findings
    assert (found.name, found.count) == (finding, 1)
    assert "annotation 100" in found.examples[0]
    assert str(coco_file) in found.examples[0]
    assert a.ids.tolist() == [101, 102]
    assert len(a) == 3


@pytest.mark.parametrize(
    ("number", "finding"),
    [(5, "category id used twice (later one dropped)"), (None, "category without an id (dropped)")],
)
def test_categories_are_told_apart_by_their_ids(coco_file: Path, number: int | None, finding: str) -> None:
    value = json.loads(coco_file.read_text())
    before = read(coco_file)
    value["categories"].append({"id": number, "name": "another"})
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert (a.classes, a.class_ids) == (before.classes, before.class_ids)
    assert a.labels.tolist() == before.labels.tolist()
    assert [(f.name, f.count) for f in a.findings] == [(finding, 1)]


@pytest.mark.parametrize(("number", "mended"), [(10.0, 0), ("10", 1)])
def test_an_id_is_the_same_as_a_number_or_text(coco_file: Path, number: object, mended: int) -> None:
    change(coco_file, image_id=number)
    a = read(coco_file)
    found = [(f.name, f.count) for f in a.findings]
    assert found == [("image_id is text here and a number there (taken as the same)", 1)][:mended]
    assert a.image_ids == [10, 20, 30]
    assert a.ids.tolist() == [100, 101, 102]


def test_ids_of_floats_and_very_large_ones(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    before = read(coco_file)
    for record in value["images"]:
        record["id"] = float(record["id"])
    for record in value["annotations"]:
        record["category_id"] = float(record["category_id"])
        record["id"] = float(record["id"])
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert (a.image_ids, a.ids.tolist()) == ([10, 20, 30], [100, 101, 102])
    assert a.labels.tolist() == before.labels.tolist()
    for record, key in [(r, "id") for r in value["images"]] + [(r, "image_id") for r in value["annotations"]]:
        record[key] = int(record[key]) + 10**24
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert a.image_ids == [10**24 + 10, 10**24 + 20, 10**24 + 30]
    assert len(a.labels) == 3
    assert a.ground_truth().image.tolist() == before.ground_truth().image.tolist()


def test_ids_may_be_words(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    for record in value["images"]:
        record["id"] = f"i{record['id']}"
    for record in value["annotations"]:
        record.update(image_id=f"i{record['image_id']}", id=f"a{record['id']}", category_id=str(record["category_id"]))
    for record in value["categories"]:
        record["id"] = str(record["id"])
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert a.image_ids == ["i10", "i20", "i30"]
    assert a.class_ids == ("5", "10")
    assert a.ids.tolist() == [1, 2, 3]
    assert a.findings == []


def test_image_id_used_twice(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    value["images"].insert(1, dict(value["images"][0], file_name="other.png"))
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert len(a) == 3
    assert a.image_rows.tolist() == [0, 2, 3]
    assert a.findings[0].name == "image id used twice (later one dropped)"


def test_size_comes_from_the_image(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    del value["images"][0]["width"]
    coco_file.write_text(json.dumps(value))
    a = read(coco_file)
    assert a.sizes[0].tolist() == [40, 60]
    assert a.findings[0].name == "image without width and height (read from the image)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ('{"images": [', "not JSON"),
        ("[]", "a list"),
        ('{"a": 1}', "no images and categories"),
    ],
)
def test_not_a_data_set(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DetkitError, match=message) as error:
        read(file)
    assert str(file) in error.value.where


def test_byte_order_mark(coco_file: Path) -> None:
    coco_file.write_bytes(b"\xef\xbb\xbf" + coco_file.read_bytes())
    assert len(read(coco_file)) == 3


def test_no_cap_on_boxes(coco_file: Path) -> None:
    value = json.loads(coco_file.read_text())
    value["annotations"] = [dict(value["annotations"][0], id=k) for k in range(1, 3001)]
    coco_file.write_text(json.dumps(value))
    assert len(read(coco_file).labels) == 3000


@pytest.mark.parametrize("place", ["beside", "../images", "../train", "--images"])
def test_image_folders(coco_file: Path, tmp_path: Path, place: str) -> None:
    pictures = coco_file.parents[1] / "train"
    folders = {"beside": coco_file.parent, "../images": coco_file.parents[1] / "images", "../train": pictures,
               "--images": tmp_path / "else"}  # fmt: skip
    folder = folders[place]
    if folder != pictures:
        folder.mkdir(exist_ok=True)
        for image in pictures.iterdir():
            image.rename(folder / image.name)
    a = read(coco_file, images=folder if place == "--images" else None)
    assert all(Path(f).is_file() for f in a.files)
