"""Heads that learn from images alone: what they show the network, and that answers cannot be had otherwise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.errors import DetkitError
from detkit.heads.pretext import FrameOrder, PretextHead, Rotation, SimCLR
from detkit.ops.contrast import partner_logits, random_views
from detkit.structures import Limits

SIZES = torch.tensor([[32, 32], [32, 32]])


def test_nt_xent_of_four_vectors_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    vectors = torch.tensor([east, north, east, north])
    for temperature, term in ((1.0, math.e), (0.5, math.e**2)):
        each = F.cross_entropy(*partner_logits(vectors, temperature), reduction="none")
        assert each.tolist() == pytest.approx([-math.log(term / (term + 2))] * 4)
    logits, partner = partner_logits(vectors, 1.0)
    assert logits.argmax(1).tolist() == partner.tolist() == [2, 3, 0, 1]
    # the partners exchanged: the nearest is another image's
    logits, partner = partner_logits(vectors[[0, 1, 3, 2]], 1.0)
    assert not (logits.argmax(1) == partner).any()


def test_a_rotated_image_is_shown_in_four_ways_and_each_is_asked_for() -> None:
    head = Rotation([8], [32], 1)
    pixels = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    views = head.views(pixels)
    assert views.shape == (8, 3, 4, 4)
    assert torch.equal(views[:2], pixels)
    assert torch.equal(views[2], pixels[0].rot90(1, (1, 2)))
    raw = head.eval().raw([torch.randn(8, 8, 1, 1)])
    assert raw["right"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    raw["logits"] = torch.eye(4).repeat_interleave(2, 0) * 50
    assert [one.scores.tolist() for one in head.predict(raw, SIZES, Limits.evaluation())] == [[1.0], [1.0]]
    assert head.loss(raw, [], SIZES)["views"].sum.item() == pytest.approx(0, abs=1e-4)
    raw["logits"][1] = torch.tensor([0.0, 50, 0, 0])  # the second image upright taken for turned
    found = head.predict(raw, SIZES, Limits.evaluation())
    assert [one.scores.tolist() for one in found] == [[1.0], [0.75]]
    assert found[1].boxes.tolist() == [[0, 0, 32, 32]]
    with pytest.raises(DetkitError, match="32 x 64"):
        head.views(torch.zeros(1, 3, 32, 64))


def test_frames_are_asked_for_in_every_order_whose_reverse_is_the_same() -> None:
    head = FrameOrder([2], [32], 1, frames=3)
    assert sorted(head.ways) == [0, 0, 1, 1, 2, 2]
    assert head.last.out_features == 3
    assert [head.ways[head.orders.index(order)] for order in ((0, 1, 2), (2, 1, 0))] == [0, 0]
    strip = torch.cat([torch.full((1, 3, 4, 5), float(k)) for k in range(3)], dim=3)
    assert head.views(strip).mean((1, 2, 3)).tolist() == [0, 1, 2]
    maps = [torch.randn(6, 2, 1, 1)]
    assert head.eval().raw(maps)["logits"].shape == (12, 3)
    assert head.raw(maps)["right"].view(6, 2).T.tolist() == [head.ways] * 2
    assert len(set(FrameOrder([2], [32], 1, frames=4).ways)) == 12
    with pytest.raises(DetkitError, match="3 frames"):
        head.views(torch.zeros(1, 3, 4, 16))
    with pytest.raises(ValueError, match="3 to 5"):
        FrameOrder([2], [32], 1, frames=2)


def test_views_are_of_their_own_image_differ_and_come_from_the_generator() -> None:
    dark, light = torch.zeros(3, 16, 16), torch.full((3, 16, 16), 200)
    light[:, :, :8] = 100
    pixels = torch.stack([dark, light]).to(torch.uint8)
    torch.manual_seed(3)
    first, second = (random_views(pixels, 0.2, 0.4, 0.2) for _ in range(2))
    assert first.shape == pixels.shape
    assert not first[0].any()
    assert not torch.equal(first[1], second[1])
    assert 0 <= first.min() <= first.max() <= 255
    torch.manual_seed(3)
    assert torch.equal(random_views(pixels, 0.2, 0.4, 0.2), first)
    assert torch.equal(random_views(pixels, 1.0, 0.0, 0.0)[0], pixels[0])


def test_grey_views_have_no_colour() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8))
    grey = random_views(pixels, 0.5, 0.0, 1.0)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-3)


@pytest.mark.parametrize("head", [Rotation([6], [8], 1), SimCLR([6], [8], 1), FrameOrder([6], [8], 1)])
def test_a_head_learns_what_it_can_tell(head: PretextHead) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 8, 24 if isinstance(head, FrameOrder) else 8) * 255
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(6))
    views = head.views(pixels) / 255  # the same in each step: it is the head that is tried
    net(views)
    optimizer = torch.optim.Adam([*head.parameters(), *net.parameters()], lr=0.02)
    losses = []
    for _ in range(40):
        (term,) = head.loss(head.raw([net(views)[..., None, None]]), [], SIZES).values()
        optimizer.zero_grad()
        (term.sum / term.count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(term.sum.item() / term.count.item())
    assert losses[-1] < losses[0] / 2
