"""Starting from another model's weights: what is taken, and the rows of classes that both know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.config.transfer import with_rows
from detkit.detector import Detector
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
    assert "2 of another shape start anew" in second.record["started"]


def test_another_head_takes_the_backbone(saved: tuple[Detector, str]) -> None:
    first, path = saved
    second = model(("cat", "dog"), 1, path, head={"name": "classify", "hidden": [4]})
    assert torch.equal(second.backbone.stages[0][1].weight, first.backbone.stages[0][1].weight)
    said = second.record["started"]
    assert "4 that the file lacks start anew" in said
    assert "2 of the file not used" in said
    with pytest.raises(DetkitError, match="none of these weights fits"):
        model(("cat", "dog"), 1, path, backbone={"name": "resnet18", "taps": [2]})


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
