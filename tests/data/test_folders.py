"""Class folders: recognised by looking, one label an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset, format_of, read, splits
from detkit.data.folders import FolderFormat
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.io.images import write_image


def fill(folder: Path, count: int = 2, size: tuple[int, int] = (20, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_image(folder / f"{i}.png", np.full((*size, 3), 40 * i, np.uint8))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    fill(tmp_path / "cat", 3)
    fill(tmp_path / "a dog", 2, (40, 10))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_each_image_is_one_object_that_fills_it(pets: Path) -> None:
    found = read(pets)
    assert isinstance(format_of(pets), FolderFormat)
    assert found.classes == ("a dog", "cat")
    assert found.image_ids == ["a dog/0.png", "a dog/1.png", "cat/0.png", "cat/1.png", "cat/2.png"]
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.xywh[0].tolist() == [0, 0, 10, 40]
    assert found.labelled
    sample = Dataset(found).load(4)
    assert sample.target.image_label == 1
    assert sample.target.boxes.tolist() == [[0, 0, 30, 20]]


def test_parts_have_the_classes_of_the_whole(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cat")
    fill(tmp_path / "train" / "dog")
    fill(tmp_path / "val" / "dog")
    assert splits(tmp_path) == ["train", "val"]
    val = read(tmp_path, split="val")
    assert val.classes == ("cat", "dog")
    assert val.labels.tolist() == [1, 1]
    assert val.image_ids == ["dog/0.png", "dog/1.png"]
    assert len(read(tmp_path)) == 6
    with pytest.raises(DetkitError, match="no part 'test'"):
        read(tmp_path, split="test")


def test_a_class_of_a_part_may_be_called_train(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / part / "train")
        fill(tmp_path / part / "bus", 1)
    assert splits(tmp_path) == ["train", "val"]
    assert read(tmp_path, split="train").class_counts().tolist() == [1, 2]
    assert read(tmp_path).classes == ("bus", "train")


def test_a_class_may_be_called_train_where_there_are_no_parts(pets: Path) -> None:
    fill(pets / "train", 4)
    fill(pets / "test")
    assert splits(pets) == []
    assert read(pets).classes == ("a dog", "cat", "train")
    assert len(read(pets)) == 9


def test_folders_of_detection_sets_are_no_classes(tmp_path: Path) -> None:
    for name in ("train", "val", "images", "masks"):
        fill(tmp_path / name)
    with pytest.raises(DetkitError, match="not a data set") as error:
        read(tmp_path)
    assert "class folders" in error.value.do
    fill(tmp_path / "cat")
    with pytest.raises(DetkitError, match="not a data set"):
        read(tmp_path)  # one class alone is nothing to tell apart


def test_images_that_cannot_be_read_are_counted(pets: Path) -> None:
    (pets / "cat" / "9.png").write_bytes(b"no image")
    found = read(pets)
    assert len(found) == 5
    assert [(f.name, f.count) for f in found.findings] == [("image that cannot be read (left out)", 1)]
    with pytest.raises(DetkitError, match="hold their images themselves"):
        read(pets, images=pets)


def test_the_label_survives_every_change_of_the_image(pets: Path) -> None:
    sample = Dataset(read(pets)).load(0)
    augment = Augment(mosaic=0, crop=1.0, crop_area=(0.05, 0.1), rotate=30, shear=10, warp=0.2, scale=(0.5, 3.0))
    for seed in range(20):
        changed = augment(sample, np.random.default_rng(seed), Resize(32))
        assert changed.target.image_label == 0


def test_an_object_that_does_not_fill_its_image_is_no_label(pets: Path) -> None:
    found = read(pets)
    found.xywh[0] = [1, 0, 9, 40]
    assert not found.labelled
    assert not found.subset([]).labelled
    assert Dataset(found).load(0).target.image_label is None
    assert Dataset(found).load(1).target.image_label == 0
    assert Dataset(found).target(1).image_label is None  # of unknown size


def test_sub_folders_are_followed_and_the_rest_is_told(pets: Path) -> None:
    fill(pets / "cat" / "day 2", 2)
    fill(pets, 1)
    (pets / "a dog" / "trip.mov").write_bytes(b"x")
    (pets / "cat" / "._0.png").write_bytes(b"x")
    found = read(pets)
    assert found.image_ids[-2:] == ["cat/day 2/0.png", "cat/day 2/1.png"]
    assert {f.name: f.count for f in found.findings} == {
        "file that is not read as an image: .mov (skipped)": 1,
        "image outside of every class folder (left out)": 1,
    }
