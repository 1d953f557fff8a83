"""EfficientNet-Lite0 to 2: EfficientNet (Tan & Le 2019, arXiv 1905.11946) with ReLU6, no squeeze-and-excitation."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Classifier, Network, StagedBackbone, family

# kernel, stride, expansion, output channels, repeats: table 1 of the paper
_GROUPS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# How much wider and deeper than that, and the published size in pixels; the first and last group keep their depth, the
# stem and the last 1 x 1 convolution their width.
_SCALES = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same", with which the published weights were trained.

    A stride of 2 on an even size pads one pixel more at the right and bottom than at the left and top.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            kernel, stride = self.kernel_size[0], self.stride[0]
            even = stride == 2 and not any(n % 2 for n in x.shape[-2:])
            if even and self.groups > 1 and torch.is_inference_mode_enabled():
                # A filter with a first row and column of zeros sees the same; that spares copying the map.
                return F.conv2d(x, F.pad(self.weight, (1, 0, 1, 0)), self.bias, 2, kernel // 2, groups=self.groups)
            high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; plus the input where the shapes agree. The names are the weights' own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.widens:
            self._expand_conv = SameConv2d(inputs, middle, 1)
            self._bn0 = _norm(middle)
        self._depthwise_conv = SameConv2d(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = SameConv2d(middle, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


def _width(width: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth less: torchvision's ``_make_divisible``, whose import
    would bring torch's compiler, which takes seconds."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _network(name: str) -> Network:
    """Five stages of strides 2, 4, 8, 16, 32; pixels come as (x - 127) / 128."""
    wider, deeper, size = _SCALES[name]
    groups: list[list[nn.Module]] = []
    channels = 32
    stem, norm = SameConv2d(3, channels, 3, 2), _norm(channels)
    for index, (kernel, stride, expansion, width, repeats) in enumerate(_GROUPS):
        groups.append([])
        outputs = _width(width * wider)
        for repeat in range(repeats if index in (0, len(_GROUPS) - 1) else math.ceil(repeats * deeper)):
            groups[-1].append(InvertedResidual(channels, outputs, kernel, 1 if repeat else stride, expansion))
            channels = outputs
    last, last_norm, logits = SameConv2d(channels, 1280, 1), _norm(1280), nn.Linear(1280, 1000)
    # The names of the published weights.
    named = {"_conv_stem": stem, "_bn0": norm, "_blocks": nn.ModuleList(itertools.chain(*groups))}
    net = nn.ModuleDict({**named, "_conv_head": last, "_bn1": last_norm, "_fc": logits})
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    # Groups that keep the stride continue the stage before.
    layers = [[stem, norm, nn.ReLU6(inplace=True), *groups[0]], groups[1], groups[2]]
    stages = [nn.Sequential(*stage) for stage in (*layers, groups[3] + groups[4], groups[5] + groups[6])]
    body = StagedBackbone(stages, mean=(127.0,) * 3, std=(128.0,) * 3, size=size)
    pool = (nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
    return net, Classifier(body, nn.Sequential(last, last_norm, *pool, logits))


efficientnet_lite0, efficientnet_lite1, efficientnet_lite2 = family(_network, *_SCALES)
