"""Vectors of images: the losses of pairs and triplets by hand, what is answered, and the batches that they need."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from detkit.data.sampler import EpochSampler
from detkit.heads.embed import Embed, semi_hard_triplets
from detkit.metrics.identities import likeness
from detkit.structures import Limits, Target


def targets(*labels: int | None) -> list[Target]:
    return [Target(torch.zeros(0, 4), torch.zeros(0), image_label=label) for label in labels]


def vectors(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def squared(degrees: float) -> float:
    return 2 - 2 * math.cos(math.radians(degrees))


def test_semi_hard_negatives_by_hand() -> None:
    """Anchor at 0 and positive at 30 degrees; negatives at 20 (too hard), 40 (semi-hard) and 90 (farther)."""
    at = vectors(0, 30, -20, 40, 90)
    same = torch.tensor([0, 0, 1, 2, 3])[:, None] == torch.tensor([0, 0, 1, 2, 3])
    loss = semi_hard_triplets(at, same, 0.2)
    # From 0 the nearest beyond 30 degrees is at 40; from 30 it is at -20, 50 degrees away.
    wanted = squared(30) - squared(40) + 0.2, max(0, squared(30) - squared(50) + 0.2)
    assert loss.count == 2
    assert loss.sum == pytest.approx(sum(wanted), abs=1e-5)
    near = semi_hard_triplets(vectors(0, 90, 10), torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool(), 0.2)
    # No negative is beyond the positive: the farthest there is.
    assert near.sum == pytest.approx(2 * squared(90) - squared(10) - squared(80) + 0.4, abs=1e-5)


def test_without_pairs_or_negatives_nothing_is_learned() -> None:
    for same in (torch.eye(3).bool(), torch.ones(3, 3).bool()):
        loss = semi_hard_triplets(vectors(0, 10, 20), same, 0.2)
        assert (loss.sum, loss.count) == (0, 0)


def test_contrastive_and_logistic_by_hand() -> None:
    head = Embed([4], [8], 3, dim=2, pairs="contrastive", margin=1.0)
    losses = head.loss({"embedding": vectors(0, 60, 30, 0)}, targets(0, 0, 1, None), torch.zeros(4, 2))
    assert losses["same"].sum == pytest.approx(squared(60), abs=1e-5)
    assert losses["different"].count == 2
    assert losses["different"].sum == pytest.approx(2 * (1 - math.sqrt(squared(30))) ** 2, abs=1e-5)
    a, b = [0.2, 0.6], [0.4, 0.1]
    for difference, gap in (("absolute", 0.7), ("chi_square", 0.04 / 0.6 + 0.25 / 0.7)):
        head = Embed([4], [8], 3, dim=2, pairs="logistic", difference=difference)
        losses = head.loss({"embedding": torch.tensor([a, b])}, targets(5, 5), torch.zeros(2, 2))
        assert float(losses["same"].sum.detach()) == pytest.approx(-math.log(1 / (1 + math.exp(gap - 1))), abs=1e-5)
        assert losses["different"].count == 0
        assert likeness(np.array([a]), np.array([b]), head.measure)[0, 0] == pytest.approx(-gap)
    assert likeness(np.array([[0.6, 0.8]]), np.array([[1.0, 0], [0.6, 0.8]])).tolist() == [[0.6, 1.0]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairs": "contrastive"},
        {"pairs": "logistic"},
        {"pairs": "logistic", "difference": "chi_square", "hidden": (5,)},
    ],
)
def test_every_choice_learns_four_identities_by_heart(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = Embed([6], [8], 4, dim=8, **options)
    maps = torch.randn(8, 6, 3, 3) + 2 * torch.randn(4, 6, 1, 1).repeat_interleave(2, 0)
    wanted, sizes = targets(0, 0, 1, 1, 2, 2, 3, 3), torch.full((8, 2), 24)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(60):
        loss = sum(term.sum / term.count.clamp(min=1) for term in head.loss(head.raw([maps]), wanted, sizes).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head.predict(head.raw([maps]), sizes, Limits(conf=1.0))
    table = np.concatenate([one.extra["embedding"].detach().numpy() for one in found])
    alike = likeness(table, table, head.measure)
    np.fill_diagonal(alike, -np.inf)
    assert alike.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert found[0].boxes.tolist() == [[0, 0, 24, 24]]


def test_options_out_of_range() -> None:
    for options in ({"dim": 0}, {"margin": 0.0}):
        with pytest.raises(ValueError, match="dim must be"):
            Embed([4], [8], 3, **options)


def test_batches_of_p_identities_and_k_images() -> None:
    identities = np.array([0] * 5 + [1] * 2 + [2] * 7 + [3] * 4 + [4])
    sampler = EpochSampler(19, batch=6, shuffle=True, identities=identities, per_identity=3)
    seen = []
    for epoch in range(4):
        batches = list(sampler.epoch(epoch))
        assert len(batches) == len(sampler) == 3
        for batch in batches:
            rows = np.array([index for _, index in batch]).reshape(2, 3)
            assert (identities[rows] == identities[rows[:, :1]]).all()
            seen += rows.tolist()
            for row in rows:  # twice the same image only where there are too few
                assert len(set(row)) == 3 or (identities == identities[row[0]]).sum() < 3
        assert batches == list(sampler.epoch(epoch))
        assert batches[1:] == list(sampler.epoch(epoch, 1))
    assert {identities[row[0]] for row in seen} == set(range(5))
    two = [
        EpochSampler(19, batch=3, shuffle=True, rank=r, world=2, identities=identities, per_identity=3) for r in (0, 1)
    ]
    together = [a + b for a, b in zip(*(list(one.epoch(0)) for one in two), strict=True)]
    assert together == list(sampler.epoch(0))
    with pytest.raises(ValueError, match="multiple of per_identity"):
        EpochSampler(19, batch=6, identities=identities, per_identity=4)
