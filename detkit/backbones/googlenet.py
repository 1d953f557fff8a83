"""torchvision's GoogLeNet (Szegedy et al. 2015, arXiv 1409.4842), which has BatchNorm: filter sizes side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux

from detkit.backbones.base import Classifier, Frozen, Network, StagedBackbone, family, he_init


class Inception5x5(Inception):
    """The paper's block: its third branch filters 5 x 5, where torchvision's has 3 x 3 (a bug kept for its weights)."""

    def __init__(self, *widths: int, conv_block: Callable[..., nn.Module] | None = None) -> None:
        super().__init__(*widths, conv_block=conv_block)
        self.branch3[1] = BasicConv2d(widths[4], widths[5], kernel_size=5, padding=2)


_MIDDLE, _READ = 3, ("1", "4")  # the stage inside which the side branches begin, after these layers: blocks 4a and 4d


class SideBackbone(StagedBackbone):
    """While it trains it hands out the maps of 4a and 4d too, in order of depth.

    Raises:
        ValueError: taps that end before that stage, or frozen that reaches it.
    """

    def freeze(self, count: Frozen) -> None:
        """As ``StagedBackbone``'s."""
        if self.taps[-1] < _MIDDLE:
            raise ValueError(f"side_branches begin in stage {_MIDDLE}, so taps must reach it, got {list(self.taps)}")
        if count == "all" or count > _MIDDLE:
            raise ValueError(f"side_branches teach stage {_MIDDLE}, so frozen must be at most {_MIDDLE}, got {count}")
        super().freeze(count)

    def _stage(self, index: int, x: Tensor, outputs: list[Tensor]) -> Tensor:
        if index != _MIDDLE or not self.training:
            return super()._stage(index, x, outputs)
        for name, layer in self.stages[index].named_children():
            x = layer(x)
            if name in _READ:
                outputs.append(x)
        return x


class SideClassifier(Classifier):
    """With the paper's side branches on 4a and 4d (section 5), which push gradients into the middle while training."""

    body = SideBackbone

    def __init__(self, backbone: StagedBackbone, classifier: nn.Sequential, sides: Sequence[InceptionAux]) -> None:
        super().__init__(backbone, classifier)
        parts = [
            (nn.AdaptiveAvgPool2d(4), s.conv, nn.Flatten(), s.fc1, nn.ReLU(inplace=True), s.dropout, s.fc2)
            for s in sides
        ]
        self.sides = nn.ModuleList(nn.Sequential(*part) for part in parts)

    def branches(self, body: StagedBackbone) -> Mapping[int, nn.Sequential]:
        before = sum(tap < _MIDDLE for tap in body.taps)
        return {before + k: side for k, side in enumerate(self.sides) if isinstance(side, nn.Sequential)}


def _network(name: str, *, kernel: Literal[3, 5] = 3, side_branches: bool = False) -> Network:
    """Five stages of strides 2 to 32: convolution, two more, blocks 3a and 3b, 4a to 4e, 5a and 5b.

    Args:
        name: Of the network.
        kernel: Of each block's third branch, torchvision's 3 or the paper's 5.
        side_branches: Two more classifiers, on 4a and 4d, whose loss times 0.3 is added in training, for the head
            ``classify`` alone: detection has no use for them.
    """
    blocks = [BasicConv2d, Inception if kernel == 3 else Inception5x5, InceptionAux]
    net = GoogLeNet(aux_logits=side_branches, init_weights=False, blocks=blocks)
    he_init(net)
    stages = [
        net.conv1,
        nn.Sequential(net.maxpool1, net.conv2, net.conv3),
        nn.Sequential(net.maxpool2, net.inception3a, net.inception3b),
        nn.Sequential(net.maxpool3, *(getattr(net, f"inception4{block}") for block in "abcde")),
        nn.Sequential(net.maxpool4, net.inception5a, net.inception5b),
    ]
    half = (127.5,) * 3  # the weights came from TensorFlow with inputs in -1..1
    body = StagedBackbone(stages, (64, 192, 480, 832, 1024), mean=half, std=half)
    classifier = nn.Sequential(net.avgpool, nn.Flatten(), net.dropout, net.fc)
    if side_branches:
        return net, SideClassifier(body, classifier, (net.aux1, net.aux2))
    return net, Classifier(body, classifier)


(googlenet,) = family(_network, "googlenet", published={"kernel": 3})
