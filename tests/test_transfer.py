"""Starting from another model's weights: what is taken, and the rows of classes that both know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.backbones.lenet import lenet5
from detkit.config.anchors import anchors_for
from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model, read_config
from detkit.config.schema import Place
from detkit.config.transfer import with_rows
from detkit.data.dataset import Dataset, read
from detkit.data.toy import write_toy_data
from detkit.detector import Detector, read_weights
from detkit.engine.events import BatchDone, Event, Notice
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError

ANCHORS = [[8.0, 8.0], [20.0, 20.0]]


def model(classes: tuple[str, ...], seed: int = 0, weights: str = "none", **parts: Any) -> Detector:
    values = {
        "size": 32,
        "weights": weights,
        "backbone": {"name": "lenet5", "taps": [1]},
        "head": {"name": "yolo", "anchors": ANCHORS},
        **parts,
    }
    torch.manual_seed(seed)
    config = Config({}, check_model(values, Place("test.yaml")), {}, TrainOptions(), EvaluateOptions())
    return build_detector(config, classes)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Detector, str]:
    first = model(("cat", "dog", "cow"))
    torch.nn.init.normal_(first.head.layers[0].bias)
    first.save(tmp_path / "first.safetensors")
    return first, str(tmp_path / "first.safetensors")


def test_the_same_classes_take_everything(saved: tuple[Detector, str]) -> None:
    first, path = saved
    second = model(first.classes, 1, path)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    count = len(first.state_dict())
    assert second.record["started"] == f"weights from first.safetensors: {count} of {count} tensors taken as they are"


def test_rows_of_classes_that_both_know_are_kept(saved: tuple[Detector, str]) -> None:
    first, path = saved
    second, fresh = model(("cow", "pig"), 1, path), model(("cow", "pig"), 1)
    old, new, untouched = (m.head.layers[0].weight.detach().unflatten(0, (2, -1)) for m in (first, second, fresh))
    assert torch.equal(new[:, :5], old[:, :5])  # box and objectness
    assert torch.equal(new[:, 5], old[:, 7])  # cow
    assert torch.equal(new[:, 6], untouched[:, 6])  # pig
    said = second.record["started"]
    assert "2 made anew for other classes, the rows of 1 of 2 classes kept (cow)" in said


def test_equal_numbers_of_other_classes_are_no_reason_to_take_their_rows(saved: tuple[Detector, str]) -> None:
    first, path = saved
    second, fresh = model(("pig", "dog", "hen"), 1, path), model(("pig", "dog", "hen"), 1)
    old, new, untouched = (m.head.layers[0].bias.detach().view(2, -1) for m in (first, second, fresh))
    assert torch.equal(new[:, 6], old[:, 6])
    assert torch.equal(new[:, [5, 7]], untouched[:, [5, 7]])


def test_another_number_of_anchors_starts_anew(saved: tuple[Detector, str]) -> None:
    _, path = saved
    head = {"name": "yolo", "anchors": [*ANCHORS, [30.0, 30.0]]}
    second, fresh = model(("cow", "pig"), 1, path, head=head), model(("cow", "pig"), 1, head=head)
    assert torch.equal(second.head.layers[0].weight, fresh.head.layers[0].weight)
    assert "2 of another shape start anew (head.layers.0.weight, head.layers.0.bias)" in second.record["started"]


def test_another_head_takes_the_backbone(saved: tuple[Detector, str]) -> None:
    first, path = saved
    second = model(("cat", "dog"), 1, path, head={"name": "classify", "hidden": [4]})
    assert torch.equal(second.backbone.stages[0][1].weight, first.backbone.stages[0][1].weight)
    said = second.record["started"]
    assert "4 that the file lacks start anew" in said
    assert "2 of the file not used" in said
    with pytest.raises(DetkitError, match="none of these weights fits"):
        model(("cat", "dog"), 1, path, backbone={"name": "resnet18", "taps": [2]})


def boxes(folder: Path, count: int, *sides: float) -> Dataset:
    """An image of 32 x 32 pixels with ``count`` boxes of about each of these sides."""
    found = [[0, 0, side + 0.02 * k, side + 0.01 * k] for side in sides for k in range(count)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(found, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "data.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "a.png").touch()
    return Dataset(read(folder / "data.json"))


@pytest.mark.parametrize(
    ("sides", "head", "kept", "said"),
    [
        ((8, 20), {}, True, "are kept, mean best IoU 0.9"),
        ((8.1, 20.2), {}, True, "(computed anew: 0.9"),
        ((5, 14), {}, False, "anchors: computed anew, mean best IoU 0.9"),
        ((8, 20), {"anchors_per_level": 3}, False, None),  # another number of them
        ((30,), {}, True, "too few boxes"),
    ],
)
def test_anchors_of_the_weights_are_kept_where_they_fit(
    saved: tuple[Detector, str],
    tmp_path: Path,
    sides: tuple[float, ...],
    head: dict[str, Any],
    kept: bool,
    said: str | None,
) -> None:
    values = {"size": 32, "weights": saved[1], "backbone": {"name": "lenet5", "taps": [1]}}
    parts = {"head": {"name": "yolo", "anchors_per_level": 2, **head}}
    config = Config({}, check_model({**values, **parts}, Place()), {}, TrainOptions(), EvaluateOptions())
    dataset, told = boxes(tmp_path, 20 if len(sides) > 1 else 1, *sides), list[str]()
    found = anchors_for(config, dataset, told.append)
    assert found is not None
    assert (found == ANCHORS) is kept
    if kept:
        second = build_detector(config, ("cat", "dog", "cow"), anchors=found)
        assert torch.equal(second.head.layers[0].weight, saved[0].head.layers[0].weight)
    assert len(told) == (said is not None)
    assert said is None or said in told[0]
    assert said is None or "first.safetensors" in told[0]


@pytest.mark.parametrize(
    ("sides", "taps", "anchors"),
    [((8, 9), [1], [[8, 8], [9, 9]]), ((8,), [0, 1], [[8, 8], [8, 8]]), ((8, 9, 9.5), [0, 1], [[8, 8], [9.25, 9.25]])],
)
def test_few_sizes_give_fewer_anchors_where_none_can_be_kept(
    saved: tuple[Detector, str], tmp_path: Path, sides: tuple[float, ...], taps: list[int], anchors: list[list[float]]
) -> None:
    """As many for each level as there are sizes for, and one at least."""
    values = {"size": 32, "weights": saved[1], "backbone": {"name": "lenet5", "taps": taps}, "head": "yolo"}
    config = Config({}, check_model(values, Place()), {}, TrainOptions(), EvaluateOptions())
    told: list[str] = []
    found = anchors_for(config, boxes(tmp_path, 1, *sides), told.append)
    assert np.asarray(found) == pytest.approx(np.asarray(anchors), abs=0.3)
    few = f"{len(anchors)} instead of {3 * len(taps)}, since the boxes have {len(sides)} different sizes"
    assert told == [f"anchors: {few}"]
    assert build_detector(config, ("cat",), anchors=found).head.needs_fit is False
    with pytest.raises(DetkitError, match="no boxes to find anchors from"):
        anchors_for(config, boxes(tmp_path, 0))


@pytest.mark.parametrize("folder", [True, False])
def test_the_backbone_alone_starts_from_a_run_or_its_file(tmp_path: Path, folder: bool) -> None:
    head = {"name": "classify", "layers": "backbone"}
    first = model(("cat", "dog"), head=head, backbone={"name": "lenet5", "taps": [2]})
    first.save(tmp_path / "best.safetensors")
    backbone = {"name": "lenet5", "taps": [2], "weights": str(tmp_path if folder else tmp_path / "best.safetensors")}
    second = model(("cat", "dog"), 1, head=head, backbone=backbone)
    for part in ("backbone", "head.trunk"):
        pairs = zip(first.get_submodule(part).parameters(), second.get_submodule(part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.last.weight, second.head.last.weight)
    said = second.record["started"]
    assert said.startswith("backbone weights from best.safetensors: ")
    assert said.endswith("tensors taken as they are")
    assert second.config["model"]["backbone"]["weights"] == Path(backbone["weights"]).name
    third = model(("cow",), 1, backbone=backbone)  # a head that has nothing of the backbone
    assert torch.equal(first.backbone.stages[1][1].weight, third.backbone.stages[1][1].weight)
    assert "of the file not used" not in third.record["started"]
    with pytest.raises(DetkitError, match="none of these weights fits") as caught:
        model(("cow",), backbone={**backbone, "name": "resnet18", "taps": [2]})
    assert "model.backbone.weights: none" in caught.value.do


def test_a_published_file_is_taken_whole_and_that_is_said(tmp_path: Path) -> None:
    published = lenet5(10)
    state = {key.removeprefix("backbone."): value for key, value in published.state_dict().items()}
    torch.save(state, tmp_path / "lenet.pth")
    found = model(("cat",), backbone={"name": "lenet5", "taps": [1], "weights": str(tmp_path / "lenet.pth")})
    assert torch.equal(found.backbone.stages[0][1].weight, published.backbone.stages[0][1].weight)
    assert found.record["started"] == "backbone weights from lenet.pth: all of the published network's"


def test_weights_that_would_not_be_used_are_refused(saved: tuple[Detector, str]) -> None:
    overrides = [
        f"model.weights={json.dumps(saved[1])}",
        "model.backbone.weights=resnet.pth",
        "model.head.anchors=[[9, 9]]",
    ]
    with pytest.raises(DetkitError, match="would not be used") as caught:
        build_detector(read_config("toy", overrides, train_schema=TrainOptions), ("cat",))
    assert "resnet.pth" in caught.value.where


def test_rows_before_between_and_after_the_classes() -> None:
    old = torch.arange(9.0)[:, None]  # one group: 1 row before, 3 classes of 2 rows, 2 after
    own = -torch.ones(7, 1)  # the same for 2 classes
    made = with_rows(own, old, (1, 2, 2), [2, -1], 3)
    assert made is not None
    assert made.squeeze().tolist() == [0, 5, 6, -1, -1, 7, 8]
    assert own.eq(-1).all()
    assert with_rows(own, old[:8], (1, 2, 2), [2, -1], 3) is None
    assert with_rows(own, torch.zeros(9, 2), (1, 2, 2), [2, -1], 3) is None


@pytest.mark.parametrize("boxes", [True, False])
def test_windows_keep_their_background(tmp_path: Path, boxes: bool) -> None:
    head = {"name": "sliding_window", "cells": 2, "width": 8, "boxes": boxes}
    first = model(("cat", "dog", "cow"), head=head)
    first.save(tmp_path / "first.safetensors")
    second = model(("cow", "pig"), 1, str(tmp_path / "first.safetensors"), head=head)
    old, new = (m.head.layers[0].weight.detach() for m in (first, second))
    code = 4 if boxes else 0
    assert torch.equal(new[:code], old[:code])
    assert torch.equal(new[code], old[code + 2])
    assert torch.equal(new[-1], old[-1])


def test_a_run_that_goes_on_keeps_its_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.engine.trainer.Trainer.train", lambda trainer, **keys: trainer.model)
    data, run, told = write_toy_data(tmp_path / "toys", train=6, val=2, size=64), tmp_path / "run", list[Event]()
    small = ["model.size=64", "model.head.anchors_per_level=2", "train.device=cpu"]
    first = detkit.train("toy", data=data, overrides=small)
    first.save(tmp_path / "first.safetensors")
    started = [*small, f"model.weights={json.dumps(str(tmp_path / 'first.safetensors'))}"]
    second = detkit.train("toy", data=data, overrides=started, on_event=told.append)
    assert all(torch.equal(a, b) for a, b in zip(first.head.anchors, second.head.anchors, strict=True))
    assert sum("those of first.safetensors are kept" in str(event) for event in told) == 1
    # What it started from may change, or what is chosen.
    run.mkdir()
    overrides = [*started, f"data.train={json.dumps(str(data))}", "data.val=null"]
    (run / "config.yaml").write_text(read_config("toy", overrides, train_schema=TrainOptions).to_yaml(), "utf-8")
    other = [[5.0, 5.0], [9.0, 9.0], [20.0, 20.0], [40.0, 40.0]]
    second.config["model"]["head"]["anchors"] = other
    second.save(run / "last.safetensors")
    again = detkit.train(resume=run, on_event=told.append)
    assert [pair for level in again.head.anchors for pair in level.tolist()] == other
    assert sum("anchors" in str(event) for event in told) == 1


def toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """Toy data and what makes runs on it small."""
    monkeypatch.chdir(folder)
    small = ["train.epochs=1", "train.batch=2", "train.workers=0", "train.ema=0", "model.size=64"]
    return write_toy_data(folder / "toys", train=6, val=2, size=64), [*small, "model.head={name: aligned}"]


def texts(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Notice)]


def test_a_model_may_keep_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, small = toys(tmp_path, monkeypatch)
    config = read_config("toy", [*small, f"data.train={data}"], train_schema=TrainOptions)
    own = ("person", "disc", "dog")
    first = build_detector(config, own, class_ids=(1, 7, 18))
    torch.nn.init.normal_(first.head.layers[0].weight)
    first.save("first.safetensors")
    told: list[Event] = []
    keep = [*small, "model.weights=first.safetensors", "model.classes=keep", "train.lr=1e-9", "train.weight_decay=0"]
    shape, *others = read(data, split="train").classes
    rename = f"data.train={{path: {data}, rename: {{{shape}: disc}}}}"
    finished = detkit.train("toy", overrides=[*keep, rename], on_event=told.append)
    second = detkit.load(finished.run / "best.safetensors")
    assert second.classes == (*own, *others)
    assert second.class_ids[:3] == (1, 7, 18)
    assert len(set(second.class_ids)) == len(second.class_ids)
    torch.testing.assert_close(second.head.layers[0].weight[:3], first.head.layers[0].weight, atol=1e-6, rtol=0)
    wanted = f"classes: the 3 of first.safetensors are kept; the data has 1 of them, and adds {', '.join(others)}"
    assert wanted in texts(told)


def test_what_keeps_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, small = toys(tmp_path, monkeypatch)
    with pytest.raises(DetkitError, match="no model whose classes could be kept"):
        detkit.train("toy", data=data, overrides=[*small, "model.classes=keep"])
    with pytest.raises(DetkitError, match="known: no class 'strar'"):
        detkit.train("toy", overrides=[*small, f"data.train={{path: {data}, known: [strar]}}"])


def test_from_a_detector_rates_are_low_and_norms_keep_their_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, small = toys(tmp_path, monkeypatch)
    small += ["train.lr=auto", "train.backbone_lr=auto", "train.warmup_steps=0", "train.warmup=0"]
    first = detkit.train("toy", data=data, overrides=small)
    told: list[Event] = []
    second = detkit.train("toy", data=data, overrides=[*small, f"model.weights={first.run}"], on_event=told.append)
    assert "train.lr: 0.0001, since training starts from a detector's weights" in texts(told)
    assert sum(text.startswith("train.freeze_norms: ") for text in texts(told)) == 1
    assert next(event.lr for event in told if isinstance(event, BatchDone)) == pytest.approx(1e-4)
    before, after = (read_weights(run / "last.safetensors") for run in (first.run, second.run))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not [name for name in moved if "running" in name]
    assert moved
