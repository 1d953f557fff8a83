"""The families as combinations of parts: each learns four images by heart and survives the odd ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.cli import main
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.dataset import Dataset, read
from detkit.data.loader import collate
from detkit.data.toy import CLASSES, write_toy_data
from detkit.data.warp import Warp
from detkit.detector import Detector
from detkit.engine.evaluator import detect_dataset
from detkit.engine.options import TrainOptions
from detkit.geometry import Geometry
from detkit.metrics import coco
from detkit.ops.boxes import iou
from detkit.structures import Batch, Limits, Target

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
        "head": {"name": "roi", "layers": "mlp", "width": 128, "box_gain": 4.0},
    },
    "fast": {
        **BODY,
        "proposals": WINDOWS,
        "head": {"name": "roi", "layers": "mlp", "width": 128, "pool": "max", "box_gain": 4.0},
    },
    "rcnn": {
        "backbone": {"name": "identity", "cnn": "lenet5"},
        "proposals": {**WINDOWS, "max": 600},
        "head": {"name": "roi", "pool": "crops", "size": 32, "padding": 4, "rois": 64},
    },
    "yolo": {**BODY, "head": {"name": "yolo", "anchors": [[24, 24], [40, 40]]}},
    "anchor-free": {**BODY, "head": {"name": "aligned"}},
}


def make(family: str, size: int = 96, **changes: Any) -> Detector:
    torch.manual_seed(0)
    model = check_model({"size": size, **FAMILIES[family], **changes}, Place())
    return build_detector(Config({}, model, {}, TrainOptions(), EvaluateOptions()), CLASSES)


def total(losses: dict[str, Any]) -> torch.Tensor:
    terms = [term.sum / term.count.clamp(min=1) for term in losses.values()]
    return torch.stack(terms).sum()


def learn(detector: Detector, batches: list[tuple[Batch, list[Target]]], steps: int) -> None:
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    detector.train()
    for step in range(steps):
        loss = total(detector(*batches[step % len(batches)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        schedule.step()


STEPS = {"sliding": 60, "faster": 300, "fast": 90, "rcnn": 200, "yolo": 60, "anchor-free": 60}
# As published; the other tests have batches without images to search in.
SEARCH = {"fast": {"proposals": {"name": "selective_search", "cache": False}}}


@pytest.mark.parametrize("family", FAMILIES)
def test_four_images_are_learnt_by_heart(family: str, tmp_path: Path) -> None:
    data = Dataset(read(write_toy_data(tmp_path, train=4, val=1, size=96), split="train"))
    detector = make(family, **SEARCH.get(family, {}))
    seen = data if detector.proposals_for_image is None else replace(data, proposals=detector.proposals_for_image)
    learn(detector, [collate([seen.load(i) for i in range(4)], detector.resize)], STEPS[family])
    assert coco.Coco().evaluate(*detect_dataset(detector, data)[:2]).metrics["AP"] >= 0.9


def with_corners(folder: Path, part: str) -> Dataset:
    """Toy data whose objects have their four corners as points, left before right."""
    path = folder / "annotations" / f"instances_{part}.json"
    table = json.loads(path.read_text())
    for row in table["annotations"]:
        x, y, w, h = row["bbox"]
        corners = [(x, y), (x + w, y), (x, y + h), (x + w, y + h)]
        row["keypoints"] = [v for px, py in corners for v in (px - 0.5, py - 0.5, 2)]
    path.write_text(json.dumps(table))
    return Dataset(read(folder, split=part))


def test_points_are_learnt_with_the_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four images and their mirror images, in which left and right points have changed places."""
    data = with_corners(write_toy_data(tmp_path, train=4, val=1, size=96), "train")
    pairs = ((0, 1), (2, 3))
    detector = make("fast", head={**FAMILIES["fast"]["head"], "pool": "align", "points": 4, "flip_pairs": pairs})
    assert detector.flip_pairs == pairs
    mirror = Warp(np.array([[-1.0, 0, 96], [0, 1, 0]]), (96, 96), flip_pairs=detector.flip_pairs)
    samples = [data.load(i) for i in range(4)]
    mirrored = []
    for sample in samples:
        image = np.empty((96, 96, 3), np.uint8)
        mirror.image(sample.image, image, 114)
        mirrored.append(mirror.sample(sample, image, 0.2))
    learn(detector, [collate(part, detector.resize) for part in (samples, mirrored)], 140)
    detector.eval()
    for sample, found in zip(mirrored, detector.predict_samples(mirrored, Limits(conf=0.5)), strict=True):
        nearest = iou(sample.target.boxes, found.boxes).argmax(axis=1)
        assert np.abs(found.extra["points"][nearest] - sample.target.points[..., :2]).max() < 8
    detector.save(tmp_path / "model.safetensors")
    both = [str(tmp_path / "model.safetensors"), str(tmp_path), "--split", "train", "--json", "--device", "cpu"]
    for more in ([], ["--tta", "flip"]):
        assert main(["evaluate", *both, *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["protocol"] == "points"
        assert report["metrics"]["AP50"] >= 0.9
        assert report["metrics"]["NME"] < 0.1
        assert report["metrics"]["PCK"] > 0.9


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
def test_a_image_of_one_pixel(family: str) -> None:
    found = make(family).predict(torch.zeros(1, 1, 3, dtype=torch.uint8).numpy(), conf=0.0)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_all_of_it(family: str, tmp_path: Path) -> None:
    detector = make(family).eval()
    detector.save(tmp_path / "model.safetensors")
    again = load_detector(tmp_path / "model.safetensors")
    with torch.no_grad():
        one, other = (d(batch_of(1), limits=Limits(conf=0.0))[0] for d in (detector, again))
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_the_backbones_trunk_learns_at_its_rate() -> None:
    from detkit.engine.optim import parameter_groups

    detector = make("rcnn")
    groups = parameter_groups(detector, TrainOptions(lr=1e-2, backbone_lr=1e-4))
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in detector.head.trunk.parameters()} == {1e-4}
    assert {rates[id(p)] for p in detector.head.classes.parameters()} == {1e-2}
