from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from detkit.engine.evaluator import detections_to_results
from detkit.engine.options import TrainOptions
from detkit.engine.schedule import rate_factor
from detkit.errors import DetkitError
from detkit.io.sources import Failure, Frame
from detkit.prediction.stream import stream
from detkit.structures import Detections, Limits, Sample


class Counting:
    """Finds one box as wide as the image's first pixel is bright, and notes the sizes of its batches."""

    classes = ("a",)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.batches.append(len(samples))
        widths = [float(sample.image[0, 0, 0]) for sample in samples]
        return [Detections(np.array([[0, 0, w, 1]]), np.ones(1), np.zeros(1), self.classes) for w in widths]


def frames(read: list[int], broken: tuple[int, ...] = ()) -> Iterator[Any]:
    for i in range(7):
        read.append(i)
        if i in broken:
            yield Failure(f"{i}.png", "broken", "")
        else:
            yield Frame(np.full((4, 4, 3), i + 1, np.uint8), f"{i}.png")


@pytest.mark.parametrize("broken", [(), (0,), (2, 3), (6,), tuple(range(7))])
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_stream_keeps_the_order_and_hands_failures_on(batch: int, broken: tuple[int, ...]) -> None:
    predictor, read = Counting(), list[int]()
    found = list(stream(predictor, frames(read, broken), None, batch))
    assert [frame.source for frame, _ in found] == [f"{i}.png" for i in range(7)]
    for i, (frame, detections) in enumerate(found):
        assert isinstance(frame, Failure) == (i in broken) == (len(detections) == 0)
        if i not in broken:
            assert detections.boxes[0, 2] == i + 1
    assert all(size <= batch for size in predictor.batches)


def test_stream_reads_no_further_than_a_batch() -> None:
    read: list[int] = []
    found = stream(Counting(), frames(read), None, 2)
    next(found)
    assert read == [0, 1]


def test_results_are_float64_xywh() -> None:
    one = Detections(np.array([[1, 2, 4, 8]]), np.array([0.5]), np.array([1]))
    results = detections_to_results([one, Detections.empty(), one], [4, 5, 7])
    assert results.image.tolist() == [4, 7]
    assert results.xywh.dtype == np.float64
    assert results.xywh.tolist() == [[1, 2, 3, 6]] * 2
    assert len(detections_to_results([], [])) == 0


def test_rates_rise_and_fall() -> None:
    options = TrainOptions(epochs=10, warmup=1, warmup_steps=0)
    rates = [rate_factor(step, 20, options) for step in range(200)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(options.final_lr, abs=1e-3)
    steps = [rate_factor(s, 20, TrainOptions(epochs=10, schedule="step")) for s in (100, 139, 140, 179, 180)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("ema", 1.0), ("workers", -1)]
)
def test_options_refuse_what_makes_no_sense(name: str, value: Any) -> None:
    with pytest.raises(DetkitError, match=name):
        TrainOptions(**{name: value})
