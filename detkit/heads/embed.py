"""Embeddings: a vector per image, alike for one identity and unlike for others, whether it was trained on or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.heads.image import ImageHead, whole_boxes
from detkit.structures import Loss, Target


class Embed(ImageHead):
    """A vector per image, learned from pairs and triplets of a batch; its ``extra["embedding"]`` is the answer.

    Batches need several images of an identity (``train.per_identity``). Classes are identities; those that are matched
    later need not be among them.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: Not asked for.
        trunk: The rest of the backbone's classifier, used with ``layers: backbone``.
        layers: The last map pooled to ``cells`` x ``cells``, or the rest of the backbone's own classifier.
        cells: See ``layers``.
        hidden: Widths of fully connected layers with ReLU after that.
        dropout: Before the last layer.
        dim: Numbers of a vector.
        pairs: ``triplet`` (Schroff et al. 2015, arXiv 1503.03832, with semi-hard negatives), ``contrastive`` (Hadsell
            et al. 2006), both of vectors of length 1; or ``logistic``: a sigmoid of weighted differences of sigmoids
            (Koch et al. 2015), which is the same as of differences of weighted ones.
        difference: Of ``logistic``: |a - b| or ``chi_square``, (a - b)^2 / (a + b).
        margin: Of triplets of squared distances, and of contrastive distances.

    Raises:
        DetkitError: ``layers: backbone``, and the backbone gives no trunk.
        ValueError: An option out of its range.
    """

    takes_identities = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        *,
        layers: Literal["pool", "backbone"] = "pool",
        cells: int = 1,
        hidden: tuple[int, ...] = (),
        dropout: float = 0.0,
        dim: int = 64,
        pairs: Literal["triplet", "contrastive", "logistic"] = "triplet",
        difference: Literal["absolute", "chi_square"] = "absolute",
        margin: float = 0.2,
    ) -> None:
        if dim < 1 or margin <= 0:
            raise ValueError(f"dim must be at least 1 and margin above 0, got {dim} and {margin}")
        super().__init__(channels, strides, num_classes, dim, trunk, layers, cells, hidden, dropout)
        nn.init.kaiming_normal_(self.last.weight, nonlinearity="linear")
        self.pairs, self.margin = pairs, margin
        self.measure = difference if pairs == "logistic" else "cosine"
        self.protocol = "match" if self.measure == "cosine" else f"match_{difference}"
        if pairs == "logistic":
            self.weight, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(()))

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """embedding (B, dim) float32, of maps (B, C_l, H_l, W_l)."""
        table, logistic = self.table(features), self.pairs == "logistic"
        return {"embedding": table.sigmoid() * F.softplus(self.weight) if logistic else F.normalize(table)}

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """``triplets``, counted by pairs of one identity; else ``same`` and ``different``, counted by pairs."""
        known = [i for i, target in enumerate(targets) if target.image_label is not None]
        labels = torch.tensor([targets[i].image_label for i in known], device=sizes.device)
        vectors, same = raw["embedding"][known], labels[:, None] == labels
        if self.pairs == "triplet":
            return {"triplets": semi_hard_triplets(vectors, same, self.margin)}
        first, second = torch.triu_indices(len(labels), len(labels), 1, device=sizes.device)
        a, b, alike = vectors[first], vectors[second], same[first, second]
        if self.pairs == "contrastive":
            distance = ((a - b).square().sum(1) + 1e-12).sqrt()
            each = torch.where(alike, distance.square(), (self.margin - distance).clamp(min=0).square())
        else:
            gap = (a - b).abs()
            gap = gap if self.measure == "absolute" else gap.square() / (a + b).clamp(min=1e-12)
            each = F.binary_cross_entropy_with_logits(self.bias - gap.sum(1), alike.to(gap), reduction="none")
        chosen = {"same": alike, "different": ~alike}
        return {name: Loss((each * rows).sum(), rows.sum().to(each)) for name, rows in chosen.items()}

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One answer, the whole image with its ``embedding`` (B, dim); score and label say nothing."""
        boxes = whole_boxes(sizes, raw["embedding"])
        return torch.ones_like(boxes[:, :1]), boxes, raw


def semi_hard_triplets(vectors: Tensor, same: Tensor, margin: float) -> Loss:
    """max(0, d(a, p) - d(a, n) + margin) of squared distances, for every pair of one identity.

    Its negative is the nearest that is farther than the positive, so that neither the hardest nor easy ones teach;
    where there is none, the farthest (Schroff et al. 2015, section 3.2).

    Args:
        vectors: (B, D) of length 1.
        same: (B, B) bool, of one identity.
        margin: Above 0.
    """
    if not len(vectors):  # no image of the batch is labelled
        return Loss(vectors.sum(), vectors.new_zeros(()))
    distance = 2 - 2 * vectors @ vectors.T
    anchor, positive = (same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
    near, others = distance[anchor, positive], distance[anchor]
    usable = ~same[anchor]
    beyond = others.masked_fill(~(usable & (others > near[:, None])), torch.inf).amin(1)
    farthest = others.masked_fill(~usable, -torch.inf).amax(1)
    each = (near - torch.where(beyond.isfinite(), beyond, farthest) + margin).clamp(min=0)[usable.any(1)]
    return Loss(each.sum(), each.new_tensor(float(len(each))))
