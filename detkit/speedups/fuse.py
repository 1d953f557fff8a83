"""BatchNorms folded into the convolutions before them, where a detector detects; weights as oneDNN wants them.

In evaluation mode a BatchNorm multiplies and adds constants, and so can the convolution: one pass over the maps instead
of two (Jacob et al. 2018, arXiv 1712.05877, section 3.2). The layers, what is trained and what is saved stay as they
are: a convolution computes with folded weights only without gradients, and folds anew once any of the numbers changed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detkit.backbones.efficientnet_lite import SameConv2d
from detkit.detector import Detector
from detkit.devices import keep_freed_memory

# Blocks, besides nn.Sequential, that call each of their layers once and in the order in which they hold them.
_CONVOLUTIONS = (nn.Conv2d, SameConv2d)
_NEARLY = 1e-3  # of the largest answer
_IN_ORDER = {
    "torchvision.models.densenet._DenseLayer",
    "torchvision.models.googlenet.BasicConv2d",
    "torchvision.models.resnet.BasicBlock",
    "torchvision.models.resnet.Bottleneck",
    "detkit.backbones.efficientnet_lite.InvertedResidual",
}


def fuse_batchnorms(detector: Detector) -> int:
    """Makes a detector in evaluation mode detect sooner, and find the same to rounding.

    Convolutions and BatchNorms are paired where nn.Sequential, or a block that is known to do as it does, holds them
    one after the other and nobody else holds them. Should the detector then answer otherwise, all stays as it was.
    Layers with hooks compute what they would without.

    Args:
        detector: Changed in place; its parameters and their names stay the same.

    Returns:
        How many BatchNorms are folded.
    """
    if detector.device.type == "cpu":
        keep_freed_memory()
    pairs = list(_pairs(detector))
    if not pairs or detector.mean.is_inference():
        return 0
    plain = _answers(detector)
    for pair in pairs:
        vars(pair.conv)["forward"], vars(pair.norm)["forward"] = pair.convolve, pair.normalise
    both = zip(plain, _answers(detector), strict=True)
    if all(torch.allclose(a, b, rtol=0, atol=_NEARLY * float(a.abs().max())) for a, b in both):
        return len(pairs)
    for pair in pairs:
        del vars(pair.conv)["forward"], vars(pair.norm)["forward"]
    return 0


def _pairs(detector: Detector) -> Iterator[_Folded]:
    places = Counter(child for parent in detector.modules() for child in parent._modules.values())
    for parent in detector.modules():
        name_of_kind = f"{type(parent).__module__}.{type(parent).__qualname__}"
        if type(parent).forward is nn.Sequential.forward or name_of_kind in _IN_ORDER:
            for (_, conv), (name, norm) in pairwise(parent._modules.items()):
                once = places[conv] == places[norm] == 1
                if once and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    yield _Folded(detector, parent, name, conv, norm)


def _answers(detector: Detector) -> list[Tensor]:
    """What the head makes of noise."""
    height, width = detector.resize.input_size
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(detector.device) * 255
    regions = None if detector.proposals is None else [noise.new_tensor([[0, 0, width, height]])]
    with torch.inference_mode():
        raw = detector.raw(noise, regions)
    return [value for value in raw.values() if value.is_floating_point() and value.numel()]


class _Packed:
    """Stands for the ``_conv_forward`` of a layer whose weights are kept in the order that oneDNN computes with.

    Torch makes that order anew at each call; on one thread it also leaves 1 x 1 convolutions of a few images to a loop
    that takes twice the time.
    """

    def __init__(self, layer: nn.Conv2d, x: Tensor) -> None:
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # as torch.compile does
        self.how = layer.padding, layer.stride, layer.dilation, layer.groups
        self.weight = pack(layer.weight.to_mkldnn(), *self.how, x.shape)
        self.plain = layer._conv_forward

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype is not torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self.plain(x, weight, bias)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, bias, *self.how, "none", [], "")


class _Folded:
    """Stands for the ``forward`` of a convolution and its BatchNorm; copied layers copy it with themselves."""

    def __init__(self, detector: Detector, parent: nn.Module, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.parent, self.name, self.conv, self.norm, self.trainings = parent, name, conv, norm, detector.trainings
        self.made: tuple[list[Tensor | None], list[float], nn.Conv2d] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "made": None}

    def convolve(self, x: Tensor) -> Tensor:
        """With the BatchNorm's part, where nobody looks at what is between them."""
        conv, norm = self.conv, self.norm
        learning = torch.is_grad_enabled() or norm.training or torch.compiler.is_compiling()
        watched = conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks
        others = type(conv) not in _CONVOLUTIONS or type(norm) is not nn.BatchNorm2d or norm.running_mean is None
        moved = self.parent._modules.get(self.name) is not norm or conv.weight.is_inference()
        if learning or watched or others or moved:
            return type(conv).forward(conv, x)
        result = type(conv).forward(self.layer(x), x)
        result.normalised_by = norm  # type: ignore[attr-defined]
        return result

    def normalise(self, x: Tensor) -> Tensor:
        """What the convolution has normalised passes."""
        return x if vars(x).pop("normalised_by", None) is self.norm else type(self.norm).forward(self.norm, x)

    def layer(self, x: Tensor) -> nn.Conv2d:
        """The convolution with folded weights, made anew if what it was made of has changed."""
        conv, norm = self.conv, self.norm
        tensors = [*conv._parameters.values(), *norm._parameters.values(), *norm._buffers.values()]
        states = ((one._version, one.data_ptr()) for one in tensors if one is not None)
        numbers = [norm.eps, *self.trainings, *chain.from_iterable(states)]
        made = self.made
        if made is None or numbers != made[1] or not all(map(is_, tensors, made[0])):
            layer = copy.copy(conv)
            # Weights that were made in inference mode could not be copied outside of it.
            with torch.inference_mode(False), torch.no_grad():
                statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
                weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
                layer._parameters = {"weight": weight, "bias": bias}
                usual = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
                on_cpu = torch.backends.mkldnn.is_available() and weight.device.type == "cpu"
                if usual and on_cpu and weight.dtype is torch.float32:
                    vars(layer)["_conv_forward"] = _Packed(layer, x)
            self.made = made = (tensors, numbers, layer)
        return made[2]
