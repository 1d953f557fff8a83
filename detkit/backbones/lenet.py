"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, "Gradient-Based Learning Applied to Document Recognition", section
II), as published, as built today, and as taught in courses. All want 32 pixels at least; none is padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Parts, family, he_init
from detkit.backbones.pretrained import load_weights

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

    def __init__(self) -> None:
        super().__init__()
        pairs = [(output, seen) for output, all_seen in enumerate(_C3) for seen in all_seen]
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)
        fan = torch.tensor([25.0 * len(_C3[output]) for output, _ in pairs])
        self.weight = nn.Parameter(torch.randn(len(pairs), 5, 5) / fan.sqrt()[:, None, None])
        self.bias = nn.Parameter(torch.zeros(len(_C3)))

    def forward(self, x: Tensor) -> Tensor:
        pairs: Tensor = self.pairs  # type: ignore[assignment]
        dense = self.weight.new_zeros(len(_C3), 6, 5, 5).index_put((pairs[0], pairs[1]), self.weight)
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

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        generator = torch.Generator().manual_seed(1998)
        codes = torch.randint(2, (out_features, in_features), generator=generator, device="cpu") * 2.0 - 1
        self.register_buffer("codes", codes.to(torch.get_default_device()))

    def forward(self, x: Tensor) -> Tensor:
        codes: Tensor = self.codes  # type: ignore[assignment]
        return -(x[:, None] - codes).square().sum(-1)


def _parts(name: str, weights: str | None, *, grey: bool = True) -> Parts:
    """Three stages of strides 1, 2, 4: C1, then S2 and C3, then S4 and C5, a 5 x 5 convolution to 120 channels.

    ``lenet5_1998`` has the paper's sparse C3, trainable subsampling, tanh and distances to codes as output; ``lenet5``
    ReLU and max pooling; ``lenet_course`` 8 and 16 filters instead of 6 and 16. grey: read one channel, the mean of the
    image's three. The classifier reads 32 x 32 pixels; of larger images it averages C5.
    """
    first, inputs, old = (8 if name == "lenet_course" else 6), (1 if grey else 3), name == "lenet5_1998"

    def act() -> nn.Module:
        return ScaledTanh() if old else nn.ReLU(inplace=True)

    def pool(channels: int) -> nn.Module:
        return nn.Sequential(Subsampling(channels), ScaledTanh()) if old else nn.MaxPool2d(2)

    c3 = SparseConv2d() if old else nn.Conv2d(first, 16, 5)
    stages = [
        nn.Sequential(*([Grey()] if grey else []), nn.Conv2d(inputs, first, 5), act()),
        nn.Sequential(pool(first), c3, act()),
        nn.Sequential(pool(16), nn.Conv2d(16, 120, 5), act()),
    ]
    output = RadialBasis(84, 10) if old else nn.Linear(84, 10)
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(120, 84), act(), output]
    net = nn.ModuleDict({"stages": nn.ModuleList(stages), "classifier": nn.Sequential(*classifier)})
    he_init(net, "linear" if old else "relu")
    load_weights(net, weights, name)
    return Parts(stages, [first, 16, 120], classifier, strides=(1, 2, 4), offsets=(2.5, 7.0, 16.0), size=32)


def _colour(name: str, weights: str | None, *, grey: bool = False) -> Parts:
    return _parts(name, weights, grey=grey)


_colour.__doc__ = _parts.__doc__

lenet5 = family("lenet5", _parts, (1, 2))
lenet5_1998 = family("lenet5_1998", _parts, (1, 2))
lenet_course = family("lenet_course", _colour, (1, 2))
