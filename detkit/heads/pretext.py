"""Heads that learn from images without labels: the task, and its answer, are made of the images themselves.

What they leave is the backbone: ``model.backbone.weights: RUN`` starts another model from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.heads.layers import exact_output
from detkit.interfaces import Head
from detkit.ops.contrast import nearest_is_partner, nt_xent
from detkit.ops.views import random_views
from detkit.structures import Detections, Limits, Loss, Target


class PretextHead(Head, nn.Module):
    """The last map averaged, a hidden layer, outputs. Subclasses write ``views``, ``raw``, ``answered`` and ``loss``.

    Args:
        inputs: Numbers that the first layer reads.
        hidden: Its width.
        outputs: Of the last layer.
    """

    protocol = "pretext"
    allows_mosaic = False

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
        self.last = nn.Linear(hidden, outputs)

    def table(self, pooled: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs) float32."""
        return exact_output(self.last, self.hidden(pooled))

    def answered(self, raw: dict[str, Tensor]) -> Tensor:
        """(V, B) bool: which views of each image are answered right."""
        raise NotImplementedError

    def predict(self, raw: dict[str, Tensor], sizes: Tensor, limits: Limits) -> list[Detections]:
        """Per image one answer for the whole of it, whose score is the share of its views that are answered right."""
        scores = self.answered(raw).float().mean(0)
        boxes = torch.cat((torch.zeros_like(sizes), sizes.flip(1)), dim=1).to(scores)
        label = torch.zeros(1, dtype=torch.int64, device=scores.device)
        every = [Detections(boxes[i : i + 1], scores[i : i + 1], label) for i in range(len(scores))]
        return [one[one.scores >= limits.conf] for one in every]


class _Puzzle(PretextHead):
    """Each image is shown in ``len(answers)`` ways, and which one it is is the question: logits in ``raw["ways"]``."""

    def __init__(self, inputs: int, hidden: int, answers: Sequence[int]) -> None:
        super().__init__(inputs, hidden, len(set(answers)))
        self.ways = tuple(answers)  # the class of each way

    def _logits_and_labels(self, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = raw["ways"]
        labels = torch.tensor(self.ways, device=logits.device)
        return logits, labels.repeat_interleave(len(logits) // len(self.ways))

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The term ``ways``: minus log-likelihood of how each view was made, counted by views. No target is read."""
        logits, labels = self._logits_and_labels(raw)
        return {"ways": Loss(F.cross_entropy(logits, labels, reduction="sum"), logits.new_tensor(float(len(labels))))}

    def answered(self, raw: dict[str, Tensor]) -> Tensor:
        """(V, B) bool: which ways are told."""
        logits, labels = self._logits_and_labels(raw)
        return (logits.argmax(1) == labels).view(len(self.ways), -1)


class Rotation(_Puzzle):
    """By how many quarter turns an image was rotated (Gidaris, Singh, Komodakis 2018, arXiv 1803.07728, section 2.1).

    Every image is shown in all four.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: Not asked for.
        hidden: Width of the layer before the answer.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[float], num_classes: int, *, hidden: int = 128
    ) -> None:
        super().__init__(channels[-1], hidden, range(4))

    def views(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (4 * B, 3, S, S), turned by 0, 90, 180 and 270 degrees.

        Raises:
            DetkitError: Images that are not square, whose shape would tell.
        """
        if pixels.shape[2] != pixels.shape[3]:
            height, width = pixels.shape[2:]
            what = f"turned by 90 degrees an input of {height} x {width} has another shape"
            raise DetkitError(what, "model.size", "give one number for a square input")
        return torch.cat([pixels.rot90(turns, (2, 3)) for turns in range(4)])

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """ways (4 * B, 4) float32 logits, of maps (4 * B, C_l, H_l, W_l)."""
        return {"ways": self.table(features[-1].mean((2, 3)))}


class FrameOrder(_Puzzle):
    """In which order the frames of a film are shown, forwards and backwards being the same (Lee, Huang, Singh, Yang
    2017, "Unsupervised representation learning by sorting sequences", arXiv 1708.01246, section 3).

    An image is a strip of frames side by side (``detkit data strips``); features of each are joined in every order.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: Not asked for.
        frames: In a strip, from the left.
        hidden: Width of the layer before the answer.

    Raises:
        ValueError: Not 3 to 5 frames.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[float], num_classes: int, *, frames: int = 3, hidden: int = 128
    ) -> None:
        if not 3 <= frames <= 5:
            raise ValueError(f"frames must be 3 to 5, got {frames}: two have no order, six have 360")
        self.orders = list(permutations(range(frames)))
        forwards = [min(order, order[::-1]) for order in self.orders]
        classes = sorted(set(forwards))
        super().__init__(frames * channels[-1], hidden, [classes.index(order) for order in forwards])
        self.frames = frames

    def views(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, frames * W) to (frames * B, 3, H, W).

        Raises:
            DetkitError: A width that the frames cannot share in whole strides of 32 pixels.
        """
        if pixels.shape[3] % self.frames:
            what = f"a strip of {pixels.shape[3]} pixels does not hold {self.frames} frames of one width"
            raise DetkitError(what, "model.size", "give [height, width], the width a multiple of 32 times the frames")
        return torch.cat(pixels.chunk(self.frames, dim=3))

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """ways (orders * B, orders / 2) float32 logits, of maps (frames * B, C_l, H_l, W_l)."""
        pooled = features[-1].mean((2, 3)).chunk(self.frames)
        return {"ways": self.table(torch.cat([torch.cat([pooled[k] for k in order], 1) for order in self.orders]))}


class SimCLR(PretextHead):
    """Which two of a batch's views are of one image (Chen et al. 2020, arXiv 2002.05709, section 2).

    Two random views of each image go through the backbone and a projection, in which the loss is computed; what is
    kept is what lies before the projection.

    Args:
        channels: Of the feature maps; only the last is looked at.
        strides: Of the feature maps.
        num_classes: Not asked for.
        hidden: Width of the projection's first layer.
        out: Numbers of the projection.
        temperature: Divides the cosines.
        area: Least share of the image that a view shows.
        colour: Strength of the changes of brightness, contrast and saturation; 0: none.
        grey: Chance of a view without colour.

    Raises:
        ValueError: An option out of its range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        hidden: int = 256,
        out: int = 64,
        temperature: float = 0.2,
        area: float = 0.2,
        colour: float = 0.4,
        grey: float = 0.2,
    ) -> None:
        if temperature <= 0 or not 0 < area <= 1 or not 0 <= colour <= 1 or not 0 <= grey <= 1:
            raise ValueError("temperature and area must be above 0; area, colour and grey at most 1")
        super().__init__(channels[-1], hidden, out)
        self.temperature, self.area, self.colour, self.grey = temperature, area, colour, grey

    def views(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (2 * B, 3, H, W): two random views of each, see ``detkit.ops.views``."""
        return torch.cat([random_views(pixels, self.area, self.colour, self.grey) for _ in range(2)])

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """vectors (2 * B, out) float32 of length 1, of maps (2 * B, C_l, H_l, W_l)."""
        return {"vectors": F.normalize(self.table(features[-1].mean((2, 3))))}

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        """The term ``pairs``: NT-Xent, counted by views. No target is read; a larger batch asks a harder question."""
        each = nt_xent(raw["vectors"], self.temperature)
        return {"pairs": Loss(each.sum(), each.new_tensor(float(len(each))))}

    def answered(self, raw: dict[str, Tensor]) -> Tensor:
        """(2, B) bool: whose nearest of all other views is the one of the same image."""
        return nearest_is_partner(raw["vectors"]).view(2, -1)
