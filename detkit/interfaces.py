"""What detkit asks of the parts it is built from: derive from these, inside the package or outside.

Members with a value are optional. A class from outside is refused without those of its own that ``detkit.registry``
requires: ``forward`` of a backbone and a neck; ``raw``, ``loss`` and ``predict`` of a head; ``looked_for``,
``recognises`` and ``read`` of a format; ``scores``, ``rules`` and ``evaluate`` of a metric; ``write`` of a writer;
``__call__`` of a logger.

Nothing here imports torch, so parts that are networks name both bases, this one first: ``class MyHead(Head,
nn.Module)``. A constructor's keyword-only arguments, with their types, are the part's keys in a config file; what comes
before them is wired by the builder. docs/parts.md writes one of each, step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from detkit.data.annotations import Annotations
    from detkit.engine.events import Event
    from detkit.io.sources import Frame
    from detkit.metrics.identities import Measure
    from detkit.structures import Batch, Detections, Limits, Loss, Target
    from detkit.tables import Evaluation, GroundTruth, Results

    Module = nn.Module
else:
    Module = object

Raw = dict[str, "Tensor"]  # what a head computes once, for loss and prediction alike
Losses = dict[str, "Loss"]


class Backbone(Module):
    """Images in, feature maps of several strides out.

    ``Backbone(*, taps, frozen, ...)``; most are a chain of stages: derive from ``detkit.backbones.base.StagedBackbone``
    then, which has all of this.

    Attributes:
        channels: Of each map that ``forward`` returns, finest first.
        strides: Input pixels per cell, of each map.
        mean: Per channel (R, G, B), in units of 0..255; the detector subtracts it.
        std: The same, by which the detector divides.
        stages: The modules in the order of computation, for ``stage_lr``, ``unfreeze`` and ``frozen``; it may be empty.
        frozen: How many stages from the input on do not train.
    """

    channels: Sequence[int]
    strides: Sequence[float]
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)
    stages: nn.ModuleList
    frozen: int = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, H, W) to one map (B, channels[i], H / strides[i], W / strides[i]) per stride."""
        raise NotImplementedError

    def freeze(self, count: int) -> None:
        """From now on the first ``count`` stages do not train, and the others do."""
        raise NotImplementedError

    def frozen_maps(self, x: Tensor) -> list[Tensor]:
        """The frozen stages' part of ``forward``: what ``from_frozen`` needs of them."""
        raise NotImplementedError

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """The rest of ``forward``, which is ``from_frozen(frozen_maps(x))``."""
        raise NotImplementedError


class Neck(Module):
    """Maps in, maps out: ``Neck(channels, strides, *, ...)``.

    Attributes:
        channels: Of each map that ``forward`` returns.
        strides: Input pixels per cell, of each map.
        divisor: The input's sides are padded to multiples of it; 0: of the coarsest stride.
    """

    channels: Sequence[int]
    strides: Sequence[float]
    divisor: float = 0

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map (B, channels[i], H_i, W_i) per entry of ``channels``."""
        raise NotImplementedError


class Head(Module):
    """From features to losses and detections: ``Head(channels, strides, num_classes, *, ...)``.

    Attributes:
        takes_proposals: True for a head that looks at regions, which a proposal source gives.
        takes_identities: True for a head whose classes are identities: data to validate on may have others.
        takes_masks: True for a head that learns the class of each pixel: its targets have a ``mask``.
        protocol: The metric (``detkit.metrics.METRICS``) that its answers are judged by.
        measure: How the vectors of two images are compared (``detkit.metrics.identities.likeness``).
        flip_pairs: Pairs of landmarks, counted from 0, that change places where an image is mirrored.
        class_rows: Of each prediction layer, by the start of its parameters' names: rows per group before the classes',
            rows of each class, rows after them. A model for other classes keeps what it can by it.
        allows_mosaic: False if an image must stay whole, so that mosaic and mixup are refused.
    """

    takes_proposals: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = False
    takes_identities: ClassVar[bool] = False
    protocol: str = "coco"
    measure: Measure = "cosine"
    flip_pairs: tuple[tuple[int, int], ...] = ()
    allows_mosaic: ClassVar[bool] = True
    class_rows: Mapping[str, tuple[int, int, int]] = MappingProxyType({})

    @property
    def needs_fit(self) -> bool:
        """True if ``fit`` is to be called once, after training."""
        return False

    @property
    def backbone_trunk(self) -> nn.Module | None:
        """The part of the head that is the rest of the backbone's classifier, and trains at its rate."""
        return None

    def views(self, pixels: Tensor) -> Tensor:
        """What the network is shown for a batch (B, 3, H, W) of pixels in 0..255, here itself; a head that learns from
        images alone makes several views of each (V * B, 3, h, w), all first views before all second ones."""
        return pixels

    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[Tensor]:
        """The proposals (R_i, 4) xyxy per image, in input pixels, that the loss is computed on: here all of them."""
        return proposals

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> Raw:
        """Every tensor that ``loss`` and ``predict`` need, from the maps and, per image, proposals (R_i, 4)."""
        raise NotImplementedError

    def loss(self, raw: Raw, targets: list[Target], sizes: Tensor) -> Losses:
        """Terms by name, each a sum and the count that divides it.

        Args:
            raw: What ``raw`` returned.
            targets: Per image, torch, boxes in input pixels.
            sizes: (B, 2) int64, height and width of each image's part of the input, the rest being padding.
        """
        raise NotImplementedError

    def predict(self, raw: Raw, sizes: Tensor, limits: Limits) -> list[Detections]:
        """Detections per image (torch, input pixels, without class names), best first."""
        raise NotImplementedError

    def fit(self, regions: Sequence[Any]) -> None:
        """Learns, after training, what is not learned by gradient; see ``needs_fit``."""
        raise NotImplementedError


class ProposalSource:
    """Where candidate boxes come from: ``Source(channels, strides, *, ...)``; a learned one is an ``nn.Module`` too.

    Attributes:
        max_proposals: The most that it gives per image when it predicts; 0: there is no limit.
        proposals_for_image: (image uint8 (H, W, 3) RGB, path) to boxes (R, 4) float32 in the image's own pixels, for a
            source that needs the original image; whoever loads images calls it, and ``propose`` gives what is in the
            batch.
    """

    max_proposals: int = 0
    proposals_for_image: Callable[[np.ndarray, str], np.ndarray] | None = None

    def propose(self, batch: Batch, features: list[Tensor], training: bool) -> tuple[list[Tensor] | None, Any]:
        """Boxes (R_i, 4) xyxy per image in input pixels, and what ``loss`` reads.

        Args:
            batch: The images.
            features: The neck's maps.
            training: True if the head will sample from them for its loss.
        """
        return batch.proposals, None

    def loss(self, raw: Any, targets: list[Target], sizes: Tensor) -> Losses:
        """Terms of the source's own loss; none where nothing is learned."""
        return {}


class Logger:
    """Who is told what happens in training: ``Logger(run)``, the run folder's path, when the run begins."""

    def __init__(self, run: Path) -> None: ...

    def __call__(self, event: Event) -> None:
        """Takes note of one of ``detkit.engine.events``; in training's own process, so it should be quick."""
        raise NotImplementedError

    def close(self) -> None:
        """The run is over, or was stopped."""


class DatasetFormat:
    """A way in which labelled images are kept; made without arguments, asked to recognise a path by looking.

    Attributes:
        looked_for: What it recognises, for people: "a COCO .json file (or ...)".
    """

    looked_for: ClassVar[str]

    def recognises(self, path: Path) -> bool:
        """True if ``path`` holds this format; opens as little as it can."""
        raise NotImplementedError

    def splits(self, path: Path) -> list[str]:
        """Names of the parts (train, val, ...); empty if it is one piece."""
        return []

    def read(self, path: Path, split: str | None, images: Path | None) -> Annotations:
        """The labels; whatever is dropped or repaired is counted in ``Annotations.findings``.

        Args:
            path: What was recognised.
            split: One part of it, or None for all of them.
            images: The folder of the images where it is not the one that the format says.

        Raises:
            DetkitError: A file that cannot be read, or a part that is not there.
        """
        raise NotImplementedError


class Metric:
    """How good answers are, as numbers by name; made without arguments.

    Attributes:
        answers: What it judges: "boxes", "points" (with their boxes), "labels" (of whole images) or "pixels".
        scores: Names of the numbers that may choose a run's best weights, the usual one first; higher is better.
        shown: Names of the numbers that training's lines print; empty: ``scores``.
        rules: How it counts, in one line; ``{iou}`` and ``{limit}`` in it are filled in.
        takes_iou: False where no boxes are matched, so that a threshold is refused.
        takes_max_detections: False where every detection counts, so that a limit is refused.
    """

    answers: ClassVar[str] = "boxes"
    scores: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ()
    rules: ClassVar[str]
    takes_iou: ClassVar[bool] = True
    takes_max_detections: ClassVar[bool] = False

    @property
    def gives_intervals(self) -> bool:
        """True with a ``resampler`` of its own."""
        return type(self).resampler is not Metric.resampler

    def check(self, gt: GroundTruth) -> None:
        """Looks at the labels before a long run of a model.

        Raises:
            DetkitError: Labels that it cannot judge by.
        """

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """The numbers of all classes together and of each; ``Evaluation.protocol`` is filled in by the caller.

        Args:
            gt: The labels.
            dt: The answers, in the labels' classes.
            iou: The threshold of matching; None: the metric's own.
            max_detections: Per image and class, the best ones.

        Raises:
            ValueError: Tables that do not fit together, or a threshold that makes no sense.
        """
        raise NotImplementedError

    def resampler(
        self, gt: GroundTruth, dt: Results, score: str, *, iou: float | None = None, max_detections: int = 100
    ) -> Callable[[np.ndarray], float]:
        """From image weights (images,) int64 to one number on that many copies of each image, for the bootstrap.

        Args:
            gt: The labels.
            dt: The answers; they are matched once, here.
            score: Name of the number.
            iou: As in ``evaluate``.
            max_detections: As in ``evaluate``.

        Raises:
            ValueError: A name that the metric does not have.
        """
        raise NotImplementedError  # a metric without one gives no intervals


class Writer:
    """Detections into a file or a folder: ``Writer(path, classes, *, class_ids, image_ids, overwrite)``.

    A context manager: what it writes appears when the block ends, also where it is stopped (Ctrl-C); after an error
    what is whole stays under a name that says partial.

    Attributes:
        path: The file or folder.
        classes: The model's names.
        class_ids: Category id of each label in the data set that the model was trained on.
        image_ids: A data set's image id by source or by file name.
        overwrite: Replace what exists.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        *,
        class_ids: Sequence[int | str],
        image_ids: Mapping[str, int | str],
        overwrite: bool,
    ) -> None:
        self.path, self.classes, self.overwrite = path, classes, overwrite
        self.class_ids, self.image_ids = class_ids, image_ids

    def __enter__(self) -> Self:
        return self

    def write(self, frame: Frame, detections: Detections) -> None:
        """Adds the detections of one frame, in its pixels.

        Raises:
            DetkitError: The output cannot be written; code 4 when the disk is full.
        """
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the output; after an error it does not take the output's name."""
