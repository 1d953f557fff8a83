from __future__ import annotations

import numpy as np
import pytest

from detkit.data.resize import Resize
from detkit.errors import DetkitError


def drawn_extent(image: np.ndarray, threshold: int = 128) -> np.ndarray:
    ys, xs = np.nonzero(image.max(-1) > threshold)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(240, 500), (500, 240), (64, 50), (33, 777)])
def test_boxes_follow_the_pixels(mode: str, height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    box = np.array([[width // 4, height // 3, width // 2 + 3, height]], np.float32)
    x1, y1, x2, y2 = box[0].astype(int)
    image[y1:y2, x1:x2] = 255
    resize = Resize(160, mode=mode, fill=0)
    out, geometry = resize(image)
    assert out.shape == (160, 160, 3)
    np.testing.assert_allclose(drawn_extent(out), geometry.to_input(box)[0], atol=1)
    np.testing.assert_allclose(geometry.to_original(geometry.to_input(box)), box, atol=1e-3)


def test_content_lies_top_left_and_the_rest_is_fill() -> None:
    resize = Resize((100, 200), stride=32, fill=7)
    out, geometry = resize(np.full((50, 50, 3), 200, np.uint8))
    assert resize.input_size == out.shape[:2] == (128, 224)
    assert resize.content(50, 50) == (100, 100)
    assert (out[:100, :100] == 200).all()
    assert (out[100:] == 7).all()
    assert (out[:, 100:] == 7).all()
    assert geometry == (50, 50, 2.0, 2.0, 0.0, 0.0)


def test_border_edges_stay_on_the_border() -> None:
    resize = Resize(320)
    for height, width in [(375, 500), (333, 499), (1, 3000)]:
        box = resize.geometry(height, width).to_input(np.array([[0, 0, width, height]], np.float32))[0]
        np.testing.assert_allclose(box, (0, 0, *resize.content(height, width)[::-1]), rtol=1e-6)


def test_writes_into_out_and_copies_nothing_when_the_size_fits() -> None:
    resize = Resize(64)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert resize(image)[0] is image
    out = np.empty((64, 64, 3), np.uint8)
    assert resize(image, out=out)[0] is out
    np.testing.assert_array_equal(out, image)


def test_survives_a_round_trip_through_a_header() -> None:
    resize = Resize((300, 200), mode="stretch", stride=16, fill=0)
    assert Resize.from_dict(resize.to_dict()) == resize
    assert Resize(320) == Resize((320, 320))


@pytest.mark.parametrize(
    "values", [{"size": 0}, {"size": (3, 4, 5)}, {"size": 32, "mode": "crop"}, {"size": 32, "stride": 0}]
)
def test_senseless_values_are_a_persons_error(values: dict) -> None:
    with pytest.raises(DetkitError):
        Resize(**values)
