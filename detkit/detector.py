"""The one detector: backbone -> neck -> proposals -> head; and the file that holds all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from detkit import zoo
from detkit.arrays import plain
from detkit.data.loader import collate
from detkit.data.resize import Resize
from detkit.errors import DetkitError, small_image_error
from detkit.geometry import UsualSizes
from detkit.interfaces import Backbone, Head, Losses, Neck, ProposalSource, Raw
from detkit.predictor import Predictor
from detkit.structures import Batch, Detections, Limits, Sample, Target

if TYPE_CHECKING:
    from detkit.data.dataset import Dataset

_NO_SOURCE = ProposalSource()  # gives what is in the batch


class Detector(nn.Module, Predictor):
    """Any detector: a family is a choice of parts.

    ``detector(batch, targets)`` gives losses, ``detector(batch)`` detections: the arguments decide, not ``.training``.

    Args:
        backbone: Normalised pixels to feature maps.
        neck: Maps to maps.
        head: Maps (and proposals) to detections.
        proposals: A source of candidate boxes, or None.
        classes: Names by label.
        resize: How an image becomes an input, for training, evaluation, prediction and export alike.
        config: Its ``model`` section is what ``detkit.config`` rebuilds these parts from.
        class_ids: The training data's own ids of the classes; None: 0, 1, ...
        threshold: The score below which ``predict`` shows nothing.
        scores: What was measured, kept in the file.
        record: How it was trained, kept in the file.

    Attributes:
        precision: Of ``predict`` and of evaluation, ``fp32`` or ``bf16``; not kept in the file.

    Raises:
        ValueError: Not as many ids as classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        head: Head,
        proposals: ProposalSource | None = None,
        *,
        classes: Sequence[str],
        resize: Resize,
        config: Mapping[str, Any],
        class_ids: Sequence[int | str] | None = None,
        threshold: float = 0.25,
        scores: Mapping[str, float] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.proposals = backbone, neck, head, proposals
        self.classes = tuple(classes)
        if class_ids is not None:
            self.class_ids = tuple(class_ids)
        if len(self.class_ids) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but {len(self.class_ids)} class ids")
        self.resize, self.config, self.threshold = resize, dict(config), float(threshold)
        self.protocol, self.flip_pairs = head.protocol, head.flip_pairs
        self.scores, self.record = dict(scores or {}), dict(record or {})
        self.trainings = [0]  # how often ``train()`` was called; shared with what is derived from the weights
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.mean.device

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels that it sees an image in."""
        return self.resize.height, self.resize.width

    @property
    def usual_sizes(self) -> UsualSizes | None:
        """Those of its training's objects, where the file has them."""
        return UsualSizes.read(self.record.get("objects"))

    def autocast(self) -> torch.autocast:
        """Mixed precision in the block, where ``precision`` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def forward(
        self,
        batch: Batch,
        targets: list[Target] | None = None,
        *,
        limits: Limits | None = None,
        detections: bool = False,
    ) -> Losses | list[Detections] | tuple[Losses, list[Detections]]:
        """Losses, detections, or both.

        Args:
            batch: The images.
            targets: Per image, torch, boxes in input pixels: asks for losses.
            limits: Of the detections; None: the model's own, and evaluation's where both are asked for.
            detections: With targets, asks for both: from one pass over proposals that have not seen the targets.

        Returns:
            Terms of the loss by name, detections per image (torch, original pixels), or the pair of them.

        Raises:
            DetkitError: ``batch`` is none.
        """
        if not isinstance(batch, Batch):
            kind, do = type(batch).__name__, "for an image, or a list of them: detector.predict(image)"
            raise DetkitError(f"detector(...) takes a Batch of detkit's, got {kind}", do=do)
        features = self.features(self.head.views(batch.pixels), batch.cached)
        sampled = targets is not None and not detections
        boxes, learned = self.propose(batch, features, sampled)
        if boxes is not None and targets is not None and sampled:
            boxes = self.head.sample(boxes, targets)
        raw = self.head.raw(features, boxes)
        losses: Losses = {}
        if targets is not None:
            losses |= self.head.loss(raw, targets, batch.sizes)
            terms = (self.proposals or _NO_SOURCE).loss(learned, targets, batch.sizes)
            losses |= {f"proposals_{name}": term for name, term in terms.items()}
        if sampled:
            return losses
        if limits is None:
            limits = self.limits() if targets is None else Limits.evaluation(self.iou)
        inside = self.head.predict(raw, batch.sizes, limits)
        found = [one.restored(there, self.classes) for one, there in zip(inside, batch.restore, strict=True)]
        return found if targets is None else (losses, found)

    def features(self, pixels: Tensor, cached: list[Tensor] | None = None) -> list[Tensor]:
        """The neck's maps.

        Args:
            pixels: uint8 or float (B, 3, H, W) in 0..255, H and W multiples of the coarsest stride.
            cached: Their ``frozen_maps``, in whose place the pixels are not looked at.
        """
        if cached is None:
            return self.neck(self.backbone(self.normalised(pixels)))
        # Copies: what follows may work in place, and a batch may be looked at twice.
        exact = None if torch.is_autocast_enabled(self.device.type) else self.mean.dtype
        return self.neck(self.backbone.from_frozen([x.to(exact or x.dtype, copy=True) for x in cached]))

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in 0..255 as the backbone's weights expect them."""
        mean, std = self.mean, self.std
        if pixels.is_contiguous(memory_format=torch.channels_last):  # a row at once: in threes it takes twice the time
            width = pixels.shape[3]
            mean, std = (x.expand(1, 3, 1, width).contiguous(memory_format=torch.channels_last) for x in (mean, std))
        return (pixels - mean) / std

    def frozen_maps(self, pixels: Tensor) -> list[Tensor]:
        """What the backbone's frozen stages make of pixels as in ``features``; see ``Backbone.frozen_maps``."""
        return self.backbone.frozen_maps(self.normalised(pixels))

    def raw(self, pixels: Tensor, proposals: list[Tensor] | None = None) -> Raw:
        """The head's tensors for (B, 3, H, W) pixels in 0..255: what loss and predict read, and what export traces."""
        return self.head.raw(self.features(self.head.views(pixels)), proposals)

    def propose(self, batch: Batch, features: list[Tensor], sampled: bool = False) -> tuple[list[Tensor] | None, Any]:
        """Proposals, cut off from the gradient and clipped to each image's part of the input.

        Args:
            batch: The images.
            features: The neck's maps.
            sampled: The proposals are to be drawn from for a loss.

        Returns:
            Boxes (R_i, 4) xyxy per image in input pixels, or None; and what the source's own loss reads.
        """
        boxes, learned = (self.proposals or _NO_SOURCE).propose(batch, features, sampled)
        if boxes is None:
            return None, learned
        corners = batch.sizes[:, [1, 0, 1, 0]]
        clipped = [b.detach().clamp(min=0).minimum(corner.to(b)) for b, corner in zip(boxes, corners, strict=True)]
        return clipped, learned

    @property
    def proposals_for_image(self) -> Callable[[np.ndarray, str], np.ndarray] | None:
        """(image, path) -> (R, 4): the proposals that need the original image, or None.

        Whoever loads images for this model fills ``Sample.proposals`` with it: the data workers in training and
        evaluation, ``batch_of`` for images that come without.
        """
        return (self.proposals or _NO_SOURCE).proposals_for_image

    def reads(self, dataset: Dataset) -> Dataset:
        """The data set with what this model needs of it besides images and boxes: proposals, masks."""
        if (source := self.proposals_for_image) is not None:
            dataset = replace(dataset, proposals=source)
        return replace(dataset, masks=True) if self.head.takes_masks else dataset

    def batch_of(self, samples: Sequence[Sample]) -> Batch:
        """The samples as one input on the model's device, with the proposals that need the original images."""
        if (source := self.proposals_for_image) is not None:
            samples = [s if s.proposals is not None else s.replace(proposals=source(s.image, "")) for s in samples]
        return collate(samples, self.resize)[0].to(self.device)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels, whatever mode the model is in.

        Raises:
            DetkitError: The input is too small for the network.
        """
        if not samples:
            return []
        batch, training = self.batch_of(samples), self.training
        if training:  # else nothing is written: threads may share a model
            self.eval()
        try:
            with torch.inference_mode(), self.autocast():
                return [found.numpy() for found in self(batch, limits=limits)]
        except RuntimeError as error:
            if (too_small := small_image_error(error)) is not None:
                raise too_small from error
            raise
        finally:
            if training:
                self.train()

    @torch.inference_mode()
    def vectors(self, images: Sequence[np.ndarray], batch: int = 32) -> np.ndarray:
        """A vector per image: of head ``embed`` its own, of any other its last map averaged, of length 1.

        Args:
            images: uint8 (H, W, 3) RGB.
            batch: Images at a time.

        Returns:
            (N, D) float32.
        """
        found = [torch.zeros(0, 0)]
        for start in range(0, len(images), batch):
            inputs = self.batch_of([Sample(image) for image in images[start : start + batch]])
            maps = self.features(inputs.pixels)
            own = self.head.takes_identities
            found.append(self.head.raw(maps)["embedding"] if own else normalize(maps[-1].mean((2, 3))))
        return np.asarray(torch.cat(found[1:] or found).float().cpu())

    def train(self, mode: bool = True) -> Detector:
        """As usual; and what is derived from the weights is derived anew, however they are written to."""
        self.trainings[0] += mode
        return super().train(mode)

    def rescaled(self, factor: float) -> Detector:
        """The same detector, weights shared, whose input is ``factor`` times as large, in whole strides."""
        resize = self.resize
        sides = [max(1, round(side * factor / resize.stride)) * resize.stride for side in (resize.height, resize.width)]
        view = copy.copy(self)
        view.resize = replace(resize, size=(sides[0], sides[1]))
        return view

    def save(self, path: str | Path, *, half: bool = False, overwrite: bool = True) -> None:
        """Writes one safetensors file that ``detkit.load`` needs nothing else for; it appears whole or not at all.

        Args:
            path: The file.
            half: Weights in float16, half the size; running statistics stay float32, since variances may exceed its
                range.
            overwrite: Replace a file that exists.

        Raises:
            DetkitError: Code 4 if the disk is full, 2 if the file may not be written or exists and not ``overwrite``.
        """
        from safetensors.torch import save

        from detkit.io.files import write_bytes

        weights = {name for name, _ in self.named_parameters()}
        state = {
            name: value.detach().to("cpu", torch.float16 if half and name in weights else value.dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        names = ("config", "classes", "class_ids", "threshold", "scores", "record")
        header = {"resize": self.resize.to_dict()} | {name: getattr(self, name) for name in names}
        # Through bytes, not save_file: that maps the file, and a full disk would then kill the process.
        write_bytes(path, save(state, zoo.header_metadata(plain(header))), overwrite=overwrite)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that ``Detector.save`` wrote, by name; nothing in the file is executed.

    Raises:
        DetkitError: As ``detkit.zoo.read_model_header``, or a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    zoo.read_model_header(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DetkitError(f"the model file is damaged: {error}", str(path), "copy or download it again") from None
