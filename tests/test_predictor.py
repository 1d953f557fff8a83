"""What every predictor offers: images of any kind, streams, names; and what is made one by wrapping it."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from detkit.io.sources import Failure, Frame
from detkit.predictor import Predictor, as_predictor
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
@pytest.mark.parametrize("streams", [1, 3])
def test_stream_keeps_the_order_and_hands_failures_on(batch: int, broken: tuple[int, ...], streams: int) -> None:
    counting, read = Counting(), list[int]()
    predictor = as_predictor(counting)
    predictor.streams = streams
    found = list(predictor.detect_frames(frames(read, broken), None, batch))
    assert [frame.source for frame, _ in found] == [f"{i}.png" for i in range(7)]
    for i, (frame, detections) in enumerate(found):
        assert isinstance(frame, Failure) == (i in broken) == (len(detections) == 0)
        if i not in broken:
            assert detections.boxes[0, 2] == i + 1
    assert all(size <= batch for size in counting.batches)


def test_stream_reads_no_further_than_a_batch() -> None:
    read: list[int] = []
    found = as_predictor(Counting()).detect_frames(frames(read), None, 2)
    next(found)
    assert read == [0, 1]


def test_what_predicts_samples_becomes_a_predictor() -> None:
    wrapped = as_predictor(Counting())
    assert isinstance(wrapped, Predictor)
    assert as_predictor(wrapped) is wrapped
    facts = (wrapped.classes, wrapped.class_ids, wrapped.threshold, wrapped.protocol, wrapped.flip_pairs)
    assert facts == (("a",), (0,), 0.25, "coco", ())
    assert wrapped.precision == "fp32"

    class Pointing(Counting):
        class_ids, protocol = ("cow",), "points"

    wrapped = as_predictor(Pointing())
    assert (wrapped.class_ids, wrapped.protocol) == (("cow",), "points")
    assert wrapped.predict(np.full((4, 5, 3), 3, np.uint8), classes=["a"]).boxes[0, 2] == 3


def test_a_list_in_is_a_list_out() -> None:
    counting = Counting()
    images = [np.full((4, 5, 3), i, np.uint8) for i in range(5)]
    found = as_predictor(counting).predict(images, batch=2)
    assert [one.boxes[0, 2] for one in found] == [0, 1, 2, 3, 4]
    assert counting.batches == [2, 2, 1]
    assert as_predictor(counting).predict([]) == []
    assert as_predictor(counting).predict(images[:1], classes="a")[0].boxes[0, 2] == 0
    assert isinstance(as_predictor(counting).predict(images[3], classes=0), Detections)


def test_limits_that_are_not_given_are_the_models() -> None:
    class Careful(Counting):
        threshold, iou = 0.4, 0.65

    assert as_predictor(Careful()).limits() == Limits(0.4, 0.65)
    assert as_predictor(Careful()).limits(0.1, 0.3, classes="a") == Limits(0.1, 0.3, 100, (0,))


class Recalls(Predictor):
    """Finds nothing, and keeps the image."""

    classes = ("a",)

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.seen = [sample.image for sample in samples]
        return [Detections.empty(self.classes) for _ in samples]


def _kinds(pixels: np.ndarray, path: Path) -> dict[str, Any]:
    """Of uint8 (H, W, 4): each kind of image that can hold some of it."""
    rgba, rgb = Image.fromarray(pixels), Image.fromarray(pixels[..., :3])
    rgba.save(path)
    turned = Image.Exif()
    turned[0x0112] = 6
    with BytesIO() as file:
        rgb.save(file, "png", exif=turned)
        data = file.getvalue()
    kinds = {"path": path, "name": str(path), "bytes": data, "turned": Image.open(BytesIO(data))}
    kinds |= {mode: rgb.convert(mode) for mode in ("RGB", "L", "1", "CMYK", "P", "I;16")} | {"RGBA": rgba}
    return kinds | {f"array of {k}": pixels[..., :k] for k in (1, 3, 4)} | {"grey array": pixels[..., 0]}


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_predict_and_stream_see_the_same_image(tmp_path: Path, seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    predictor = Recalls()
    for kind, source in _kinds(pixels, tmp_path / "image.png").items():
        predictor.predict(source)
        image = predictor.seen[0]
        assert image.dtype == np.uint8, kind
        assert image.shape == ((width, height, 3) if kind in ("turned", "bytes") else (height, width, 3)), kind
        for sources in (source, [source], iter([source])):
            assert len(list(predictor.stream(sources))) == 1, kind
            np.testing.assert_array_equal(predictor.seen[0], image, err_msg=kind)
