"""What heads put between features and their own layers: the pooling of regions (RoI pooling, RoI align or crops of the
pixels themselves), and layers made here or the rest of the backbone's classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.interfaces import Head
from detkit.ops.inputs import check_positive
from detkit.ops.roi import roi_align, roi_pool

if TYPE_CHECKING:
    from detkit.detector import Detector

Trunk = TypeVar("Trunk", bound=nn.Module)
# ImageNet's usual image: a region of this size is looked at on the level of stride 16.
CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16


class TrunkHead(Head, nn.Module):
    """A head with a trunk, which may be the rest of the backbone's classifier.

    Attributes:
        trunk: The layers between the features and the head's own.
        from_backbone: They are the backbone's.
    """

    trunk: nn.Module
    from_backbone: bool = False

    @property
    def backbone_trunk(self) -> nn.Module | None:
        """The trunk, if it is the backbone's: it learns at that one's rate."""
        return self.trunk if self.from_backbone else None


def trunk_for(layers: str, trunk: Trunk | None, instead: str) -> Trunk | None:
    """The backbone's trunk where ``layers: backbone`` asks for it, else None.

    Args:
        layers: The head's option.
        trunk: What the backbone gives.
        instead: What else ``layers`` may be.

    Raises:
        DetkitError: The backbone gives none.
    """
    if layers == "backbone" and trunk is None:
        raise DetkitError("the backbone gives no trunk", "head.layers", f"take layers: {instead}")
    return trunk if layers == "backbone" else None


class RegionPooling(nn.Module):
    """Regions as (R, C, size, size) in channels_last strides, from the level that suits each one's size.

    Args:
        strides: Of the maps.
        pool: ``max`` (Girshick 2015), ``align`` (He et al. 2017) or ``crops``: each region warped to size x size with
            its surroundings (Girshick et al. 2014, appendix A; what lies outside the input is 0, the mean colour of
            normalised pixels), which goes with the backbone ``identity``.
        size: Cells along a side of what comes out.
        sampling: Samples along a side of align's bins, 0 for about one per cell.
        padding: Pixels of its surroundings on every side of a crop.
        levels: Only the finest so many maps are looked at, 0 for all.
        aligned: False puts align's cells half a cell off, as it first was.

    Raises:
        DetkitError: ``pool`` does not fit the maps.
        ValueError: An option out of its range.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        pool: Literal["align", "max", "crops"] = "align",
        size: int = 7,
        sampling: int = 2,
        padding: int = 16,
        levels: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        check_positive(size=size)
        if not 0 <= levels <= len(strides):
            raise ValueError(f"levels must lie within 0..{len(strides)}, got {levels}")
        if (pool == "crops") != (list(strides) == [1]):
            do = "take backbone {name: identity, cnn: ...} for pool: crops, and another pool for feature maps"
            raise DetkitError(f"pool: {pool} does not fit maps of strides {strides}", "head.pool", do)
        if pool == "crops" and 2 * padding >= size:
            raise ValueError(f"padding of {padding} pixels on both sides leaves nothing of a size of {size}")
        self.strides, self.pool, self.size = tuple(strides[: levels or None]), pool, size
        self.sampling, self.padding, self.aligned = sampling, padding, aligned

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Regions of maps.

        Args:
            features: (B, C, H_l, W_l), of one C.
            rois: (R, 5), batch index and xyxy in input pixels.
        """
        features = features[: len(self.strides)]
        if len(features) == 1:
            return self._pooled(features[0], rois, self.strides[0])
        level = level_of(rois[:, 1:], self.strides)
        rows = [(level == i).nonzero().squeeze(1) for i in range(len(features))]
        parts = [
            self._pooled(feature, rois[row], stride).permute(0, 2, 3, 1).flatten(1)
            for feature, row, stride in zip(features, rows, self.strides, strict=True)
        ]
        table = torch.cat(parts)[torch.cat(rows).argsort()]
        torch._check(table.shape[0] == rois.shape[0])  # an exported graph has to be told
        return table.view(rois.shape[0], self.size, self.size, features[0].shape[1]).permute(0, 3, 1, 2)

    def _pooled(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        if self.pool == "max":
            return roi_pool(feature, rois, self.size, 1 / stride)
        if self.pool == "align":
            return roi_align(feature, rois, self.size, 1 / stride, self.sampling, self.aligned)
        # Align with a sample a pixel is a resize that averages where it shrinks.
        return roi_align(feature, with_context(rois, self.size, self.padding), self.size, 1 / stride, 0)


def with_context(rois: Tensor, size: int, padding: int) -> Tensor:
    """Regions enlarged about their centres so that, once warped, they fill all but a border.

    Args:
        rois: (R, 5), batch index and xyxy.
        size: Pixels along a side that they are warped to.
        padding: Of these, the border on every side.
    """
    factor = size / (size - 2 * padding)
    centre, half = (rois[:, 1:3] + rois[:, 3:]) / 2, (rois[:, 3:] - rois[:, 1:3]) / 2 * factor
    return torch.cat((rois[:, :1], centre - half, centre + half), dim=1)


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The level that each box is pooled from.

    k = floor(k0 + log2(sqrt(w h) / 224)), k0 the level of stride 16 (Lin et al. 2017, arXiv 1612.03144, eq. 1), limited
    to the levels there are.

    Args:
        boxes: (R, 4).
        strides: Rising.

    Returns:
        (R,) int64 places in ``strides``.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
    wanted = torch.log2(sides / CANONICAL_SIDE + 1e-8).floor() + math.log2(CANONICAL_STRIDE)
    steps = wanted.new_tensor([math.log2(stride) for stride in strides])
    return (wanted[:, None] >= steps).sum(1).sub(1).clamp(min=0)


class FlattenCells(nn.Module):
    """(R, C, h, w) to (R, h * w * C), cell by cell: a view of channels_last tensors, as RoI pooling returns them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def two_layers(channels: int, size: int, width: int) -> nn.Sequential:
    """Two fully connected layers of ``width`` with ReLU, on (R, channels, size, size)."""
    first, second = nn.Linear(channels * size * size, width), nn.Linear(width, width)
    return nn.Sequential(FlattenCells(), first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def region_trunk(
    backbones: nn.Module | None, channels: int, size: int, *, width: int = 1024, svd: list[int] | None = None
) -> nn.Module:
    """What makes a vector of a region's cells.

    Args:
        backbones: The rest of the backbone's classifier, without a first layer that pools: RoI pooling takes its place
            (Girshick 2015, section 2.2). None: two new layers.
        channels: Of a region.
        size: Of a region in cells.
        width: Of the new layers.
        svd: Ranks of the first fully connected layers, each of which becomes two (``split_layers``).
    """
    check_positive(width=width)
    trunk = two_layers(channels, size, width) if backbones is None else backbones
    if isinstance(trunk, nn.Sequential) and len(trunk) and isinstance(trunk[0], (nn.MaxPool2d, nn.AvgPool2d)):
        trunk = nn.Sequential(*list(trunk)[1:])
    if svd:
        split_layers(trunk, svd, decompose=False)
    return trunk


def output_shape(layer: nn.Module, shape: Sequence[int], name: str | None = None) -> tuple[int, ...]:
    """What ``layer`` makes of (B, *shape), without the B; nothing is computed.

    Args:
        layer: Any module.
        shape: Channels, mostly with height and width in cells.
        name: For the error; None: its class's.

    Raises:
        ValueError: It does not take this shape.
    """
    state = {key: t.detach().to("meta") for key, t in (*layer.named_parameters(), *layer.named_buffers())}
    try:
        with torch.no_grad():
            return torch.func.functional_call(layer, state, (torch.zeros(2, *shape, device="meta"),)).shape[1:]
    except RuntimeError as error:
        size, reason = " x ".join(str(side) for side in shape[1:]) or "1", str(error).splitlines()[0]
        what = f"{name or type(layer).__name__} does not take {shape[0]} channels at size {size}: {reason}"
        raise ValueError(what) from None


class Split(NamedTuple):
    """A fully connected layer that became two.

    Attributes:
        inputs: Of the layer.
        outputs: Of the layer.
        rank: Of the two.
        error: How far their product is from its weights, as a share of these (Frobenius norms; 1 where the weights were
            not looked at).
    """

    inputs: int
    outputs: int
    rank: int
    error: float

    def __str__(self) -> str:
        fewer = self.inputs * self.outputs / (self.rank * (self.inputs + self.outputs))
        what = f"{self.inputs} x {self.outputs} at rank {self.rank}: {fewer:.1f} times fewer multiplications"
        return f"{what}, weights off by {self.error:.1%}"


def compress_detector(detector: Detector, ranks: Sequence[int]) -> list[Split]:
    """Truncated SVD of a trained detector's trunk (Girshick 2015, section 3.1), in place.

    The detector's config says so, so that its file can be loaded. Its scores are forgotten: they were those of the
    whole layers.

    Args:
        detector: One with a head ``roi``.
        ranks: Of the first fully connected layers.

    Returns:
        What became of each layer.

    Raises:
        DetkitError: No such layers, layers that are split already, more ranks than layers, or a rank out of range.
    """
    head, model = detector.head, detector.config["model"]
    if not isinstance(head, TrunkHead) or not head.takes_proposals or not linear_layers(head.trunk):
        do = "take a detector with head roi and layers: mlp, or with a backbone like vgg16"
        raise DetkitError("the detector has no fully connected layers to split", "model.head", do)
    if model["head"].get("svd"):
        raise DetkitError("its layers are split already", "model.head.svd", "start from the model before that")
    try:
        splits = split_layers(head.trunk, ranks, decompose=True)
    except ValueError as error:
        do = f"give a rank for each of the {len(linear_layers(head.trunk))} layers, or fewer"
        raise DetkitError(str(error), "--ranks", do) from None
    detector.config = {**detector.config, "model": {**model, "head": {**model["head"], "svd": list(ranks)}}}
    detector.scores, detector.record = {}, {**detector.record, "svd": list(ranks)}
    return splits


def linear_layers(trunk: nn.Module) -> dict[str, nn.Linear]:
    """The fully connected layers inside ``trunk`` by name."""
    return {name: module for name, module in trunk.named_modules() if isinstance(module, nn.Linear)}


def split_layers(trunk: nn.Module, ranks: Sequence[int], decompose: bool) -> list[Split]:
    """Replaces the first fully connected layers inside ``trunk`` by two smaller ones each, of these ranks.

    Truncated SVD (Girshick 2015, section 3.1): W (u, v) = U S V^T becomes S V^T (t, v) without bias and U (u, t) with
    W's bias, t (u + v) multiplications instead of u v.

    Args:
        trunk: Changed in place.
        ranks: Of the first layers.
        decompose: With W's own singular vectors, so that their product is the matrix of rank t nearest to W; else with
            random weights (those of a file will take their place).

    Raises:
        ValueError: More ranks than layers, or a rank outside 1..min(u, v).
    """
    layers = linear_layers(trunk)
    if len(ranks) > len(layers):
        raise ValueError(f"svd has {len(ranks)} ranks, but the trunk has {len(layers)} fully connected layers")
    for layer, rank in zip(layers.values(), ranks, strict=False):
        if not 1 <= rank <= min(layer.weight.shape):
            raise ValueError(f"svd: a rank of {rank} does not lie within 1..{min(layer.weight.shape)}")
    splits = []
    for (name, layer), rank in zip(layers.items(), ranks, strict=False):
        two, error = _two(layer, rank, decompose)
        trunk.set_submodule(name, two)
        splits.append(Split(layer.in_features, layer.out_features, rank, error))
    return splits


@torch.no_grad()
def _two(layer: nn.Linear, rank: int, decompose: bool) -> tuple[nn.Sequential, float]:
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first = nn.Linear(layer.in_features, rank, bias=False, **kind)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **kind)
    if not decompose:
        return nn.Sequential(first, second), 1.0
    # The singular vectors of the smaller side are eigenvectors of W W^T or W^T W: a tenth of a whole SVD's work.
    weight = layer.weight.double()
    wide = layer.in_features >= layer.out_features
    squares, vectors = torch.linalg.eigh(weight @ weight.T if wide else weight.T @ weight)
    basis, squares = vectors[:, -rank:], squares.clamp(min=0)
    first.weight.copy_(basis.T @ weight if wide else basis.T)
    second.weight.copy_(basis if wide else weight @ basis)
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second), float((squares[:-rank].sum() / squares.sum().clamp(min=1e-300)).sqrt())
