"""Two domains: what of the features may not tell them apart, by hand-worked numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detkit
from detkit.adapting import remeasure_norms
from detkit.config.datasets import build_dataset
from detkit.config.experiment import read_config
from detkit.data.dataset import Dataset
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.heads.aligned import Aligned
from detkit.heads.alignment import Alignment
from detkit.heads.image import Classify
from detkit.io.images import write_image
from detkit.ops.domains import ReversedGradient, coral, mmd
from detkit.structures import Sample, Target

SIZES = torch.tensor([[32, 32]] * 4)


def target(label: int | None, known: tuple[int, ...] | None = None) -> Target:
    return replace(Target.empty().to("cpu"), image_label=label, known=known)


def test_coral_by_hand() -> None:
    # variances 2 and 8 in the first number, none in the second: (2 - 8)^2 / (4 * 2^2)
    source, other = torch.tensor([[0.0, 1], [2, 1]]), torch.tensor([[0.0, 5], [4, 5]])
    assert coral(source, other).item() == pytest.approx(36 / 16)
    assert coral(source, source + 7).item() == pytest.approx(0)


def test_mmd_by_hand() -> None:
    source, other = torch.zeros(2, 1), torch.ones(2, 1)  # squared distances 0 within, 1 between, 0.5 in the mean
    between = sum(math.exp(-1 / (0.5 * factor)) for factor in (0.25, 0.5, 1, 2, 4)) / 5
    assert mmd(source, other).item() == pytest.approx(2 - 2 * between)
    assert mmd(source, source).item() == pytest.approx(0, abs=1e-6)


def test_a_reversed_gradient_is_turned_round() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    y = ReversedGradient.apply(x, 0.5)
    assert y.item() == 3
    (4 * y).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == -2


def test_images_of_which_nothing_is_known_are_the_other_domain() -> None:
    torch.manual_seed(0)
    head = Classify([4], [32], 2, align="coral", align_gain=2.0, dropout=0.0).train()
    maps = torch.randn(4, 4, 1, 1)
    raw = head.raw([maps])
    targets = [target(0), target(1), target(None, ()), target(None, ())]
    terms = head.loss(raw, targets, SIZES)
    assert terms["classes"].count.item() == 2
    pooled = maps.flatten(1)
    assert terms["domains"].sum.item() == pytest.approx(2 * coral(pooled[:2], pooled[2:]).item(), rel=1e-5)
    assert head.loss(raw, [target(0)] * 4, SIZES)["domains"].count.item() == 0
    assert "pooled" not in head.eval().raw([maps])


def test_a_detector_aligns_its_coarsest_map() -> None:
    torch.manual_seed(0)
    head, maps = (
        Aligned([4, 6], [8, 32], 2, align="mmd", align_gain=2.0),
        [torch.randn(4, 4, 4, 4), torch.randn(4, 6, 1, 1)],
    )
    boxes = Target(torch.tensor([[2.0, 2, 20, 20]]), torch.tensor([1]))
    raw, unknown = head.train().raw(maps), target(None, ())
    terms = head.loss(raw, [boxes, boxes, unknown, unknown], SIZES)
    pooled = maps[1].flatten(1)
    assert terms["domains"].sum.item() == pytest.approx(2 * mmd(pooled[:2], pooled[2:]).item(), rel=1e-5)
    assert head.loss(raw, [unknown] * 4, SIZES)["classes"].sum.item() == 0  # nothing is known, so nothing is background
    assert "pooled" not in head.eval().raw(maps)
    assert not any(name.startswith("alignment") for name in Aligned([4, 6], [8, 32], 2).state_dict())
    with pytest.raises(DetkitError, match="mosaic joins images"):
        read_config("aligned", ["data.train=.", "model.head.align=dann"], train_schema=TrainOptions)


def test_a_critic_learns_and_the_features_unlearn() -> None:
    torch.manual_seed(0)
    alignment, source = Alignment(8, align="dann", align_gain=1.0), [target(0), target(None, ())]
    features = torch.stack((torch.ones(8), -torch.ones(8))).requires_grad_()
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = alignment.loss(features.detach(), source)
        loss.sum.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.sum.item())
    assert losses[-1] < losses[0] / 2
    alignment.loss(features, source).sum.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    nearer = features - features.grad  # downhill for the features is uphill for the critic
    assert (nearer[0] - nearer[1]).norm() < (features[0] - features[1]).norm()
    with pytest.raises(ValueError, match="align_gain"):
        Alignment(1, align="dann", align_gain=-1)


def test_a_source_without_labels_goes_with_class_folders(tmp_path: Path) -> None:
    for name in ("own/a", "own/b", "other"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            write_image(tmp_path / name / f"{number}.png", np.full((8, 8, 3), 9, np.uint8))
    other = {"path": str(tmp_path / "other"), "format": "images", "classes": [], "known": []}
    made: Dataset = build_dataset([str(tmp_path / "own"), other], split="train")
    assert made.classes == ("a", "b")
    assert made.annotations.labelled
    targets = [made.load(i).target for i in range(len(made))]
    assert [one.image_label for one in targets] == [0, 0, 1, 1, None, None]
    assert [one.known for one in targets] == [(0, 1)] * 4 + [()] * 2
    assert not Dataset(replace(made.annotations, known=None)).annotations.labelled
    changes = ["model.backbone={name: lenet_textbook, taps: [1]}", "model.size=32", "model.head.align=coral"]
    with pytest.raises(DetkitError, match="of one domain"):
        detkit.train("classify", data=tmp_path / "own", overrides=[*changes, "train.batch=2"], out=tmp_path / "run")


def test_norms_take_the_statistics_of_the_images() -> None:
    from detkit.config.build import build_detector

    config = read_config(
        "classify",
        ["data.train=.", "model.backbone=resnet20", "model.size=32", "model.head.layers=pool"],
        train_schema=TrainOptions,
    )
    detector = build_detector(config, ("a", "b"))
    rng = np.random.default_rng(0)
    images = [Sample(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(7)]
    first = next(layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d))
    read: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    assert first.running_mean is not None
    before = first.running_mean.clone()
    count, norms = remeasure_norms(detector, iter(images), share=0.25, batch=3)
    assert (count, norms > 10, first.training, first.momentum) == (
        7,
        True,
        False,
        0.1,
    )  # the last one is a batch by itself, and counts no more than any other
    mean = torch.cat(read).mean((0, 2, 3))
    assert torch.allclose(first.running_mean, 0.75 * before + 0.25 * mean, atol=1e-5)
    detector.backbone = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(DetkitError, match="no BatchNorm"):
        remeasure_norms(detector, iter(images))


@pytest.mark.parametrize(
    ("chosen", "other", "said", "do"),
    [
        ("[cat, dog]", {}, r"the source of .*bus.* has bus, car, data\.classes cat, dog: no class in", "known: []"),
        ("[cow]", {}, r"the source of .*cat.* has cat, dog, data\.classes cow: no class in common", "known: []"),
        ("[cat, car, cow]", {}, "no class 'cow' in the data", "car"),
        ("null", {"known": []}, "this needs images of one label each", "classes: []"),
    ],
)
def test_domains_without_a_common_class_are_told(
    tmp_path: Path, chosen: str, other: dict[str, object], said: str, do: str
) -> None:
    for domain, names in (("day", ("cat", "dog")), ("night", ("car", "bus"))):
        for name in names:
            (tmp_path / domain / name).mkdir(parents=True)
            for k in range(2):
                write_image(tmp_path / domain / name / f"{k}.png", np.full((32, 32, 3), 50 * k, np.uint8))
    sources = [{"path": str(tmp_path / "day")}, {"path": str(tmp_path / "night"), **other}]
    words = [f"data.train={json.dumps(sources)}", f"data.val={tmp_path / 'day'}", f"data.classes={chosen}"]
    with pytest.raises(DetkitError, match=said) as told:
        detkit.train("classify", overrides=[*words, "model.head.align=coral"], out=tmp_path / "run")
    assert do in told.value.do
    assert (f"data.classes={chosen}" if chosen != "null" else "data.train") in told.value.where
