"""ShuffleNets v2 (Ma et al. 2018, arXiv 1807.11164), under the names that torchvision's weights have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detkit.backbones import FAMILIES
from detkit.backbones.base import Classifier, Network, StagedBackbone, family
from detkit.backbones.layers import Act, conv_block

# Table 5: channels of the stem, the three groups of blocks and the last convolution.
_WIDTHS = {
    "shufflenet_v2_x0_5": (24, 48, 96, 192, 1024),
    "shufflenet_v2_x1_0": (24, 116, 232, 464, 1024),
    "shufflenet_v2_x1_5": (24, 176, 352, 704, 1024),
    "shufflenet_v2_x2_0": (24, 244, 488, 976, 2048),
}
_BLOCKS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, the others are convolved, then both are shuffled (figure 3c and d).

    Args:
        inputs: Channels; where they are not the ``outputs``, the unit halves the map and convolves both halves.
        outputs: Channels, an even number.
        act: The activation.
    """

    def __init__(self, inputs: int, outputs: int, act: Act) -> None:
        super().__init__()
        half, stride = outputs // 2, 1 if inputs == outputs else 2

        def depthwise(channels: int) -> nn.Sequential:
            return conv_block(channels, channels, 3, stride=stride, groups=channels, act=None)

        first = [*depthwise(inputs), *conv_block(inputs, half, 1, act=act)] if stride == 2 else []
        self.branch1 = nn.Sequential(*first)
        reduce = conv_block(inputs if stride == 2 else half, half, 1, act=act)
        self.branch2 = nn.Sequential(*reduce, *depthwise(half), *conv_block(half, half, 1, act=act))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        a, b = (x, x) if len(self.branch1) else x.chunk(2, dim=1)
        pair = self.branch1(a), self.branch2(b)
        if torch.compiler.is_compiling():  # exported graphs run sooner so, torch as below; the bits are the same
            return torch.stack(pair, dim=2).flatten(1, 2)
        return functional.channel_shuffle(torch.cat(pair, dim=1), 2)


def _network(name: str, *, act: Act = "relu") -> Network:
    """Five stages of strides 2 to 32: convolution, pooling, three groups; the last 1 x 1 belongs to the classifier.

    Args:
        act: "leaky": LeakyReLU 0.1 in place of each ReLU, as in NanoDet, which starts from the same weights.
    """
    stem, *groups, last = _WIDTHS[name]
    stages: list[nn.Module] = [conv_block(3, stem, 3, stride=2, act=act), nn.MaxPool2d(3, 2, 1)]
    inputs = stem
    for outputs, blocks in zip(groups, _BLOCKS, strict=True):
        units = [ShuffleUnit(before, outputs, act) for before in (inputs, *[outputs] * (blocks - 1))]
        stages.append(nn.Sequential(*units))
        inputs = outputs
    conv, logits = conv_block(inputs, last, 1, act=act), nn.Linear(last, 1000)
    names = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5", "fc")
    net = nn.ModuleDict(dict(zip(names, (*stages, conv, logits), strict=True)))
    classifier = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), logits)
    return net, Classifier(StagedBackbone(stages, [stem, stem, *groups]), classifier)


shufflenet_v2_x0_5, shufflenet_v2_x1_0, shufflenet_v2_x1_5, shufflenet_v2_x2_0 = family(
    _network, *FAMILIES["shufflenet"]
)
