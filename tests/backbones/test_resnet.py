from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.backbones import resnet


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_of_the_networks_for_small_pictures(depth, count):
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
