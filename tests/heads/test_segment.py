"""The head that gives each pixel a class: shapes, losses by hand, and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detkit.backbones.base import dilate
from detkit.backbones.efficientnet_lite import efficientnet_lite0
from detkit.backbones.resnet import resnet18, resnet20
from detkit.explain.summary import summarise_network
from detkit.heads.segment import Segment, upsampling_layer
from detkit.ops.losses import dice_loss
from detkit.structures import Limits, Target

SIZES = torch.tensor([[32, 32], [20, 24]])


def maps(*strides: int, channels: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, 32 // stride, 32 // stride) for stride in strides]


@pytest.mark.parametrize("strides", [(8,), (4, 8), (2, 4, 8, 8), (4, 16)])
@pytest.mark.parametrize(
    "options",
    [{}, {"upsampling": "learned"}, {"decoder": "unet", "width": 6}, {"decoder": "unet", "upsampling": "learned"}],
)
def test_every_choice_gives_a_class_of_each_pixel_and_learns(strides: tuple[int, ...], options: dict[str, Any]) -> None:
    head = Segment([4] * len(strides), strides, 3, dice_gain=1.0, **options)
    raw = head.raw(maps(*strides))
    assert raw["pixels"].shape == (2, 4, 32, 32)
    masks = [torch.randint(0, 3, size.tolist(), dtype=torch.uint8) for size in SIZES]
    targets = [Target(torch.zeros(0, 4), torch.zeros(0), mask=mask) for mask in masks]
    losses = head.loss(raw, targets, SIZES)
    assert losses["pixels"].count == 32 * 32 + 20 * 24
    assert losses["dice"].count == 2
    sum(term.sum / term.count for term in losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_learned_upsampling_begins_as_bilinear(factor: int) -> None:
    x = torch.randn(1, 3, 6, 6)
    given, learned = F.interpolate(x, scale_factor=factor, mode="bilinear"), upsampling_layer(3, factor, "learned")(x)
    inner = slice(factor, -factor)  # the border of a transposed convolution fades
    assert torch.allclose(given[..., inner, inner], learned[..., inner, inner], atol=1e-5)


def test_losses_by_hand() -> None:
    """Four pixels of two classes: two right at 0.9, one at 0.6, one that is ignored."""
    head = Segment([2], [1], 2, background=False, dice_gain=0.5)
    right = torch.tensor([0.9, 0.9, 0.6, 0.1])
    probability = torch.stack((right, 1 - right))[None, :, None]
    target = Target(torch.zeros(0, 4), torch.zeros(0), mask=torch.tensor([[0, 0, 0, 255]], dtype=torch.uint8))
    losses = head.loss({"pixels": probability.log()}, [target], torch.tensor([[1, 4]]))
    assert losses["pixels"].count == 3
    assert losses["pixels"].sum == pytest.approx(-(2 * np.log(0.9) + np.log(0.6)), rel=1e-5)
    assert losses["dice"].sum == pytest.approx(0.5 * (1 - 2 * 2.4 / (2.4 + 3)), rel=1e-5)  # of the class that is there
    wanted = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]])
    found = torch.tensor([[[0.9, 0.6, 0.4, 0.1], [0.1, 0.4, 0.6, 0.9]]])
    assert dice_loss(found, wanted).tolist() == pytest.approx([1 - 2 * 1.5 / 4])  # both classes alike
    assert dice_loss(found, torch.zeros(1, 2, 4)).tolist() == [0]


def test_pixels_without_a_class_are_background_or_ignored() -> None:
    mask = torch.tensor([[0, 254, 255, 0]], dtype=torch.uint8)
    target = Target(torch.zeros(0, 4), torch.zeros(0), mask=mask)
    for background, count in ((True, 3), (False, 2)):
        head = Segment([2], [1], 1, background=background)
        losses = head.loss(head.raw([torch.zeros(1, 2, 1, 4)]), [target], torch.tensor([[1, 4]]))
        assert losses["pixels"].count == count


def test_an_answer_per_class_of_the_part_that_is_the_image() -> None:
    head = Segment([1], [1], 3)
    logits = torch.full((1, 4, 4, 6), -9.0)
    logits[0, 3] = 0  # background
    logits[0, 1, 1:3, 2:4] = 5
    logits[0, 0, 0, 0] = 1
    logits[0, 2, :, 5] = 9  # padding
    (found,) = head.predict({"pixels": logits}, torch.tensor([[4, 5]]), Limits(conf=0.1))
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[2, 1, 4, 3], [0, 0, 1, 1]]
    assert found.extra["masks"].shape == (2, 4, 5)
    assert found.extra["masks"].sum((1, 2)).tolist() == [4, 1]
    assert found.scores[0] == pytest.approx(float(logits[0, :, 1, 2].softmax(0)[1]))
    assert head.predict({"pixels": logits}, SIZES[:1] * 0 + 4, Limits(conf=0.1, classes=(0,)))[0].labels.tolist() == [0]
    (none,) = head.predict({"pixels": logits}, torch.tensor([[4, 5]]), Limits(classes=(2,)))
    assert len(none) == 0
    assert none.extra["masks"].shape == (0, 4, 5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples"):
        Segment([2, 2], [8, 12], 3)
    for options in ({"width": 0}, {"pixel_gain": 0.0}, {"dice_gain": -1.0}):
        with pytest.raises(ValueError, match="gain"):
            Segment([2], [8], 3, **options)


@pytest.mark.parametrize("make", [efficientnet_lite0, resnet18])
def test_a_dilated_stage_sees_as_much_on_a_finer_map(make: Any) -> None:
    """Every second cell of the map with dilation is the map without."""
    torch.manual_seed(0)
    plain = make(taps=[3, 4]).eval()
    dilated = make(taps=[3, 4], dilation=2).eval()
    dilated.load_state_dict(plain.state_dict())
    assert dilated.strides == [16, 16]
    assert dilated.offsets == [8, 8]
    fields = [[layer.receptive_field for layer in summarise_network(net, (64, 64)).layers] for net in (plain, dilated)]
    assert fields[0] == fields[1]
    x = torch.randn(1, 3, 96, 96)
    coarse, fine = (net(x)[-1] for net in (plain, dilated))
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    start = int(make is efficientnet_lite0)  # which pads on the right and below alone
    assert torch.allclose(fine[..., start::2, start::2], coarse, atol=1e-4)


def test_a_stage_that_halves_otherwise_cannot_be_dilated() -> None:
    with pytest.raises(ValueError, match="no stride of convolutions alone"):
        resnet20(taps=[2], dilation=2)
    with pytest.raises(ValueError, match="dilation 0"):
        dilate(resnet18(taps=[4]), 4, 0)
