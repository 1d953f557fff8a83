"""The pyramid: maps of every scale at the strides that they say, weights of the one network."""

from __future__ import annotations

import pytest
import torch

from detkit.backbones.base import Pyramid, StagedBackbone
from detkit.backbones.resnet import resnet18


def net(**keys: object) -> StagedBackbone:
    torch.manual_seed(0)
    return resnet18(**keys).eval()  # type: ignore[return-value]


def test_strides_are_told_in_pixels_of_the_image() -> None:
    pyramid = net(taps=(2, 3), scales=(0.5, 1.0, 0.7))
    assert isinstance(pyramid, Pyramid)
    assert pyramid.strides == pytest.approx([8, 8 / 0.7, 16, 16, 16 / 0.7, 32])
    assert pyramid.channels == [128, 128, 128, 256, 256, 256]
    assert pyramid.offsets == pytest.approx([stride / 2 for stride in pyramid.strides])
    assert [type(stride) for stride in pyramid.strides] == [int, float, int, int, float, int]
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, 320, 160))
    for found, stride, channels in zip(maps, pyramid.strides, pyramid.channels, strict=True):
        assert found.shape == (1, channels, 320 / stride, 160 / stride)


@torch.no_grad()
def test_the_first_scale_is_the_network_itself() -> None:
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(taps=(3,), scales=(1.0, 0.5))(x)[0], net(taps=(3,))(x)[0])
    assert net(taps=(3,), scales=(1.0,)).state_dict().keys() == net(taps=(3,), scales=(2.0, 1.0)).state_dict().keys()


@torch.no_grad()
def test_what_is_twice_as_large_looks_the_same_at_half_the_scale() -> None:
    small = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), scale_factor=8, mode="bilinear")
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    wanted, found = net(taps=(2,))(small)[0], Pyramid(net(taps=(2,)), [0.5])(large)[0]
    error = (found - wanted).abs().mean() / wanted.abs().mean()
    assert error < 0.05


def test_frozen_stages_and_weights_are_the_networks() -> None:
    pyramid = net(taps=(3,), frozen=2, scales=(1.0, 0.5)).train()
    assert not any(p.requires_grad for p in pyramid.stages[:2].parameters())
    assert not pyramid.stages[0].training
    assert pyramid.stages[2].training


@torch.no_grad()
@pytest.mark.parametrize("frozen", [2, 3, 4])
def test_the_frozen_part_and_the_rest_are_the_whole(frozen: int) -> None:
    pyramid, x = net(taps=(2, 3), frozen=frozen, scales=(1.0, 0.5)), torch.randn(1, 3, 64, 64)
    maps = pyramid.frozen_maps(x)
    assert len(maps) == 2 * (1 if frozen < 4 else 2)
    assert all(torch.equal(a, b) for a, b in zip(pyramid(x), pyramid.from_frozen(maps), strict=True))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("inf"),)])
def test_impossible_scales(scales: tuple[float, ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="scales"):
        net(scales=scales)
