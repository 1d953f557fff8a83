"""torchvision's GoogLeNet (Szegedy et al. 2015, arXiv 1409.4842), which has BatchNorm: filter sizes side by side."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux

from detkit.backbones.base import Backbone, Classifier, Parts, family, he_init, set_logits
from detkit.backbones.pretrained import load_weights, refuse_imagenet


class Inception5x5(Inception):
    """The paper's block: its third branch filters 5 x 5, where torchvision's has 3 x 3 (a bug kept for its weights)."""

    def __init__(self, *widths: int, **keys: Any) -> None:
        super().__init__(*widths, **keys)
        self.branch3[1] = BasicConv2d(widths[4], widths[5], kernel_size=5, padding=2)


class SideClassifier(Classifier):
    """With the paper's side branches on 4a and 4d, which push gradients into the middle while training."""

    def __init__(self, backbone: Backbone, classifier: nn.Sequential, sides: dict[int, InceptionAux]) -> None:
        super().__init__(backbone, classifier)
        last: Any = classifier[-1]
        for side in sides.values():
            side.fc2 = set_logits(nn.Sequential(side.fc2), last.out_features)[0]
        self.sides = nn.ModuleDict({str(block): side for block, side in sides.items()})

    def logits(self, x: Tensor) -> list[Tensor]:
        *before, middle, last = self.backbone.stages
        for stage in before:
            x = stage(x)
        answers = []
        for name, block in middle.named_children():
            x = block(x)
            if name in self.sides:
                answers.append(self.sides[name](x))
        return [self.classifier(last(x)), *answers]


def _parts(name: str, weights: str | None, *, kernel: Literal[3, 5] = 3, side_branches: bool = False) -> Parts:
    """Five stages of strides 2 to 32: convolution, two more, blocks 3a and 3b, 4a to 4e, 5a and 5b.

    kernel: of each block's third branch, torchvision's 3 or the paper's 5; side_branches: the classifier's
    ``Classifier.logits`` answers at 4a and 4d too (a detector has no use for them, and gets none).
    """
    if kernel != 3:
        refuse_imagenet(weights, "kernel")
    blocks = [BasicConv2d, Inception if kernel == 3 else Inception5x5, InceptionAux]
    net = GoogLeNet(aux_logits=side_branches, init_weights=False, blocks=blocks)
    he_init(net)
    load_weights(net, weights, name)
    stages = [
        net.conv1,
        nn.Sequential(net.maxpool1, net.conv2, net.conv3),
        nn.Sequential(net.maxpool2, net.inception3a, net.inception3b),
        nn.Sequential(
            net.maxpool3, net.inception4a, net.inception4b, net.inception4c, net.inception4d, net.inception4e
        ),
        nn.Sequential(net.maxpool4, net.inception5a, net.inception5b),
    ]
    classifier = [net.avgpool, nn.Flatten(), net.dropout, net.fc]
    make = partial(SideClassifier, sides={1: net.aux1, 4: net.aux2}) if side_branches else Classifier
    # The weights came from TensorFlow with inputs in -1..1.
    half = (127.5,) * 3
    return Parts(stages, (64, 192, 480, 832, 1024), classifier, mean=half, std=half, make=make)


googlenet = family("googlenet", _parts)
