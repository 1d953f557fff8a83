"""What heads put between features and their own layers: layers made here, or the rest of the backbone's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.interfaces import Head
from detkit.ops.inputs import check_positive

if TYPE_CHECKING:
    from detkit.detector import Detector

Trunk = TypeVar("Trunk", bound=nn.Module)


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


def output_width(trunk: nn.Module, channels: int, size: int) -> int:
    """The numbers that ``trunk`` gives for one region (channels, size, size).

    Args:
        trunk: Any module.
        channels: Of the region.
        size: Of the region in cells.

    Raises:
        ValueError: It does not take this size or these channels.
    """
    like, was = next(trunk.parameters(), torch.zeros(0)), trunk.training
    try:
        with torch.no_grad():
            return trunk.eval()(like.new_zeros(1, channels, size, size)).flatten(1).shape[1]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the trunk does not take {channels} channels at size {size} x {size}: {reason}") from None
    finally:
        trunk.train(was)


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
    layers = linear_layers(head.trunk) if isinstance(head, TrunkHead) and head.takes_proposals else []
    if not isinstance(head, TrunkHead) or not layers:
        do = "take a detector with head roi and layers: mlp, or with a backbone like vgg16"
        raise DetkitError("the detector has no fully connected layers to split", "model.head", do)
    if model["head"].get("svd"):
        raise DetkitError("its layers are split already", "model.head.svd", "start from the model before that")
    try:
        splits = split_layers(head.trunk, ranks, decompose=True)
    except ValueError as error:
        do = f"give a rank for each of the {len(layers)} layers, or fewer"
        raise DetkitError(str(error), "--ranks", do) from None
    detector.config = {**detector.config, "model": {**model, "head": {**model["head"], "svd": list(ranks)}}}
    detector.scores, detector.record = {}, {**detector.record, "svd": list(ranks)}
    return splits


def linear_layers(trunk: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The fully connected layers inside ``trunk``, each with the module that holds it and its name there."""
    modules = list(trunk.modules())
    return [(m, name, x) for m in modules for name, x in m.named_children() if isinstance(x, nn.Linear)]


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
    places = linear_layers(trunk)
    if len(ranks) > len(places):
        raise ValueError(f"svd has {len(ranks)} ranks, but the trunk has {len(places)} fully connected layers")
    chosen = [(*place, rank) for place, rank in zip(places, ranks, strict=False)]
    for _, _, layer, rank in chosen:
        if not 1 <= rank <= min(layer.weight.shape):
            raise ValueError(f"svd: a rank of {rank} does not lie within 1..{min(layer.weight.shape)}")
    splits = []
    for parent, name, layer, rank in chosen:
        two, error = _two(layer, rank, decompose)
        parent.add_module(name, two)
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
