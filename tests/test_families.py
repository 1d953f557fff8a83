"""Sliding windows and the R-CNNs as combinations of parts: each learns four pictures and survives the odd ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import build_detector, load
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.dataset import Dataset, read
from detkit.data.loader import collate
from detkit.data.toy import CLASSES, write_toy_data
from detkit.detector import Detector
from detkit.engine.evaluator import evaluate
from detkit.engine.options import TrainOptions
from detkit.metrics import coco
from detkit.structures import Batch, Geometry, Limits, Target

BODY = {"backbone": {"name": "resnet18", "taps": [2]}, "neck": {"name": "fpn", "out": 32}}
WINDOWS = {"name": "windows", "windows": [20, 28, 40], "aspects": [1.0]}
FAMILIES: dict[str, dict[str, Any]] = {
    "sliding": {
        "backbone": {"name": "resnet18", "taps": [2], "scales": [1.0, 0.7, 0.5]},
        "head": {"name": "sliding_window", "cells": 3, "width": 128},
    },
    "faster": {
        **BODY,
        "proposals": {"name": "rpn", "scales": [20, 40], "ratios": [1.0]},
        "head": {"name": "roi", "layers": "mlp", "width": 128},
    },
    "fast": {**BODY, "proposals": WINDOWS, "head": {"name": "roi", "layers": "mlp", "width": 128, "pool": "max"}},
    "rcnn": {
        "backbone": {"name": "identity", "cnn": "lenet5"},
        "proposals": {**WINDOWS, "max": 600},
        "head": {"name": "roi", "pool": "crops", "size": 32, "padding": 4, "rois": 64},
    },
}


def make(family: str, size: int = 96, **changes: Any) -> Detector:
    torch.manual_seed(0)
    model = check_model({"size": size, **FAMILIES[family], **changes}, Place())
    return build_detector(Config({}, model, {}, TrainOptions(), EvaluateOptions()), CLASSES)


def total(losses: dict[str, Any]) -> torch.Tensor:
    terms = [term.sum / term.count.clamp(min=1) for term in losses.values()]
    return torch.stack(terms).sum()


STEPS = {"sliding": 50, "faster": 90, "fast": 80, "rcnn": 200}


@pytest.mark.parametrize("family", FAMILIES)
def test_four_pictures_are_learnt_by_heart(family: str, tmp_path: Path) -> None:
    data = Dataset(read(write_toy_data(tmp_path, train=4, val=1, size=96), split="train"))
    detector, steps = make(family), STEPS[family]
    batch, targets = collate([data.load(i) for i in range(4)], detector.resize)
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    detector.train()
    for _ in range(steps):
        loss = total(detector(batch, targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        schedule.step()
    assert coco.evaluate(*evaluate(detector, data)[:2]).metrics["AP50"] >= 0.9


NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def batch_of(images: int, size: int = 96) -> Batch:
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=torch.Generator().manual_seed(0))
    return Batch(pixels.byte(), torch.tensor([[size, size]] * images), (Geometry(size, size),) * images)


def crowded(count: int) -> Target:
    generator = torch.Generator().manual_seed(0)
    corner = 80 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat((corner, corner + 2 + 14 * torch.rand(count, 2, generator=generator)), dim=1)
    return Target(boxes, torch.arange(count) % len(CLASSES))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [[NOTHING, NOTHING], [crowded(3), NOTHING], [NOTHING, crowded(5000)]])
def test_every_weight_gets_a_gradient(family: str, targets: list[Target]) -> None:
    detector = make(family).train()
    total(detector(batch_of(2), targets)).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    detector.eval()
    with torch.no_grad():
        losses, found = detector(batch_of(2), targets, detections=True)
    assert torch.isfinite(total(losses))
    assert len(found) == 2


@pytest.mark.parametrize("family", ["fast", "rcnn"])
def test_without_any_proposal(family: str) -> None:
    detector = make(family, proposals={"name": "windows", "windows": [500]}).train()
    total(detector(batch_of(2), [NOTHING, NOTHING])).backward()
    assert all(p.grad is not None and not p.grad.any() for p in detector.parameters())
    total(detector(batch_of(1), [crowded(1)])).backward()  # the object itself is the only region
    detector.eval()
    with torch.no_grad():
        assert [len(found) for found in detector(batch_of(2))] == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_one_pixel(family: str) -> None:
    found = make(family).predict(torch.zeros(1, 1, 3, dtype=torch.uint8).numpy(), conf=0.0)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_all_of_it(family: str, tmp_path: Path) -> None:
    detector = make(family).eval()
    detector.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    with torch.no_grad():
        one, other = (d(batch_of(1), limits=Limits(conf=0.0))[0] for d in (detector, again))
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_the_backbones_trunk_learns_at_its_rate() -> None:
    from detkit.engine.optimizer import parameter_groups

    detector = make("rcnn")
    groups = parameter_groups(detector, TrainOptions(lr=1e-2, backbone_lr=1e-4))
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in detector.head.trunk.parameters()} == {1e-4}
    assert {rates[id(p)] for p in detector.head.classes.parameters()} == {1e-2}
