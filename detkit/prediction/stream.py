"""Detections in a stream of images, one batch in memory whatever its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from detkit.structures import Detections, Limits, Predictor, Sample

if TYPE_CHECKING:
    from detkit.io.sources import Failure, Frame


def stream(
    predictor: Predictor, frames: Iterable[Frame | Failure], limits: Limits | None = None, batch: int = 1
) -> Iterator[tuple[Frame | Failure, Detections]]:
    """Each frame with its detections (numpy, in the frame's pixels), in order.

    What could not be read comes through as the Failure that it is, with no detections, in its place. limits default to
    those for people. Frames are read only as they are needed, ``batch`` at a time.
    """
    limits = limits or Limits()
    waiting: list[Frame | Failure] = []
    images = 0
    for frame in frames:
        waiting.append(frame)
        images += hasattr(frame, "image")
        if images == batch or not images:
            yield from _detect(predictor, waiting, limits)
            waiting, images = [], 0
    yield from _detect(predictor, waiting, limits)


def _detect(
    predictor: Predictor, frames: list[Frame | Failure], limits: Limits
) -> Iterator[tuple[Frame | Failure, Detections]]:
    samples = [Sample(frame.image, path=frame.source) for frame in frames if hasattr(frame, "image")]
    found = iter(predictor.predict_samples(samples, limits) if samples else [])
    for frame in frames:
        yield frame, next(found) if hasattr(frame, "image") else Detections.empty(predictor.classes)
