"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, "Gradient-Based Learning Applied to Document Recognition", section
II), as published, as built today, and as textbooks show it. All want 32 pixels at least; none is padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Classifier, Network, StagedBackbone, family, he_init, stages_and

# Table I: which of the six maps of S2 each of C3's sixteen sees.
_C3 = (
    *((k, (k + 1) % 6, (k + 2) % 6) for k in range(6)),
    *((k, (k + 1) % 6, (k + 2) % 6, (k + 3) % 6) for k in range(6)),
    *((k, (k + 1) % 6, (k + 3) % 6, (k + 4) % 6) for k in range(3)),
    (0, 1, 2, 3, 4, 5),
)


class Grey(nn.Module):
    """(B, 3, H, W) to the mean of the three channels, (B, 1, H, W): the paper's digits have no colour."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class SparseConv2d(nn.Module):
    """C3: a 5 x 5 convolution of (B, 6, H, W) to (B, 16, H - 4, W - 4) that has only the connections of table I."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        pairs = [(output, seen) for output, all_seen in enumerate(_C3) for seen in all_seen]
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)
        fan = torch.tensor([25.0 * len(_C3[output]) for output, _ in pairs])
        self.weight = nn.Parameter(torch.randn(len(pairs), 5, 5) / fan.sqrt()[:, None, None])
        self.bias = nn.Parameter(torch.zeros(len(_C3)))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.weight.new_zeros(len(_C3), 6, 5, 5).index_put(tuple(self.pairs), self.weight)
        return F.conv2d(x, dense, self.bias)


class Subsampling(nn.Module):
    """S2, S4: the mean of 2 x 2 cells, times a weight and plus a bias that each channel learns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) * self.weight[:, None, None] + self.bias[:, None, None]


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x), appendix A: of slope and size about 1 where it is used."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class RadialBasis(nn.Module):
    """The output layer: minus the squared distance of (B, in_features) to each class's fixed code of +1 and -1.

    The paper's codes are drawn digits; for any classes they are drawn by chance, as it says they could be.
    """

    codes: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        generator = torch.Generator().manual_seed(1998)
        codes = torch.randint(2, (out_features, in_features), generator=generator, device="cpu") * 2.0 - 1
        self.register_buffer("codes", codes.to(torch.get_default_device()))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.codes).square().sum(-1)


def _network(name: str, *, grey: bool = True) -> Network:
    """Three stages of strides 1, 2, 4: C1, then S2 and C3, then S4 and C5, a 5 x 5 convolution to 120 channels.

    ``lenet5_1998`` has the paper's sparse C3, trainable subsampling, tanh and distances to codes as output; ``lenet5``
    ReLU and max pooling; ``lenet_textbook`` 8 and 16 filters instead of 6 and 16. The classifier reads 32 x 32 pixels;
    of larger images it averages C5.

    Args:
        name: Of the network.
        grey: Read one channel, the mean of the image's three.
    """
    first, old = (8 if name == "lenet_textbook" else 6), name == "lenet5_1998"
    act, act_of = (ScaledTanh, {}) if old else (nn.ReLU, {"inplace": True})
    pools = [nn.Sequential(Subsampling(width), ScaledTanh()) if old else nn.MaxPool2d(2) for width in (first, 16)]
    c3 = SparseConv2d() if old else nn.Conv2d(first, 16, 5)
    stages = [
        nn.Sequential(*([Grey()] if grey else []), nn.Conv2d(1 if grey else 3, first, 5), act(**act_of)),
        nn.Sequential(pools[0], c3, act(**act_of)),
        nn.Sequential(pools[1], nn.Conv2d(16, 120, 5), act(**act_of)),
    ]
    output = RadialBasis(84, 10) if old else nn.Linear(84, 10)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(120, 84), act(**act_of), output)
    body = StagedBackbone(stages, [first, 16, 120], (1, 2, 4), offsets=(2.5, 7.0, 16.0), size=32)
    return he_init(stages_and(stages, classifier), "linear" if old else "relu"), Classifier(body, classifier)


def _textbook(name: str, *, grey: bool = False) -> Network:
    return _network(name, grey=grey)


_textbook.__doc__ = _network.__doc__

lenet5, lenet5_1998 = family(_network, "lenet5", "lenet5_1998", taps=(1, 2))
(lenet_textbook,) = family(_textbook, "lenet_textbook", taps=(1, 2))
