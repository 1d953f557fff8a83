"""The faster backward pass of depthwise convolutions is torch's own, to rounding."""

import copy

import pytest
import torch
from torch import nn

from detkit.backbones.efficientnet_lite import SameConv2d
from detkit.speedups.depthwise import filter_gradient, speed_up_depthwise

LAYERS = {
    "3 x 3": nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
    "5 x 5, strided": nn.Conv2d(72, 72, 5, stride=2, padding=2, groups=72, bias=False),
    "unpadded": nn.Conv2d(64, 64, 3, groups=64, bias=False),
    "oblong": nn.Conv2d(64, 64, (3, 5), stride=(1, 2), padding=(0, 2), groups=64, bias=False),
    "padded like TensorFlow": SameConv2d(64, 64, 5, 2, groups=64),
}


def _step(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    weight = next(layer.parameters())
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad.clone()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 16, 8), (3, 5, 5)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_are_torchs(name, shape, layout):
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name])
    x = torch.randn(shape[0], layer.in_channels, *shape[1:]).to(memory_format=layout)
    wanted = _step(layer, x)
    exact = _step(copy.deepcopy(layer).double(), x.double())
    speed_up_depthwise(layer)
    assert "_conv_forward" in vars(layer)
    for ours, torchs, truth in zip(_step(layer, x), wanted, exact, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours, torchs, rtol=0, atol=4e-6 * scale)
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_is_within_its_rounding(name):
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name])
    x = torch.randn(2, layer.in_channels, 12, 10).to(memory_format=torch.channels_last)
    wanted = _step(layer, x)
    speed_up_depthwise(layer)
    with torch.autocast("cpu", torch.bfloat16):
        result = _step(layer, x)
    assert result[2].dtype == torch.float32
    for ours, truth in zip(result, wanted, strict=True):
        torch.testing.assert_close(ours.float(), truth, rtol=0, atol=0.02 * truth.abs().max().item())


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(12, 10), (11, 10), (12, 9), (5, 5), (2, 4)])
def test_inference_pads_the_filter_to_the_same_effect(kernel, size):
    torch.manual_seed(0)
    layer = SameConv2d(6, 6, kernel, 2, groups=6)
    x = torch.randn(2, 6, *size)
    wanted = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-6)


def test_one_cell_by_hand():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    gradient = torch.tensor([[[[1.0, 0.0], [0.0, 10.0]]]])
    assert filter_gradient(x, gradient, (2, 2), (1, 1), (0, 0)).tolist() == [[[[51, 62], [84, 95]]]]


def test_only_wide_depthwise_layers_change_and_copies_are_independent():
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64, bias=False), nn.Conv2d(64, 64, 1, groups=64, bias=False)
    )
    speed_up_depthwise(net)
    assert ["_conv_forward" in vars(layer) for layer in net] == [False, True, False]
    twin = copy.deepcopy(net)
    x = torch.randn(1, 3, 8, 8)
    twin(x).sum().backward()
    assert net[1].weight.grad is None
    assert twin[1].weight.grad is not None
    assert twin[1]._conv_forward.args[0] is twin[1]


def test_without_gradients_it_is_the_plain_convolution():
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS["3 x 3"])
    x = torch.randn(1, 64, 7, 7)
    wanted = layer(x).detach()
    speed_up_depthwise(layer)
    with torch.no_grad():
        assert torch.equal(layer(x), wanted)
    assert not layer.requires_grad_(False)(x).requires_grad
