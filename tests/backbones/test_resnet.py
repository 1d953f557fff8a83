from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.backbones import resnet


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_of_the_networks_for_small_images(depth, count):
    with torch.device("meta"):
        net = getattr(resnet, f"resnet{depth}")(10)
        plain = getattr(resnet, f"resnet{depth}")(10, residual=False)
    assert sum(p.numel() for p in net.parameters()) == count  # the paper's table 6: 0.27 M to 1.7 M
    assert sum(p.numel() for p in plain.parameters()) == count  # neither shortcuts nor zero padding have weights
    weighty = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighty) == depth


def test_plain_and_residual_small_networks():
    x = torch.rand(2, 3, 32, 32)
    for keys, projections in (({}, 0), ({"shortcut": "projection"}, 2)):
        net = resnet.resnet20(10, **keys).eval()
        assert net(x).shape == (2, 10)
        assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in net.modules()) == projections
    plain = resnet.resnet20(taps=(0,), residual=False).eval()
    residual = resnet.resnet20(taps=(0,)).eval()
    for net in (plain, residual):
        for name, module in net.named_modules():
            if name.endswith("bn2"):
                nn.init.zeros_(module.weight)
    assert not plain(x)[0].any()
    assert torch.equal(residual(x)[0], residual.stages[0][:3](x))  # every block passes its input on


def test_a_plain_network_has_no_way_around_its_layers():
    plain, residual = resnet.resnet18(residual=False).eval(), resnet.resnet18().eval()
    for net in (plain, residual):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module is not net.stages[0][1]:
                nn.init.zeros_(module.weight)
    x = torch.rand(1, 3, 64, 64)
    assert not any(o.any() for o in plain(x))
    projections = [m for m in residual.modules() if isinstance(m, nn.Sequential) and len(m) == 2]
    assert len([m for m in projections if isinstance(m[0], nn.Conv2d) and m[0].kernel_size == (1, 1)]) == 3
    assert len([p for p in plain.parameters() if p.ndim == 4]) == 17


def test_a_block_whose_last_weights_are_0_is_the_identity():
    # COURSE: for activations >= 0.
    block = resnet.resnet18(taps=(1,)).stages[1][1][0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), x)


def test_shortcuts_that_pad_with_zeros():
    x = torch.rand(1, 128, 6, 6)
    y = resnet.ZeroPaddedShortcut(256, 2)(x)
    assert torch.equal(y[:, :128], x[..., ::2, ::2])
    assert y.shape == (1, 256, 3, 3)
    assert not y[:, 128:].any()
    with torch.device("meta"):
        projection, zero = (
            sum(p.numel() for p in resnet.resnet34(1000, shortcut=s).parameters()) for s in ("projection", "zero")
        )
    # 1 x 1 weights from 64, 128, 256 channels to twice as many, and their BatchNorm.
    assert projection - zero == sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))
    assert resnet.resnet50(shortcut="zero").eval()(torch.rand(1, 3, 64, 64))[-1].shape == (1, 2048, 2, 2)
