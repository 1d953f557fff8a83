from __future__ import annotations

import numpy as np
import pytest

from detkit.data.augment import Augment, mixup_of
from detkit.data.resize import Resize
from detkit.data.warp import Warp
from detkit.structures import Sample, Target

RESIZE = Resize(200, fill=0)


def filled(value: int, label: int, size: int = 100) -> Sample:
    """A grey image with one object in the full red, green or blue of its label."""
    image = np.full((size, size, 3), value, np.uint8)
    image[30:60, 20:80] = 0
    image[30:60, 20:80, label] = 255
    return Sample(image, Target(np.array([[20, 30, 80, 60]], np.float32), np.array([label])), image_id=label)


def test_four_images_with_boxes_on_their_pixels() -> None:
    augment = Augment.off(mosaic=1.0, scale=(0.45, 0.6))
    for seed in range(10):
        others = iter([filled(10, 1), filled(10, 2), filled(10, 2)])
        out = augment(filled(10, 0), np.random.default_rng(seed), RESIZE, lambda: next(others))  # noqa: B023
        assert out.image.shape == (200, 200, 3)
        assert out.image_id == 0
        for label in (0, 1):
            rows = out.target.boxes[out.target.labels == label]
            ys, xs = np.nonzero((out.image[..., label] > 127) & (out.image.sum(-1) < 300))
            if len(rows):
                np.testing.assert_allclose(rows[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
            else:
                assert len(xs) < 60


def test_points_and_masks_follow_the_pixels_and_joined_images_have_no_mask() -> None:
    def marked(label: int) -> Sample:
        """A dark image with one bright pixel, the object's point."""
        image = np.zeros((100, 100, 3), np.uint8)
        image[40:44, 50:54] = 255
        points = np.array([[[52, 42, 1]]], np.float32)
        mask = np.ones((100, 100), np.uint8)
        return Sample(image, Target(np.array([[20, 30, 80, 60]]), np.array([label]), points=points, mask=mask))

    for strengths in ({"mosaic": 1.0}, {"rotate": 40.0, "warp": 0.2}, {"mirror": 1.0}, {"mixup": 1.0}):
        augment = Augment.off(scale=(0.9, 1.0), aspect=0.2, **strengths)
        out = augment(marked(0), np.random.default_rng(3), RESIZE, lambda: marked(1))
        assert (out.target.mask is None) == (not strengths.keys().isdisjoint({"mosaic", "mixup"}))
        assert len(out.target) > 0
        ys, xs = np.nonzero(out.image[..., 0] > 50)
        inside = [p for p in out.target.points[:, 0] if (np.hypot(xs + 0.5 - p[0], ys + 0.5 - p[1]) < 3).any()]
        assert inside, "a point's pixel may be cut off, but not all of them"
        for x, y, _ in inside:
            near = np.hypot(xs + 0.5 - x, ys + 0.5 - y) < 12
            assert abs(xs[near].mean() + 0.5 - x) < 1.5
            assert abs(ys[near].mean() + 0.5 - y) < 1.5


def test_boxes_do_not_leave_their_quadrant(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(resize: Resize, sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Warp:
        return Warp(np.array([[4.0, 0, -40], [0, 4, -60]]), size)

    samples = [filled(50, label) for label in (0, 1, 2, 0)]
    augment = Augment.off(min_visible=0.5)
    monkeypatch.setattr(augment, "_place", place)
    out = augment._mosaic(samples, RESIZE, np.random.default_rng(0))
    draws = np.random.default_rng(0)
    x, y = int(200 * draws.uniform(0.3, 0.7)), int(200 * draws.uniform(0.3, 0.7))
    # The object covers 40..280 and 60..180 of each quadrant, before that cuts it.
    expected = np.array(
        [
            [40, 60, x, y],
            [x + 40, 60, 200, y],
            [40, y + 60, x, 200],
            [x + 40, y + 60, 200, 200],
        ]
    )
    there = (expected[:, 2:] > expected[:, :2]).all(axis=1)
    np.testing.assert_array_equal(out.target.boxes, expected[there])
    assert there.sum() >= 2
    assert out.target.difficult.all()


def test_mixup_blends_and_weights_both() -> None:
    first, second = filled(0, 0), filled(200, 1)
    rng = np.random.default_rng(4)
    share = np.random.default_rng(4).beta(1.5, 1.5)
    out = mixup_of(first, second, rng)
    np.testing.assert_allclose(out.target.weight, [share, 1 - share], rtol=1e-6)
    np.testing.assert_allclose(out.image[0, 0], 200 * (1 - share), atol=1)
    assert out.target.labels.tolist() == [0, 1]


def test_switched_off_where_no_other_image_is_given() -> None:
    out = Augment.off(mosaic=1.0, mixup=1.0)(filled(10, 0), np.random.default_rng(0), RESIZE)
    assert len(out.target) == 1


def test_proposals_are_refused() -> None:
    sample = filled(10, 0).replace(proposals=np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="proposals"):
        Augment.off(mosaic=1.0)(sample, np.random.default_rng(0), RESIZE, lambda: sample)
