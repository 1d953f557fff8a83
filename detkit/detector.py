"""The one detector: backbone -> neck -> proposals -> head; and the file that holds all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from detkit import zoo
from detkit.arrays import plain
from detkit.data.loader import collate
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.interfaces import Backbone, Head, Losses, Neck, ProposalSource
from detkit.structures import Batch, Detections, Limits, Sample, Target


class Predicting:
    """What every predictor offers on top of ``predict_samples``: one image, a stream, class names and a threshold.

    classes: names by label; class_ids: the training data's own ids of them; threshold: the score below which
    ``predict`` shows nothing; protocol: of ``detkit.metrics.METRICS``, what its answers are judged by; flip_pairs:
    points of an object that change places where an image is mirrored.
    """

    classes: tuple[str, ...]
    class_ids: tuple[int | str, ...]
    threshold: float
    protocol: str = "coco"
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels."""
        raise NotImplementedError

    def rescaled(self, factor: float) -> Predicting:
        """The same predictor, weights shared, that looks at images ``factor`` times as large.

        Raises:
            DetkitError: its input size is fixed.
        """
        raise DetkitError("this model's input size is fixed", type(self).__name__, "leave out --size and --tta scales")

    def predict(
        self,
        source: Any,
        *,
        conf: float | None = None,
        iou: float = 0.5,
        max_detections: int = 100,
        classes: Sequence[int | str] | None = None,
        bgr: bool = False,
    ) -> Detections:
        """What is in one image: a path, a file's bytes, a uint8 array (H, W, 3) or (H, W), or a PIL image.

        conf: lowest score, the model's own threshold by default; iou: NMS drops boxes that overlap more; classes: only
        these, by name or label; bgr: the array is in OpenCV's order.

        Raises:
            DetkitError: the image cannot be read, an unknown class, or an argument out of range.
        """
        image = _as_image(source, bgr)
        return self.predict_samples([Sample(image)], self.limits(conf, iou, max_detections, classes))[0]

    def stream(
        self,
        source: Any,
        *,
        conf: float | None = None,
        iou: float = 0.5,
        max_detections: int = 100,
        classes: Sequence[int | str] | None = None,
        batch: int = 1,
    ) -> Iterator[Detections]:
        """Detections in each image or frame of a path, folder, glob, video, camera number or a list of those.

        One batch is in memory at a time. Images that cannot be read raise; ``detkit.prediction.stream.stream`` hands
        them on instead.
        """
        from detkit.io.sources import Failure, open_sources
        from detkit.prediction.stream import stream

        sources = [source] if isinstance(source, (str, bytes, int, Path, np.ndarray)) else list(source)
        limits = self.limits(conf, iou, max_detections, classes)
        for frame, found in stream(self, open_sources(sources), limits, batch):
            if isinstance(frame, Failure):
                raise DetkitError(frame.what, frame.source, frame.do)
            yield found

    def limits(
        self,
        conf: float | None = None,
        iou: float = 0.5,
        max_detections: int = 100,
        classes: Sequence[int | str] | None = None,
    ) -> Limits:
        """``Limits`` of these values: the model's threshold where ``conf`` is None, class names made labels."""
        labels = None if classes is None else tuple(self._label(c) for c in classes)
        return Limits(self.threshold if conf is None else conf, iou, max_detections, labels)

    def _label(self, name: int | str) -> int:
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if isinstance(name, int) and 0 <= name < len(self.classes):
            return name
        near = get_close_matches(str(name), self.classes, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        many = len(self.classes) > 100  # ImageNet's would fill the screen
        known = ", ".join(self.classes[:10] if many else self.classes) + f", ... ({len(self.classes)} in all)" * many
        raise DetkitError(f"the model knows no class {name!r}", "classes", f"{hint}it knows {known}")


class Detector(nn.Module, Predicting):
    """Any detector: a family is a choice of parts.

    backbone: normalised pixels to feature maps; neck: maps to maps; head: maps (and proposals) to detections;
    proposals: a source of candidate boxes, or None. classes: names by label; class_ids: the training data's own ids of
    the classes; resize: how an image becomes an input, for training, evaluation, prediction and export alike; config:
    its ``model`` section is what ``detkit.config`` rebuilds these parts from; threshold: the score below which
    ``predict`` shows nothing; scores, record: what was measured and how it was trained, kept in the file. precision:
    ``fp32`` or ``bf16``, of ``predict`` and of evaluation; not kept in the file.
    """

    precision: str = "fp32"
    mean: Tensor
    std: Tensor
    backbone: Backbone
    neck: Neck
    head: Head
    proposals: ProposalSource | None

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
        self.class_ids = tuple(range(len(self.classes)) if class_ids is None else class_ids)
        if len(self.class_ids) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but {len(self.class_ids)} class ids")
        self.resize, self.config, self.threshold = resize, dict(config), float(threshold)
        self.protocol, self.flip_pairs = head.protocol, head.flip_pairs
        self.scores, self.record = dict(scores or {}), dict(record or {})
        self.register_buffer("mean", torch.tensor(backbone.mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std, dtype=torch.float32).view(1, 3, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.mean.device

    def autocast(self) -> torch.autocast:
        """Mixed precision in the block, where ``precision`` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @overload
    def forward(
        self, batch: Batch, targets: list[Target], *, limits: Limits | None = ..., detections: Literal[False] = ...
    ) -> Losses: ...
    @overload
    def forward(
        self, batch: Batch, targets: list[Target], *, limits: Limits | None = ..., detections: Literal[True]
    ) -> tuple[Losses, list[Detections]]: ...
    @overload
    def forward(
        self, batch: Batch, targets: None = ..., *, limits: Limits | None = ..., detections: bool = ...
    ) -> list[Detections]: ...
    def forward(
        self,
        batch: Batch,
        targets: list[Target] | None = None,
        *,
        limits: Limits | None = None,
        detections: bool = False,
    ) -> Any:
        """Losses with ``targets`` (torch, input pixels), detections (torch, original pixels) without, both with
        ``detections=True``: then from one pass over proposals that have not seen the targets.

        The arguments decide, not ``.training``. ``limits`` default to the model's threshold, and to those of
        evaluation where both are asked for.
        """
        features = self.features(batch.pixels, batch.cached)
        boxes, learned = self.propose(batch, features, sampled=targets is not None and not detections)
        if boxes is not None and targets is not None and not detections:
            boxes = self.head.sample(boxes, targets)
        raw = self.head.raw(features, boxes)
        losses: Losses = {}
        if targets is not None:
            losses = dict(self.head.loss(raw, targets, batch.sizes))
            if self.proposals is not None:
                terms = self.proposals.loss(learned, targets, batch.sizes)
                losses |= {f"proposals_{name}": term for name, term in terms.items()}
            if not detections:
                return losses
        if limits is None:
            limits = Limits(conf=self.threshold) if targets is None else Limits.evaluation()
        inside = self.head.predict(raw, batch.sizes, limits)
        found = [
            Detections(restore.to_original(d.boxes), d.scores, d.labels, self.classes, _restored(d.extra, restore))
            for d, restore in zip(inside, batch.restore, strict=True)
        ]
        return found if targets is None else (losses, found)

    def features(self, pixels: Tensor, cached: list[Tensor] | None = None) -> list[Tensor]:
        """The neck's maps of uint8 or float (B, 3, H, W) pixels in 0..255, H and W multiples of the coarsest stride.

        cached: their ``frozen_maps``, in whose place the pixels are not looked at.
        """
        if cached is None:
            return self.neck(self.backbone((pixels - self.mean) / self.std))
        # Copies: what follows may work in place, and a batch may be looked at twice.
        return self.neck(self.backbone.from_frozen([x.clone() for x in cached]))

    def frozen_maps(self, pixels: Tensor) -> list[Tensor]:
        """What the backbone's frozen stages make of pixels as in ``features``; see ``Backbone.frozen_maps``."""
        return self.backbone.frozen_maps((pixels - self.mean) / self.std)

    def raw(self, pixels: Tensor, proposals: Any = None) -> dict[str, Tensor]:
        """The head's tensors for (B, 3, H, W) pixels in 0..255: what loss and predict read, and what export traces."""
        return self.head.raw(self.features(pixels), proposals)

    def propose(self, batch: Batch, features: list[Tensor], sampled: bool = False) -> tuple[list[Tensor] | None, Any]:
        """Proposals in input pixels, cut off from the gradient and clipped to each image's part of the input.

        sampled: they are to be drawn from for a loss; with them comes what the source's own loss reads.
        """
        boxes, learned = batch.proposals, None
        if self.proposals is not None:
            boxes, learned = self.proposals.propose(batch, features, sampled)
        if boxes is None:
            return None, learned
        corners = batch.sizes[:, [1, 0, 1, 0]]
        clipped = [b.detach().clamp(min=0).minimum(corner.to(b)) for b, corner in zip(boxes, corners, strict=True)]
        return clipped, learned

    @property
    def proposals_for_image(self) -> Callable[[np.ndarray, str], np.ndarray] | None:
        """(image, path) -> (R, 4): the proposals that need the original image, or None.

        Whoever loads images for this model fills ``Sample.proposals`` with it: the data workers in training and
        evaluation, ``predict_samples`` for images that come without.
        """
        return None if self.proposals is None else self.proposals.proposals_for_image

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels, whatever mode the model is in."""
        if not samples:
            return []
        if (source := self.proposals_for_image) is not None:
            samples = [s if s.proposals is not None else s.replace(proposals=source(s.image, "")) for s in samples]
        from detkit.speedups.fuse import ready

        batch = collate(samples, self.resize)[0].to(self.device)
        model = self if self.training else ready(self)
        with _evaluating(self), torch.inference_mode(), self.autocast():
            return [d.numpy() for d in model(batch, limits=limits)]

    def train(self, mode: bool = True) -> Detector:
        """As usual; drops what ``predict`` has prepared."""
        if mode:
            vars(self).pop("_folding", None)
        return super().train(mode)

    def rescaled(self, factor: float) -> Detector:
        """The same detector, weights shared, whose input is ``factor`` times as large, in whole strides."""
        resize = self.resize
        sides = [max(1, round(side * factor / resize.stride)) * resize.stride for side in (resize.height, resize.width)]
        view = copy.copy(self)
        view.resize = Resize.from_dict({**resize.to_dict(), "size": sides})
        return view

    def save(self, path: str | Path, *, half: bool = False, overwrite: bool = True) -> None:
        """Writes one safetensors file that ``detkit.load`` needs nothing else for; it appears whole or not at all.

        half: weights in float16, half the size; running statistics stay float32, since variances may exceed its range.

        Raises:
            DetkitError: code 4 if the disk is full, 2 if the file may not be written or exists and not ``overwrite``.
        """
        from safetensors.torch import save

        from detkit.io.files import write_bytes

        weights = {name for name, _ in self.named_parameters()}
        state = {
            name: value.detach().to("cpu", torch.float16 if half and name in weights else value.dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        header = {
            "config": self.config,
            "classes": self.classes,
            "class_ids": self.class_ids,
            "resize": self.resize.to_dict(),
            "threshold": self.threshold,
            "scores": self.scores,
            "record": self.record,
        }
        # Through bytes, not save_file: that maps the file, and a full disk would then kill the process.
        data = save(state, zoo.header_metadata(plain(header)))
        write_bytes(path, data, overwrite=overwrite)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that ``Detector.save`` wrote, by name; nothing in the file is executed.

    Raises:
        DetkitError: as ``detkit.zoo.read_model_header``, or a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    zoo.read_model_header(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DetkitError(f"the model file is damaged: {error}", str(path), "copy or download it again") from None


def _restored(extra: Mapping[str, Any], geometry: Geometry) -> Mapping[str, Any]:
    return {**extra, "points": geometry.points_to_original(extra["points"])} if "points" in extra else extra


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    if was:
        model.eval()
    try:
        yield
    finally:
        if was:
            model.train()


def _as_image(source: Any, bgr: bool) -> np.ndarray:
    if isinstance(source, (str, Path, bytes)):
        from detkit.io.images import read_image

        return read_image(source)
    if hasattr(source, "convert"):  # a PIL image, without importing PIL
        return np.asarray(source.convert("RGB"))
    if not isinstance(source, np.ndarray):
        raise DetkitError(f"cannot detect in a {type(source).__name__}", do="give a path, a uint8 array or a PIL image")
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
        raise DetkitError(
            f"an image is uint8 (H, W, 3) or (H, W), got {source.dtype} {source.shape}",
            do="scale it to 0..255 and convert it with .astype('uint8')",
        )
    if not source.size:
        raise DetkitError("the image has no pixels")
    image = np.repeat(source[..., None], 3, axis=2) if source.ndim == 2 else source[..., :: -1 if bgr else 1]
    return np.ascontiguousarray(image)
