"""The sliding window, run as a convolution: a classifier looks at every window of an image in one pass.

A fully connected layer on the k x k cells of a window is a k x k convolution, and every further one a 1 x 1 convolution
(OverFeat, Sermanet et al. 2014, arXiv 1312.6229, section 3.5). So neighbouring windows share what they have in common,
and the map of scores has a cell for each window: 14 x 14 pixels give 1 x 1, 16 x 16 pixels 2 x 2 windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.backbones.base import Classifier
from detkit.errors import DetkitError
from detkit.heads.dense import DenseHead, WindowOptions
from detkit.heads.layers import exact_output
from detkit.heads.trunk import TrunkHead, output_shape, trunk_for
from detkit.ops.assign import Assignment, Objects, assign_iou
from detkit.ops.coder import Level, Priors
from detkit.ops.inputs import check_positive, check_shares
from detkit.ops.losses import BoxLoss
from detkit.options import takes
from detkit.structures import Loss, Target


class SlidingWindow(TrunkHead, DenseHead):
    """A classifier of windows, C classes and background, at every place of every map; each window may correct its box.

    Training asks every window, as crops of the image. Class scores are a softmax over C classes and background. It is
    kept in two parts whose product it is: objectness is all but background, the classes share it.

    Args:
        channels: Of the feature maps, equally many if they are several: one classifier serves them all, as it should
            for the scales of a ``Pyramid``.
        strides: Of the feature maps.
        num_classes: C.
        trunk: The rest of the backbone's classifier (``detkit.backbones.base.Classifier.split``), used with ``layers:
            backbone``.
        cells: A window's side in cells of its map, so in input pixels it is ``cells`` times the map's stride.
        span: That side in strides where it is another, as of networks without padding (LeNet-5 sees 32 pixels in 10
            cells of 2).
        layers: The classifier, the ``backbone``'s own made a convolution (its poolings may make steps of several
            cells), or a new one, ``conv``: cells x cells to ``width`` channels and 1 x 1 to as many.
        width: See ``layers``.
        boxes: Correct the window's box by R-CNN's deltas, or answer with the window itself.
        positive: IoU with an object from which a window shows it.
        negative: IoU below which, with all objects, a window is background; those between count for nothing.
        best: An object's best windows show it too, however little they overlap.
        box_loss: 1 - IoU of a kind.
        box_gain: Weight of the box term.
        options: ``WindowOptions``.

    Raises:
        DetkitError: ``layers: backbone``, and the backbone gives no trunk.
        ValueError: Options out of their range, or a trunk that has no windows of this size.
    """

    @takes(WindowOptions)
    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        trunk: nn.Sequential | None = None,
        *,
        cells: int = 7,
        span: float | None = None,
        layers: Literal["backbone", "conv"] = "conv",
        width: int = 256,
        boxes: bool = True,
        positive: float = 0.5,
        negative: float = 0.4,
        best: bool = True,
        box_loss: BoxLoss = "giou",
        box_gain: float = 2.0,
        **options: object,
    ) -> None:
        check_positive(cells=cells, width=width, span=cells if span is None else span)
        check_shares(positive=positive, negative=negative)
        if len(set(channels)) > 1:
            raise ValueError(f"sliding windows need equally many channels on all maps, not {channels}: take neck fpn")
        shape = channels[0], cells, cells
        trunk = trunk_for(layers, trunk, "conv")
        if trunk is None:
            first, second = nn.Conv2d(channels[0], width, cells), nn.Conv2d(width, width, 1)
            network = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
        else:
            network = _convolutions(trunk, shape)
        self.regresses = boxes  # ``outputs`` asks for it
        options |= {"box_loss": box_loss, "box_gain": box_gain, "classes": "softmax", "objectness": "one"}
        # ``levels`` knows the windows, so that the anchors do not matter.
        channels = [output_shape(network, shape)[0]]
        super().__init__(channels, strides[:1], num_classes, anchors=[[(1.0, 1.0)]], **options)
        self.strides, self.cells, self.from_backbone = tuple(strides), cells, trunk is not None
        self.trunk, self.step = network, _step(network, shape)
        self.sides = [float(cells if span is None else span) * stride for stride in strides]
        self.positive, self.negative, self.best = positive, negative, best
        self.class_rows = {"layers.": (4 if self.regresses else 0, 1, 1)}

    @property
    def outputs(self) -> int:
        """Numbers per window: the box code's 4 if there is one, class scores, background."""
        return (4 if self.regresses else 0) + self.num_classes + 1

    def first_bias(self, odds: float) -> Tensor:
        """(outputs,): all but background share the odds of an object."""
        bias = torch.zeros(self.outputs)
        bias[-1] = math.log(self.num_classes / odds)
        return bias

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """As ``DenseHead.raw``; a prior is a window, and the grid counts windows: 0 where a map is smaller than one."""
        parts, grid = [], []
        for feature in features:
            output = feature.new_zeros(feature.shape[0], self.outputs, 0, 0)
            if min(feature.shape[-2:]) >= self.cells:
                output = exact_output(self.layers[0], self.trunk(feature))  # type: ignore[arg-type]
            parts.append(output.permute(0, 2, 3, 1).flatten(1, 2))
            grid.append(tuple(output.shape[-2:]))
        table = torch.cat([part.float() for part in parts], dim=1)
        classes, background = table[..., -self.num_classes - 1 : -1], table[..., -1]
        return {
            "boxes": table[..., :4] if self.regresses else table.new_zeros(*table.shape[:2], 4),
            "objectness": classes.logsumexp(-1) - background,
            "classes": classes,
            "grid": torch.tensor(grid, device="cpu"),
        }

    def levels(self, raw: dict[str, Tensor]) -> list[Level]:
        """The windows of this batch; the first of a map begins in the image's corner."""
        return [
            Level(h, w, stride * self.step, raw["boxes"].new_tensor([[side, side]]), side / 2)
            for (h, w), stride, side in zip(raw["grid"].tolist(), self.strides, self.sides, strict=True)
        ]

    def assign(self, priors: Priors, objects: Objects, raw: dict[str, Tensor]) -> Assignment:
        """By IoU of window and object."""
        images = len(raw["objectness"])
        return assign_iou(priors.boxes, objects, images, positive=self.positive, negative=self.negative, best=self.best)

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """As ``DenseHead.loss``; without ``boxes`` there is no term ``box``.

        Raises:
            DetkitError: no window fits into the input, so there is nothing to learn.
        """
        if not raw["boxes"].shape[1]:
            what = f"no window fits into the input: they begin at {min(self.sides):.0f} pixels"
            raise DetkitError(what, "model.size", "raise model.size, or lower head.cells or the backbone's scales")
        terms = super().loss(raw, targets, sizes)
        if not self.regresses:
            del terms["box"]
        return terms


def convolutionalize(model: nn.Module, size: int | None = None) -> nn.Sequential:
    """``model``, a classifier, as a network for images of its size or larger, which scores every window.

    The windows' distance is the product of all strides. Weights are shared, not copied. The scores are those of the
    crops where no layer pads; padding (and what sees the whole image, as a gate of squeeze-and-excitation does) makes
    the borders of a crop differ from the inside of an image.

    Args:
        model: A ``detkit.backbones.base.Classifier`` or an nn.Sequential of layers, nn.Flatten and nn.Linear among
            them.
        size: Side of the images that it classifies; None: the one that a ``Classifier`` was published for.

    Returns:
        Images to (B, num_classes, h, w) scores.

    Raises:
        TypeError: Another kind of model.
        ValueError: No size, one that the classifier does not take, or a layer that has no convolution for its like.
    """
    if isinstance(model, Classifier):
        layers, channels = [*model.backbone.stages, *model.classifier], 3
        size = model.backbone.size if size is None else size
    elif isinstance(model, nn.Sequential):
        layers = list(model)
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    else:
        raise TypeError(f"model must be a Classifier or an nn.Sequential, got {type(model).__name__}")
    if size is None:
        raise ValueError("give the size in pixels of the images that the model classifies")
    return _convolutions(layers, (channels, size, size))


def _convolutions(layers: Iterable[nn.Module], shape: tuple[int, int, int]) -> nn.Sequential:
    """Layers that take (B, *shape) to one vector as layers that take it to (B, D, 1, 1), and larger maps to more."""
    after: tuple[int, ...] = shape
    made: list[nn.Module] = []
    flat: tuple[int, ...] = ()  # the (C, h, w) that the next fully connected layer sees, once they are flattened
    for layer in _leaves(layers):
        before, after = after, output_shape(layer, after)
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            made += _fixed_pooling(before[-2:], after[-2:])
        elif isinstance(layer, nn.Flatten):
            flat = flat or before
        elif isinstance(layer, nn.Linear) and flat:
            made.append(_convolution(layer, flat))
            flat = layer.out_features, 1, 1
        elif isinstance(layer, (nn.Softmax, nn.LogSoftmax)):
            made.append(type(layer)(dim=1))
        elif isinstance(layer, (nn.Linear, nn.AdaptiveMaxPool2d)) or (flat and layer.state_dict()):
            raise ValueError(f"a {type(layer).__name__} here has no convolution for its like")
        else:
            made.append(layer)
    network = nn.Sequential(*made)
    high, wide = output_shape(network, shape)[-2:]
    if (high, wide) != (1, 1):
        raise ValueError(f"a window of {shape[1]} cells leaves {high} x {wide} cells, not one")
    return network


def _leaves(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers in order, out of plain Sequentials; blocks stay whole."""
    for layer in layers:
        yield from _leaves(layer) if type(layer) is nn.Sequential else (layer,)


def _convolution(layer: nn.Linear, cells: tuple[int, ...]) -> nn.Conv2d:
    """A fully connected layer on ``cells`` (C, h, w), flattened, as a convolution of h x w that shares its weights."""
    channels, high, wide = cells
    made = nn.Conv2d(channels, layer.out_features, (high, wide), bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().view(-1, *cells), layer.weight.requires_grad)
    made.bias = layer.bias
    return made


def _fixed_pooling(cells: tuple[int, ...], pooled: tuple[int, ...]) -> list[nn.Module]:
    """The pooling of windows that an adaptive one from ``cells`` (h, w) to ``pooled`` is for a single one, if any."""
    high, wide = pooled
    if pooled == cells:
        return []
    if cells[0] % high or cells[1] % wide:
        what = f"a window of these cells leaves {cells[0]} x {cells[1]}, and the classifier pools to {high} x {wide}"
        raise ValueError(what)
    kernel = cells[0] // high, cells[1] // wide
    return [nn.AvgPool2d(kernel, 1 if pooled == (1, 1) else kernel)]


def _step(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Cells between neighbouring windows.

    Raises:
        ValueError: the network sees the whole map at once.
    """
    more = 4096  # so many that the cells that are left over at the end do not count
    windows = output_shape(network, (shape[0], shape[1] + more, shape[2] + more))[-1]
    if windows < 2:
        raise ValueError("this classifier pools the whole image, so it has no windows")
    return round(more / (windows - 1))
