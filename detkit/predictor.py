"""What everything that detects has in common: a detector, test-time views, an ensemble, torchvision's models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

from detkit.errors import DetkitError, nearest, some
from detkit.geometry import UsualSizes
from detkit.io.images import ImageSource, as_rgb
from detkit.io.prefetch import threaded
from detkit.io.sources import Failure, Frame, Source, open_sources
from detkit.structures import Detections, Limits, Sample

Seen = TypeVar("Seen", bound=Frame | Failure)
Classes = int | str | Sequence[int | str]  # by label or name


class PredictOptions(TypedDict, total=False):
    """The keyword arguments of ``Predictor.predict``."""

    conf: float | None
    iou: float | None
    max_detections: int
    classes: Classes | None
    bgr: bool
    batch: int


class Predictor:
    """Detects: derive from it and write ``predict_samples``, and one image, streams, class names and limits come along.

    Attributes:
        classes: Names by label.
        class_ids: The training data's own ids of the classes; by default 0, 1, ...
        threshold: The score below which ``predict`` shows nothing.
        iou: NMS drops boxes of one class that overlap a better one by more, where nothing else is asked for.
        protocol: The metric (``detkit.metrics.METRICS``) that its answers are judged by.
        flip_pairs: Pairs of points of an object that change places where an image is mirrored.
        precision: Of the arithmetic, ``fp32`` or ``bf16``.
        streams: Batches of a stream that are looked at side by side, each by its share of the threads.
    """

    classes: tuple[str, ...]
    threshold: float = 0.25
    iou: float = 0.5
    protocol: str = "coco"
    flip_pairs: tuple[tuple[int, int], ...] = ()
    precision: str = "fp32"
    streams: int = 1

    @cached_property
    def class_ids(self) -> tuple[int | str, ...]:
        """The training data's own ids of the classes."""
        return tuple(range(len(self.classes)))

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that it sees an image in; None: not known."""
        return None

    @property
    def usual_sizes(self) -> UsualSizes | None:
        """Those of its training's objects; None: not known."""
        return None

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels."""
        raise NotImplementedError

    def rescaled(self, factor: float) -> Predictor:
        """The same predictor, weights shared, that looks at images ``factor`` times as large.

        Raises:
            DetkitError: Its input size is fixed.
        """
        raise DetkitError("this model's input size is fixed", type(self).__name__, "leave out --size and --tta scales")

    @overload
    def predict(self, source: ImageSource, **options: Unpack[PredictOptions]) -> Detections: ...
    @overload
    def predict(self, source: list[Any] | tuple[Any, ...], **options: Unpack[PredictOptions]) -> list[Detections]: ...
    def predict(
        self,
        source: ImageSource | list[Any] | tuple[Any, ...],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_detections: int = 100,
        classes: Classes | None = None,
        bgr: bool = False,
        batch: int = 8,
    ) -> Detections | list[Detections]:
        """What is in one image, or in each of a list.

        Args:
            source: A path, a file's bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or
                a list of these.
            conf: Lowest score; None: the model's own threshold.
            iou: NMS drops boxes that overlap more; None: the model's own.
            max_detections: At most so many per image, the best.
            classes: Only this one or these, by name or label; None: all.
            bgr: Arrays are in OpenCV's order.
            batch: Images of a list at a time.

        Returns:
            Detections (numpy) in the image's pixels, best first; of a list a list of them, in its order.

        Raises:
            DetkitError: An image cannot be read, an unknown class, or an argument out of range.
        """
        limits, found = self.limits(conf, iou, max_detections, classes), list[Detections]()
        images = source if isinstance(source, (list, tuple)) else [source]
        for start in range(0, len(images), batch):
            samples = [Sample(as_rgb(image, bgr=bgr)) for image in images[start : start + batch]]
            found += self.predict_samples(samples, limits)
        return found if images is source else found[0]

    def stream(
        self,
        source: Source | Iterable[Source],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_detections: int = 100,
        classes: Classes | None = None,
        batch: int = 1,
    ) -> Iterator[Detections]:
        """Detections in each image or frame, one batch in memory at a time.

        Args:
            source: What ``predict`` takes, a folder, glob, video or camera number, or several of those.
            conf: As ``predict``'s, like the next three.
            iou: NMS drops boxes that overlap more; None: the model's own.
            max_detections: Per image.
            classes: Only these.
            batch: Images at a time.

        Raises:
            DetkitError: An image that cannot be read; ``detect_frames`` hands it on instead.
        """
        for frame, found in self.detect_frames(
            open_sources(source), self.limits(conf, iou, max_detections, classes), batch
        ):
            if isinstance(frame, Failure):
                raise DetkitError(frame.what, frame.source, frame.do)
            yield found

    def detect_frames(
        self, frames: Iterable[Seen], limits: Limits | None = None, batch: int = 1
    ) -> Iterator[tuple[Seen, Detections]]:
        """Each frame with its detections (numpy, in the frame's pixels), in order.

        What could not be read comes through as the Failure that it is, with no detections, in its place.

        Args:
            frames: Of ``detkit.io.sources.open_sources``; read only as they are needed, ``batch`` at a time.
                With ``streams`` so many batches more are read ahead.
            limits: Of the detections; None: those for people.
            batch: Images at a time.
        """
        limits = limits or Limits()

        def detect(frames: list[Seen]) -> list[tuple[Seen, Detections]]:
            samples = [Sample(frame.image, path=frame.source) for frame in frames if isinstance(frame, Frame)]
            found = iter(self.predict_samples(samples, limits) if samples else [])
            empty = Detections.empty(self.classes)
            return [(frame, next(found) if isinstance(frame, Frame) else empty) for frame in frames]

        groups = _batches(frames, batch)
        return chain.from_iterable(map(detect, groups) if self.streams < 2 else threaded(detect, groups, self.streams))

    def limits(
        self,
        conf: float | None = None,
        iou: float | None = None,
        max_detections: int = 100,
        classes: Classes | None = None,
    ) -> Limits:
        """``Limits`` of these values: the model's own where ``conf`` or ``iou`` is None, class names made labels.

        Raises:
            DetkitError: An unknown class, with the nearest name, or a value out of range.
        """
        several = [classes] if isinstance(classes, (int, str)) else classes
        labels = None if several is None else tuple(self._label(one) for one in several)
        lowest, most = self.threshold if conf is None else conf, self.iou if iou is None else iou
        return Limits(lowest, most, max_detections, labels)

    def _label(self, name: int | str) -> int:
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if isinstance(name, int) and 0 <= name < len(self.classes):
            return name
        do = nearest(name, self.classes, otherwise=f"it knows {some(self.classes)}")
        raise DetkitError(f"the model knows no class {name!r}", "classes", do)


def _batches(frames: Iterable[Seen], batch: int) -> Iterator[list[Seen]]:
    """So many images at a time, failures in their places among them."""
    waiting: list[Seen] = []
    for frame in frames:
        waiting.append(frame)
        if sum(isinstance(one, Frame) for one in waiting) in (0, batch):
            yield waiting
            waiting = []
    if waiting:
        yield waiting


class PredictsSamples(Protocol):
    """The least that ``as_predictor`` makes a Predictor of."""

    classes: tuple[str, ...]

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """As ``Predictor.predict_samples``."""


class Wrapped(Predictor):
    """A predictor that asks another, and says of itself what that one says.

    Args:
        inner: The other.
    """

    def __init__(self, inner: PredictsSamples) -> None:
        self.classes, self.inner = tuple(inner.classes), inner
        for name in ("class_ids", "threshold", "iou", "protocol", "flip_pairs", "precision"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The other's."""
        return getattr(self.inner, "input_size", None)

    @property
    def usual_sizes(self) -> UsualSizes | None:
        """The other's."""
        return getattr(self.inner, "usual_sizes", None)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        return self.inner.predict_samples(samples, limits)


def as_predictor(model: PredictsSamples) -> Predictor:
    """``model`` itself where it is a Predictor; else one that asks it, with the defaults of what it does not say."""
    return model if isinstance(model, Predictor) else Wrapped(model)
