"""Heads that answer once for a whole image, and the first of them: image classification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.backbones.base import set_logits
from detkit.heads.dense import exact_output, of_wanted_classes
from detkit.heads.trunk import TrunkHead, output_width, trunk_for
from detkit.ops.losses import class_loss
from detkit.structures import Detections, Limits, Loss, Target

SIDE_GAIN = 0.3  # of side branches (Szegedy et al. 2014, arXiv 1409.4842, section 5)
_CELLS, _IMAGE = 7, 224  # of the published classifiers: cells along a side of the last map, pixels of the image


class ImageHead(TrunkHead):
    """The last map, pooled to ``cells`` x ``cells`` or through the backbone's own trunk, ``hidden`` layers, one output.

    Subclasses write ``raw``, ``loss`` and ``answers``. A finer map than the last is not looked at, so a neck that joins
    several is of no use. ``allows_mosaic`` is false: an image made of several has no one answer.
    """

    allows_mosaic = False
    protocol = "coco"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        outputs: int,
        trunk: nn.Module | None,
        layers: Literal["pool", "backbone"],
        cells: int,
        hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        for name, value in (("cells", cells), ("hidden", min(hidden, default=1))):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_share("dropout", dropout)
        self.num_classes, self.from_backbone = num_classes, layers == "backbone"
        given = trunk_for(layers, trunk, "pool")
        self.trunk = nn.AdaptiveAvgPool2d(cells) if given is None else given
        # A trunk that begins early may pool before it looks at as many cells as the last map has.
        width = output_width(self.trunk, channels[-1], max(_CELLS, math.ceil(_IMAGE / strides[-1])))
        parts: list[nn.Module] = []
        for size in hidden:
            parts += [nn.Linear(width, size), nn.ReLU(inplace=True)]
            width = size
        self.hidden = nn.Sequential(*parts, nn.Dropout(dropout))
        self.last = nn.Linear(width, outputs)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)

    def table(self, features: list[Tensor]) -> Tensor:
        """(B, outputs) float32 of maps (B, C_l, H_l, W_l)."""
        return exact_output(self.last, self.hidden(self.trunk(features[-1]).flatten(1)))

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Scores (B, C), boxes (B, 4) in input pixels, and more (B, ...) that goes with them."""
        raise NotImplementedError

    def lowest(self, conf: float) -> float:
        """The score that an answer must have under limits of ``conf``."""
        return conf

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections (torch, input pixels, clipped to ``sizes`` (B, 2) height, width; without class names), best first.

        One per class with a score of at least ``limits.conf``, all at the image's one box.
        """
        scores, boxes, more = self.answers(raw, sizes)
        scores = of_wanted_classes(torch.nan_to_num(scores, nan=-1), limits)
        boxes = boxes.clamp(min=0).minimum(sizes[:, [1, 0, 1, 0]].to(boxes))
        ordered, labels = scores.sort(dim=1, descending=True, stable=True)
        counts = (ordered >= max(self.lowest(limits.conf), 0.0)).sum(1).clamp(max=limits.max_detections).tolist()
        return [
            Detections(
                boxes[i].expand(n, 4),
                ordered[i, :n],
                labels[i, :n],
                extra={name: value[i].expand(n, *value.shape[1:]) for name, value in more.items()},
            )
            for i, n in enumerate(counts)
        ]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


class Classify(ImageHead):
    """Image classification: softmax over the classes, an answer being a detection of the whole image.

    Images are labelled by ``Target.image_label`` (class folders have one each); one without teaches nothing.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: C.
        trunk: The rest of the backbone's classifier, used with ``layers: backbone``.
        sides: Branches that end in logits (``detkit.backbones.base.Classifier.branches``), by the place of their map in
            training.
        layers: The last map averaged (``pool``), or the rest of the backbone's own classifier up to its logits
            (``backbone``: EfficientNet's last convolution, VGG's fc6 and fc7).
        hidden: Widths of fully connected layers with ReLU after that.
        dropout: Before the last layer.
        smoothing: Of the labels.

    Raises:
        DetkitError: ``layers: backbone``, and the backbone gives no trunk.
        ValueError: An option out of its range.
    """

    protocol = "classify"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        trunk: nn.Module | None = None,
        sides: Mapping[int, nn.Sequential] | None = None,
        *,
        layers: Literal["pool", "backbone"] = "pool",
        hidden: tuple[int, ...] = (),
        dropout: float = 0.2,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(channels, strides, num_classes, num_classes, trunk, layers, 1, hidden, dropout)
        _check_share("smoothing", smoothing)
        sides = sides or {}
        self.smoothing, self._places = smoothing, tuple(sides)
        self.sides = nn.ModuleList(set_logits(side, num_classes) for side in sides.values())
        lasts = ["last.", *(f"sides.{k}.{len(side) - 1}." for k, side in enumerate(sides.values()))]
        self.class_rows = dict.fromkeys(lasts, (0, 1, 0))

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """classes (B, C) float32 logits, of maps (B, C_l, H_l, W_l); in training mode also the branches': side1, ..."""
        raw = {"classes": self.table(features)}
        if self.training:
            for k, (place, side) in enumerate(zip(self._places, self.sides, strict=True), 1):
                raw[f"side{k}"] = side(features[place]).float()
        return raw

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The term ``classes``: minus log-likelihood of each image's label, counted by labelled images; ``side1``,
        ``side2``: the same of the branches that ``raw`` has, times ``SIDE_GAIN``."""
        given = [-1 if target.image_label is None else target.image_label for target in targets]
        labels = torch.tensor(given, device=raw["classes"].device)
        known = labels >= 0
        terms = {}
        for name, logits in raw.items():
            each = class_loss(logits[known], labels[known], "softmax", smoothing=self.smoothing)
            gain = 1.0 if name == "classes" else SIDE_GAIN
            terms[name] = Loss(each.sum() * gain, known.sum().to(each.dtype))
        return terms

    def lowest(self, conf: float) -> float:
        """Under the limits of evaluation every class answers, however unlikely: top-5 asks for all ranks."""
        return conf if conf > Limits.evaluation().conf else 0.0

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Probabilities (B, C), and the whole image as the box."""
        whole = torch.cat((torch.zeros_like(sizes), sizes.flip(1)), dim=1)
        return raw["classes"].softmax(1), whole.to(raw["classes"]), {}
