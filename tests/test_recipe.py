"""What the default recipe chooses from the labels, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detkit
from detkit.config.experiment import Config, read_config
from detkit.config.recipe import fitted
from detkit.data.dataset import Annotations, read
from detkit.data.toy import write_toy_data
from detkit.engine.events import Event
from detkit.engine.options import TrainOptions


def labels(folder: Path, images: int, side: float, *classes: str) -> Annotations:
    """Images of 200 x 100 pixels, each with an object of every class that covers ``side``^2 of it."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in range(images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, 1)],
        "annotations": [
            {"id": i * len(classes) + k, "image_id": i, "category_id": k, "bbox": [0, 0, 200 * side, 100 * side]}
            for i in range(images)
            for k in range(1, len(classes) + 1)
        ],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return read(folder / "labels.json")


def recipe(*overrides: str) -> Config:
    return read_config("aligned", overrides, train_schema=TrainOptions)


def of(config: Config, *keys: str) -> list[Any]:
    return [getattr(config.train, key) for key in keys]


def test_a_few_images_of_large_new_things(tmp_path: Path) -> None:
    config, told = fitted(recipe(), labels(tmp_path, 205, 0.2, "RBC", "WBC", "person"))
    # 25 whole steps of 8 a pass, and 14 passes are the first that have 350 of them.
    assert of(config, "batch", "epochs", "validate_every") == [8, 14, 2]
    assert of(config, "lr", "backbone_lr") == [1e-3, 5e-4]
    assert config.augment["mosaic"] == 0
    assert told == [
        "chosen for 205 images, 2 new classes, objects of 20% of the side (median), 350 steps: train.batch=8 "
        "train.epochs=14 train.validate_every=2 augment.mosaic=0.0"
    ]


def test_many_images_of_small_things_that_are_known(tmp_path: Path) -> None:
    config, _ = fitted(recipe(), labels(tmp_path, 1000, 0.1, "Person", "tvmonitor"))
    assert of(config, "batch", "epochs", "validate_every") == [16, 6, 1]  # 62 steps, six times
    assert of(config, "lr", "backbone_lr") == [1e-4, 1e-4]
    assert config.augment["mosaic"] == 0.5


def test_fewer_images_than_a_step_takes(tmp_path: Path) -> None:
    config, _ = fitted(recipe(), labels(tmp_path, 5, 0.5, "screw"))
    assert of(config, "epochs", "validate_every") == [350, 35]


def test_overrides_stay_and_what_depends_on_them_follows(tmp_path: Path) -> None:
    data = labels(tmp_path, 205, 0.2, "person")
    given = recipe("train.epochs=30", "train.batch=16", "augment.mosaic=0.25", "train.lr=3e-4", "train.limit=100")
    config, told = fitted(given, data)
    assert of(config, "epochs", "batch", "lr", "backbone_lr") == [30, 16, 3e-4, 1e-4]
    assert config.augment["mosaic"] == 0.25
    assert "180 steps: train.backbone_lr=0.0001 train.validate_every=3" in told[0]
    config, told = fitted(recipe("augment={mirror: 0}"), data)
    assert config.augment["mosaic"] == recipe("augment={mirror: 0}").augment["mosaic"]


def test_from_nothing_the_recipe_is_as_it_is_written(tmp_path: Path) -> None:
    plain = recipe("model.weights=none")
    assert fitted(plain, labels(tmp_path, 205, 0.2, "screw")) == (plain, [])


def test_train_without_a_config_says_what_it_chose(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def until_chosen(event: Event) -> None:
        if "chosen for 3 images" in str(event):
            assert "350 steps: train.batch=8 train.epochs=350" in str(event)
            raise Enough

    with pytest.raises(Enough):
        detkit.train(data=write_toy_data(tmp_path / "toys", train=3, val=2, size=64), on_event=until_chosen)
