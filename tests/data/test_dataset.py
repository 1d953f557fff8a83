"""Recognising a data set, and handing out its samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.config.datasets import build_dataset
from detkit.data.anchors import object_sizes
from detkit.data.annotations import concat_annotations
from detkit.data.dataset import Dataset, read, splits
from detkit.errors import DetkitError
from detkit.io.images import write_image

FORMATS = ("coco_file", "voc_folder", "yolo_file")


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_every_format_gives_the_same_boxes(path: Path) -> None:
    a = read(path)
    assert [Path(f).stem for f in a.files] == ["a", "b ü", "empty"]
    assert a.sizes.tolist() == [[40, 60], [50, 30], [20, 20]]
    assert a.offsets.tolist() == [0, 2, 3, 3], "an image without objects stays"
    np.testing.assert_allclose(a.xywh, [[5, 6, 20, 10], [30, 10, 30, 30], [0, 0, 30, 50]], atol=1e-9)
    names = [a.classes[label] for label in a.labels]
    assert names == ["red", "blue thing", "red"]
    assert a.findings == []


def test_load(path: Path) -> None:
    data = Dataset(read(path))
    sample = data.load(0)
    assert sample.image.shape == (40, 60, 3)
    np.testing.assert_allclose(sample.target.boxes, [[5, 6, 25, 16], [30, 10, 60, 40]], atol=1e-4)
    assert len(data.load(2).target) == 0
    assert data.labels_of(1).tolist() == [data.classes.index("red")]


def test_boxes_are_clipped_in_targets_only(coco_file: Path) -> None:
    coco_file.write_text(coco_file.read_text().replace("[0, 0, 30, 50]", "[-4, 0, 30, 70]"))
    a = read(coco_file)
    assert a.xywh[2].tolist() == [-4, 0, 30, 70]
    assert Dataset(a).load(1).target.boxes.tolist() == [[0, 0, 26, 50]]
    assert [f.name for f in a.findings] == ["box sticks out of the image (clipped for training)"]


def test_what_is_no_data_set_is_answered_by_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    with pytest.raises(DetkitError, match=r"no such data set\n.*\ndid you mean birds\?"):
        read(tmp_path / "bird")
    with pytest.raises(DetkitError, match="detkit help E030"):
        read(tmp_path / "1" / "2")
    with pytest.raises(DetkitError, match=r"give a COCO .json file.*PASCAL VOC folder.*YOLO data.yaml.*E030"):
        read(tmp_path / "birds")
    (tmp_path / "birds" / "labels.xml").write_text("<odd/>")
    with pytest.raises(DetkitError, match=r"give a PASCAL VOC folder.*; or an xml of CVAT"):
        read(tmp_path / "birds")


def test_missing_image_folder(coco_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="no such image folder"):
        read(coco_file, images=tmp_path / "nowhere")


def test_splits(coco_file: Path, voc_folder: Path, yolo_file: Path) -> None:
    assert splits(coco_file) == []
    assert splits(coco_file.parents[1]) == ["train"]
    assert splits(voc_folder) == ["train"], "lists of one class are no parts"
    assert splits(yolo_file) == ["train"]
    for path in (coco_file.parents[1], voc_folder, yolo_file):
        with pytest.raises(DetkitError, match="no part 'val'"):
            read(path, split="val")


def test_subset_keeps_order_and_objects(coco_file: Path) -> None:
    part = read(coco_file).subset([1, 0])
    assert part.image_ids == [20, 10]
    assert part.ids.tolist() == [102, 100, 101]
    assert part.offsets.tolist() == [0, 1, 3]


def test_select_and_rename_classes(coco_file: Path) -> None:
    a = read(coco_file)
    one = a.select_classes(["blue thing"])
    assert (one.classes, one.class_ids, len(one), one.labels.tolist()) == (("blue thing",), (10,), 3, [0])
    merged = a.select_classes(rename={"blue thing": "red"})
    assert merged.classes == ("red",)
    assert merged.labels.tolist() == [0, 0, 0]
    with pytest.raises(DetkitError, match="did you mean red"):
        a.select_classes(["rad"])


def test_concat_unites_classes_by_name(coco_file: Path, voc_folder: Path) -> None:
    first, second = read(coco_file), read(voc_folder)
    both = Dataset(concat_annotations([first, second]))
    assert len(both) == 6
    assert both.classes == ("red", "blue thing")
    assert second.classes == ("blue thing", "red")
    assert [both.classes[label] for label in both.labels_of(3)] == ["red", "blue thing"]
    assert len(set(concat_annotations([first, first]).image_ids)) == 6


def test_ground_truth_is_exact(coco_file: Path) -> None:
    gt = read(coco_file).ground_truth()
    assert gt.area.tolist() == [100, 450, 750]
    assert gt.crowd.tolist() == [False, True, False]
    assert gt.difficult.tolist() == [False, False, True]
    assert gt.image.tolist() == [0, 0, 1]
    assert object_sizes(read(coco_file)).wh.tolist() == [[20, 10], [30, 50]], "crowds are no objects for anchors"


def test_reduced_images_bring_their_boxes(tmp_path: Path) -> None:
    """Decoded at a quarter: image, boxes and areas agree; what asks for proposals gets the image as it is."""
    write_image(tmp_path / "big.jpg", np.zeros((600, 800, 3), np.uint8))
    table = {
        "images": [{"id": 1, "file_name": "big.jpg", "width": 800, "height": 600}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [400, 300, 100, 60], "area": 6000}],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "big.json").write_text(json.dumps(table))
    dataset = Dataset(read(tmp_path / "big.json"))
    assert dataset.load(0).image.shape == (600, 800, 3)
    sample = dataset.load(0, reduce_to=200)
    assert sample.image.shape == (150, 200, 3)
    assert sample.target.boxes.tolist() == [[100, 75, 125, 90]]
    assert sample.target.area.tolist() == [375]
    whole = Dataset(dataset.annotations, proposals=lambda image, path: np.zeros((1, 4), np.float32))
    assert whole.load(0, reduce_to=200).image.shape == (600, 800, 3)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "split", "images", "boxes"), [("coco", None, 345, 2964), ("bccd", None, 364, 4888),
                                                                ("voc", "val", 600, 1282)])  # fmt: skip
def test_real_data(shared_data: Path, name: str, split: str | None, images: int, boxes: int) -> None:
    a = read(shared_data / name, split=split)
    assert (len(a), len(a.labels), a.findings) == (images, boxes, [])


@pytest.mark.parametrize(
    ("name", "fails"),
    [("coco", ""), ("only_here:Everything", ""), ("voc", "no annotation"),
     ("cocoa", "did you mean coco"), ("no:No", "cannot be")],
)  # fmt: skip
def test_a_format_may_be_named(
    coco_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fails: str
) -> None:
    (tmp_path / "only_here.py").write_text(
        "from detkit.data.coco import CocoFormat\nclass Everything(CocoFormat):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if fails:
        with pytest.raises(DetkitError, match=fails):
            read(coco_file, format=name)
        return
    assert len(read(coco_file, format=name)) == 3
    config = {"path": str(coco_file), "format": name}
    assert len(build_dataset(config, split="train")) == 3
    assert splits(coco_file.parents[1], format=name) == ["train"]
