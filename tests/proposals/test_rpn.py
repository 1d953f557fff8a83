"""The region proposal network: anchors, sampling, losses, proposals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.heads.dense import gather_objects
from detkit.ops.boxes import iou
from detkit.ops.coder import encode_deltas
from detkit.proposals.rpn import RPN, anchors
from detkit.structures import Batch, Target

SIZES = torch.tensor([[64, 64], [64, 48]])


def network(**changes: Any) -> RPN:
    torch.manual_seed(0)
    return RPN([8, 8], [8, 16], **{"scales": [16, 32], "stem": 0, **changes})


def features(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, 8, side, side, generator=generator) for side in (8, 4)]


def target(*rows: tuple[float, float, float, float]) -> Target:
    return Target(torch.tensor(rows).reshape(len(rows), 4), torch.ones(len(rows), dtype=torch.int64))


BATCH = Batch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), SIZES, (Geometry(64, 64), Geometry(48, 64)))


def test_anchors_have_the_scales_area_and_all_ratios() -> None:
    fine, coarse = anchors([128, 32, 64, 16], [0.5, 1, 2], [8, 16])
    assert [(w * h) ** 0.5 for w, h in fine] == pytest.approx([16] * 3 + [32] * 3)
    assert [(w * h) ** 0.5 for w, h in coarse] == pytest.approx([64] * 3 + [128] * 3)
    assert [h / w for w, h in fine[:3]] == pytest.approx([0.5, 1, 2])
    assert anchors([16, 32], [1], [16, 8]) == [[(32, 32)], [(16, 16)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"scales": []}, "scales", id="no anchors"),
        pytest.param({"scales": [16, -1]}, "scales", id="a negative side"),
        pytest.param({"scales": [16]}, "dealt evenly", id="one scale, two levels"),
        pytest.param({"ratios": [0.0]}, "ratios", id="no height"),
        pytest.param({"samples": 0}, "samples", id="no samples"),
        pytest.param({"iou": 1.5}, "iou must lie", id="an IoU above 1"),
        pytest.param({"after": (100, 0)}, "after", id="no proposals"),
    ],
)
def test_options_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((DetkitError, ValueError), match=message):
        network(**arguments)


def test_half_of_the_sample_is_positive_at_most() -> None:
    rpn = network(samples=6, positive=0.3, negative=0.2)
    raw = rpn.raw(features())
    objects = gather_objects([target((8, 8, 40, 40), (20, 20, 60, 60)), target()], "cpu")
    found = rpn.assign(rpn.priors(raw), objects, raw)
    assert (found.positive[:, 0] == 0).all()
    assert len(found.positive) == 3
    assert (~found.ignore).sum(1).tolist() == [6, 6]
    assert not found.ignore[found.positive[:, 0], found.positive[:, 1]].any()


def test_the_loss_is_the_papers() -> None:
    """Log loss over the sample and smooth L1 over its positives, both over the number of samples."""
    rpn = network(samples=1000, beta=1 / 9)
    raw, targets = rpn.raw(features()), [target((10, 10, 30, 28)), target()]
    losses = rpn.loss(raw, targets, SIZES)
    priors = rpn.priors(raw).boxes
    overlap = iou(priors, targets[0].boxes).squeeze(1)
    positive = overlap >= min(0.7, overlap.max().item())
    counted = torch.stack((positive | (overlap < 0.3), torch.ones_like(positive)))
    wanted = torch.stack((positive, torch.zeros_like(positive))).float()
    log = F.binary_cross_entropy_with_logits(raw["objectness"], wanted, reduction="none")[counted].sum()
    deltas = encode_deltas(targets[0].boxes.expand(int(positive.sum()), 4), priors[positive])
    smooth = F.smooth_l1_loss(raw["boxes"][0, positive], deltas, beta=1 / 9, reduction="sum")
    torch.testing.assert_close(losses["objectness"].sum, log / 1000)
    torch.testing.assert_close(losses["box"].sum, smooth / 1000)
    assert losses["box"].count == 2


def test_proposals_are_the_best_after_nms_inside_the_image() -> None:
    rpn = network(before=(50, 20), after=(10, 5), iou=0.5)
    for training, most in ((True, 10), (False, 5)):
        found, raw = rpn.propose(BATCH, features(), training)
        assert [len(boxes) for boxes in found] == [most, most]
        assert not any(boxes.requires_grad for boxes in found)
        assert raw["objectness"].requires_grad
        for boxes, (high, wide) in zip(found, SIZES.tolist(), strict=True):
            assert (boxes >= 0).all()
            assert (boxes[:, 2] <= wide).all()
            assert (boxes[:, 3] <= high).all()


def test_the_likeliest_come_first_and_levels_do_not_suppress_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors of 16 pixels on both levels, answered as they are: 64 of stride 8, then 16 of stride 16."""
    rpn = network(scales=[16, 16], ratios=[1.0], before=(3, 1), after=(9, 9), iou=0.3)
    raw = rpn.raw(features(1))
    raw |= {"boxes": torch.zeros_like(raw["boxes"]), "objectness": torch.full_like(raw["objectness"], -5)}
    raw["objectness"][0, [9, 10, 20, 64]] = torch.tensor([2.0, 0, 1, 3])  # 9 overlaps 10 by 1/3, 64 by 0.39
    monkeypatch.setattr(rpn, "raw", lambda maps: raw)
    batch = Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]), (Geometry(64, 64),))
    best = [[0, 0, 16, 16], [4, 4, 20, 20]]
    (found,), _ = rpn.propose(batch, [], False)
    assert found.tolist() == best  # one a level
    (found,), _ = rpn.propose(batch, [], True)
    assert found[:3].tolist() == [*best, [28, 12, 44, 28]]
    assert [12, 4, 28, 20] not in found.tolist()


def test_sampling_goes_on_from_the_generators_state() -> None:
    rpn = network(samples=4)
    raw, targets = rpn.raw(features()), [target((10, 10, 30, 28)), target()]
    state = rpn.generator.get_state()
    first = rpn.loss(raw, targets, SIZES)["objectness"].sum
    rpn.generator.set_state(state)
    assert first == rpn.loss(raw, targets, SIZES)["objectness"].sum
