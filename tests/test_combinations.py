"""Works with every head: each backbone in a whole detector."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from detkit.backbones import BACKBONES
from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.loader import collate
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.structures import Limits, Sample, Target

CLASSES = ("circle", "square", "star")
# What a head needs besides its defaults, for a number of maps. Pixels alone are no features: R-CNN has its own tests.
MODELS: dict[str, Any] = {
    "aligned": lambda levels: {"head": {"reg_max": 3}},
    "yolo": lambda levels: {"head": {"anchors": [[8.0 * k, 8.0 * k] for k in range(1, 2 * levels + 1)]}},
    "roi": lambda levels: {
        "head": {"layers": "mlp", "size": 3, "width": 16, "rois": 8},
        "proposals": {"name": "rpn", "scales": [16.0 * 2**k for k in range(levels)], "samples": 16},
    },
    "classify": lambda levels: {"neck": {"name": "identity"}, "head": {"hidden": [8]}},
    "localize": lambda levels: {"neck": {"name": "identity"}, "head": {"cells": 2, "hidden": [8]}},
    "embed": lambda levels: {"neck": {"name": "identity"}, "head": {"dim": 8}},
    "segment": lambda levels: {"head": {"decoder": "unet", "width": 8}},
    "sliding_window": lambda levels: {"head": {"cells": 1, "width": 16}},
}
NETWORKS = [name for name in BACKBONES if name != "identity"]
# The smallest of each family runs for real, the others only in shapes.
REAL = (
    "efficientnet_lite0",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "resnet18",
    "densenet121",
    "googlenet",
    "vgg11",
    "darknet19",
    "csp_darknet",
    "nin",
    "alexnet",
    "lenet5",
)


def detector(backbone: str, head: str) -> Detector:
    module, attribute = BACKBONES[backbone].split(":")
    with torch.device("meta"):
        levels = len(getattr(importlib.import_module(module), attribute)().channels)
    parts = MODELS[head](levels)
    values = {
        "size": 64,
        "backbone": {"name": backbone},
        "neck": {"name": "fpn", "out": 8, "kernel": 3},
        **parts,
        "head": {"name": head, **parts["head"]},
    }
    torch.manual_seed(0)
    config = Config({}, check_model(values, Place("test.yaml")), {}, TrainOptions(), EvaluateOptions())
    return build_detector(config, CLASSES)


def samples() -> list[Sample]:
    """One image with two objects, one without any."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    boxes, mask = np.array([[5, 5, 40, 40], [20, 30, 63, 63]], np.float32), np.zeros((64, 64), np.uint8)
    objects = Target(boxes, np.array([0, 2]), mask=mask, image_label=2)
    return [Sample(pixels[0], objects), Sample(pixels[1])]


def total(model: Detector, images: list[Sample]) -> torch.Tensor:
    losses = model(*collate(images, model.resize))
    assert all(term.sum.isfinite() for term in losses.values())
    return sum((term.sum / term.count.clamp(min=1) for term in losses.values()), torch.zeros(()))


@pytest.mark.parametrize("head", MODELS)
@pytest.mark.parametrize("backbone", [name for name in NETWORKS if name in REAL])
def test_a_detector_learns_and_answers(backbone: str, head: str) -> None:
    model = detector(backbone, head).train()
    total(model, samples()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    model.zero_grad()
    total(model, [samples()[1]] * 2).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for found in model.eval().predict_samples(samples(), Limits(conf=0.0, max_detections=5)):
        assert np.isfinite(found.boxes).all()
        assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("head", MODELS)
@pytest.mark.parametrize("backbone", [name for name in NETWORKS if name not in REAL])
def test_the_parts_fit_together(backbone: str, head: str) -> None:
    with torch.device("meta"):
        model = detector(backbone, head)
        maps = model.features(torch.zeros(2, 3, 64, 64))
        assert [m.shape[1] for m in maps] == model.neck.channels
        if model.proposals is None:
            assert len(next(iter(model.head.raw(maps).values()))) == 2
