"""Which classes a source knows, and how much an object counts: from the file to what a head is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.config.datasets import build_dataset
from detkit.data.annotations import concat_annotations
from detkit.data.augment import joined
from detkit.data.dataset import Dataset, read
from detkit.structures import Target


def coco(file: Path, *names: str, **annotation: Any) -> str:
    """One image with an object of the first class; the image need not be there."""
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], **annotation}
    value = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": [one],
    }
    file.write_text(json.dumps(value))
    return str(file)


def known(dataset: Dataset) -> list[list[str] | None]:
    """Names, image by image; None: all."""
    found = [dataset.target(i).known for i in range(len(dataset))]
    return [None if labels is None else [dataset.classes[k] for k in labels] for labels in found]


def test_joined_sources_know_what_they_list(tmp_path: Path) -> None:
    one, two = coco(tmp_path / "one.json", "cat", "dog"), coco(tmp_path / "two.json", "cow", "dog")
    both = [{"path": one}, {"path": two}]
    assert known(build_dataset(both, split="train")) == [["cat", "dog"], ["dog", "cow"]]
    assert known(build_dataset([one, one], split="train")) == [None, None]
    assert known(build_dataset([{"path": one, "known": "all"}, two], split="train")) == [None, ["dog", "cow"]]
    assert known(build_dataset([{"path": one, "known": ["cow"]}, two], split="train")) == [["cow"], ["dog", "cow"]]
    chosen = {"path": one, "classes": ["kitten"], "rename": {"cat": "kitten"}}
    assert known(build_dataset([chosen, two], split="train")) == [["kitten"], ["cow", "dog"]]


def test_another_list_of_classes_is_known_in_part(tmp_path: Path) -> None:
    file = coco(tmp_path / "one.json", "aeroplane", "dog")
    wanted = ("person", "airplane", "dog")
    dataset = build_dataset(file, split="val", classes=wanted)
    assert dataset.classes == wanted
    assert dataset.class_ids == ("person", 1, 2)
    assert dataset.annotations.labels.tolist() == [1]
    assert known(dataset) == [["airplane", "dog"]]
    assert known(build_dataset(file, split="val", classes=("dog",))) == [None]
    named = build_dataset({"path": file, "known": ["aeroplane"]}, split="val", classes=wanted)
    assert known(named) == [["airplane"]]
    assert known(build_dataset({"path": file, "known": "all"}, split="val", classes=wanted)) == [None]


def test_it_follows_images_and_renamed_classes(tmp_path: Path) -> None:
    a = read(coco(tmp_path / "one.json", "cat", "dog"))
    both = concat_annotations([replace(a, known=[frozenset({"dog"})]), a])
    assert both.known == [{"dog"}, {"cat", "dog"}]
    assert both.subset([1, 0]).known == [{"cat", "dog"}, {"dog"}]
    assert both.select_classes(rename={"dog": "puppy"}).known == [{"puppy"}, {"cat", "puppy"}]


def test_images_made_of_several_know_what_all_of_them_know() -> None:
    one, two, every = (replace(Target.empty(), known=labels) for labels in ((0, 1, 4), (1, 4, 5), None))
    assert joined([one, two, every]).known == (1, 4)
    assert joined([every, every]).known is None
    assert one[[]].to("cpu").numpy().known == (0, 1, 4)


def test_weights_of_objects(tmp_path: Path) -> None:
    plain, half = coco(tmp_path / "one.json", "cat"), coco(tmp_path / "two.json", "cat", weight=0.5)
    assert read(plain).weight is None
    dataset = build_dataset([plain, half], split="train")
    assert [dataset.target(i).weight.tolist() for i in (0, 1)] == [[1.0], [0.5]]
    assert dataset.subset([1]).annotations.weight.tolist() == [0.5]  # type: ignore[union-attr]


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_that_are_none_are_counted(tmp_path: Path, weight: float) -> None:
    a = read(coco(tmp_path / "one.json", "cat", weight=weight))
    assert np.array_equal(a.weight, [1.0])  # type: ignore[arg-type]
    assert [(f.name, f.count) for f in a.findings] == [("weight that is no number of 0 or more (taken as 1)", 1)]
