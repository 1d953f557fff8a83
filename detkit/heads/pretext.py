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
from detkit.heads.image import WholeImage, whole_boxes
from detkit.heads.layers import exact_output
from detkit.ops.contrast import partner_logits, random_views
from detkit.structures import Loss, Target


class PretextHead(WholeImage):
    """The last map averaged, a hidden layer, outputs: which of several answers is right for each view of an image?

    The loss is the term ``views``: minus log-likelihood of the right answers, counted by views. No target is read.
    Subclasses write ``views`` and ``question``.

    Args:
        inputs: Numbers that the first layer reads.
        hidden: Its width.
        outputs: Of the last layer.
    """

    protocol = "pretext"

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
        self.last = nn.Linear(hidden, outputs)

    def table(self, pooled: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs) float32."""
        return exact_output(self.last, self.hidden(pooled))

    def question(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (V * B, K), all images in one way before all in the next, and the right answers (V * B,), of averaged
        maps (views * B, C_l)."""
        raise NotImplementedError

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Tensor]:
        """logits and right, see ``question``, of maps (views * B, C_l, H_l, W_l)."""
        logits, right = self.question(features[-1].mean((2, 3)))
        return {"logits": logits, "right": right}

    def loss(self, raw: dict[str, Tensor], targets: list[Target], sizes: Tensor) -> dict[str, Loss]:
        each = F.cross_entropy(raw["logits"], raw["right"], reduction="none")
        return {"views": Loss(each.sum(), each.new_tensor(float(len(each))))}

    def answers(self, raw: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One answer, the whole image, whose score is the share of its views that are answered right."""
        told = (raw["logits"].argmax(1) == raw["right"]).float().view(-1, len(sizes))
        return told.mean(0)[:, None], whole_boxes(sizes, told), {}


class Rotation(PretextHead):
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
        super().__init__(channels[-1], hidden, 4)

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

    def question(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (4 * B, 4) of the turns."""
        return self.table(pooled), torch.arange(4, device=pooled.device).repeat_interleave(len(pooled) // 4)


class FrameOrder(PretextHead):
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
        super().__init__(frames * channels[-1], hidden, len(classes))
        self.frames, self.ways = frames, [classes.index(order) for order in forwards]  # the class of each order

    def views(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, frames * W) to (frames * B, 3, H, W).

        Raises:
            DetkitError: A width that the frames cannot share in whole strides of 32 pixels.
        """
        if pixels.shape[3] % self.frames:
            what = f"a strip of {pixels.shape[3]} pixels does not hold {self.frames} frames of one width"
            raise DetkitError(what, "model.size", "give [height, width], the width a multiple of 32 times the frames")
        return torch.cat(pixels.chunk(self.frames, dim=3))

    def question(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (orders * B, orders / 2) of the orders."""
        frames = pooled.chunk(self.frames)
        shown = torch.cat([torch.cat([frames[k] for k in order], 1) for order in self.orders])
        return self.table(shown), torch.tensor(self.ways, device=pooled.device).repeat_interleave(len(frames[0]))


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
        """(B, 3, H, W) to (2 * B, 3, H, W): two random views of each, see ``detkit.ops.contrast``."""
        return torch.cat([random_views(pixels, self.area, self.colour, self.grey) for _ in range(2)])

    def question(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """NT-Xent's: logits (2 * B, 2 * B) of the one view of the same image; a larger batch asks a harder question."""
        return partner_logits(F.normalize(self.table(pooled)), self.temperature)
