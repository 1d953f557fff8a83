from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from detkit.data.augment import (
    IMAGENET_COVARIANCE,
    Augment,
    colour_shift,
    principal_axes,
    usable,
)
from detkit.data.resize import Resize
from detkit.data.warp import Warp, cropped, turned
from detkit.errors import DetkitError
from detkit.structures import Sample, Target

RESIZE = Resize(256, fill=0)
COLOURS = ("shift", "brightness", "contrast", "saturation", "hue", "pca")


def drawn(shape: str, height: int = 300, width: int = 400, box: tuple[int, ...] = (120, 90, 260, 190)) -> Sample:
    """White shape on black and its box; ellipses fill their box to the pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    if shape == "rectangle":
        image[y1:y2, x1:x2] = 255
    else:
        xs, ys = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        inside = ((xs - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((ys - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2
        image[inside <= 1] = 255
    target = Target(np.array([box], np.float32), np.array([3]), area=np.array([5000.0]), weight=np.array([0.5]))
    return Sample(image, target, proposals=np.array([box], np.float32), image_id=7, path="drawn.png")


def extent(image: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(image[..., 0] > 127)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


@pytest.mark.parametrize(
    ("shape", "strengths"),
    [
        ("rectangle", {"mirror": 1.0}),
        ("rectangle", {"flip": 1.0, "mirror": 1.0}),
        ("rectangle", {"scale": (0.4, 2.0), "mirror": 0.5}),
        ("rectangle", {"aspect": 0.5, "flip": 0.5}),
        ("rectangle", {"rotate": 180.0, "boxes": "corners"}),
        ("rectangle", {"shear": 30.0, "rotate": 30.0, "boxes": "corners"}),
        ("rectangle", {"warp": 0.1, "rotate": 90.0, "boxes": "corners"}),
        ("rectangle", {"crop": 1.0}),
        ("rectangle", {"crop": 1.0, "scale": (0.7, 1.3), "mirror": 0.5}),
        ("ellipse", {"rotate": 180.0}),
        ("ellipse", {"shear": 30.0}),
        ("ellipse", {"rotate": 45.0, "shear": 20.0, "scale": (0.6, 1.0), "aspect": 0.3}),
        ("ellipse", {"warp": 0.15}),
        ("ellipse", {"warp": 0.1, "rotate": 90.0, "mirror": 0.5, "scale": (0.6, 1.0)}),
    ],
)
def test_boxes_follow_the_pixels_to_one_pixel(shape: str, strengths: dict) -> None:
    augment = Augment.off(**strengths)
    compared = 0
    for seed in range(25):
        out = augment(drawn(shape), np.random.default_rng(seed), RESIZE)
        assert out.image.shape == (256, 256, 3)
        if not len(out.target):
            continue
        box = out.target.boxes[0]
        np.testing.assert_allclose(extent(out.image), box, atol=1.0, err_msg=f"seed {seed}")
        if box.min() > 0 and box.max() < 256:  # of an object across the border a proposal is only cut
            np.testing.assert_allclose(out.proposals, out.target.boxes, atol=1e-3)
        compared += 1
    assert compared >= 8


def test_edges_on_the_border_stay_on_the_border() -> None:
    sample = drawn("rectangle", box=(0, 0, 400, 300))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        out = Augment.off(mirror=0.5, flip=0.5)(sample, rng, Resize((300, 400)))
        np.testing.assert_array_equal(out.target.boxes, [[0, 0, 400, 300]])
        out = Augment.off(scale=(1.2, 2.0), mirror=0.5)(sample, rng, Resize((300, 400)))
        np.testing.assert_allclose(out.target.boxes, [[0, 0, 400, 300]], atol=1e-4)
        out = Augment.off(crop=1.0)(sample, rng, Resize(256, mode="stretch"))
        np.testing.assert_allclose(out.target.boxes, [[0, 0, 256, 256]], rtol=1e-6, atol=1e-9)
    right = turned(drawn("rectangle", box=(0, 10, 30, 40)), mirror=True, flip=False)
    np.testing.assert_array_equal(right.target.boxes, [[370, 10, 400, 40]])


def test_rotation_uses_the_inscribed_ellipse() -> None:
    # A 40 x 20 box turned by 45 degrees: half extents sqrt((20^2 + 10^2) / 2), not the corners' 30 / sqrt(2).
    c = np.sqrt(0.5)
    warp = Warp(np.array([[c, -c, 0], [c, c, 0]]), (100, 100))
    box = warp.boxes(np.array([[-20, -10, 20, 10]]))[0]
    np.testing.assert_allclose(box, np.sqrt(250) * np.array([-1, -1, 1, 1]))
    turned_square = warp.boxes(np.array([[-10, -10, 10, 10]]))[0]
    np.testing.assert_allclose(turned_square, [-10, -10, 10, 10])
    corners = replace(warp, outline="corners").boxes(np.array([[-20, -10, 20, 10]]))[0]
    np.testing.assert_allclose(corners, 30 * c * np.array([-1, -1, 1, 1]))


def test_across_the_border_counts_what_is_left_of_the_ellipse() -> None:
    # A disc of radius 10 around (-5, 50): inside x >= 0 is 5 wide and 2 sqrt(10^2 - 5^2) high; another stays outside.
    c = np.sqrt(0.5)
    turn = np.array([[c, -c], [c, c]])
    centres = np.array([[-5.0, 50], [-8, -8]]) @ turn  # turned back
    target = Target(np.concatenate([centres - 10, centres + 10], axis=1).astype(np.float32), np.array([0, 1]))
    moved = Warp(np.column_stack([turn, [0, 0]]), (100, 100)).target(target, 0)
    assert moved.labels.tolist() == [0]
    half = np.sqrt(75)
    np.testing.assert_allclose(moved.boxes[0], [0, 50 - half, 5, 50 + half], atol=0.05)


def test_everything_off_is_exactly_what_evaluation_sees() -> None:
    sample = drawn("ellipse")
    image = np.random.default_rng(0).integers(0, 256, sample.image.shape, dtype=np.uint8)
    sample = sample.replace(image=image)
    out = Augment.off()(sample, np.random.default_rng(0), RESIZE)
    expected, geometry = RESIZE(image)
    np.testing.assert_array_equal(out.image, expected)
    np.testing.assert_allclose(out.target.boxes, geometry.to_input(sample.target.boxes), rtol=1e-6)


def test_everything_known_of_an_object_is_carried() -> None:
    target = Target(
        np.array([[10, 10, 50, 50], [60, 60, 90, 90]], np.float32),
        np.array([1, 2]),
        crowd=np.array([True, False]),
        difficult=np.array([False, True]),
        area=np.array([800.0, 100.0]),
        weight=np.array([0.5, 2.0]),
    )
    sample = Sample(np.zeros((128, 128, 3), np.uint8), target, image_id="a", path="b")
    out = Augment.off(mirror=1.0)(sample, np.random.default_rng(0), RESIZE)
    assert (out.image_id, out.path) == ("a", "b")
    np.testing.assert_array_equal(out.target.labels, [1, 2])
    np.testing.assert_array_equal(out.target.crowd, [True, False])
    np.testing.assert_array_equal(out.target.difficult, [False, True])
    np.testing.assert_array_equal(out.target.weight, [0.5, 2.0])
    np.testing.assert_allclose(out.target.area, [3200, 400])  # twice as wide and as high


def test_objects_cut_by_a_crop_are_cut_ignored_or_gone() -> None:
    boxes = np.array([[0, 0, 40, 40], [30, 0, 70, 40], [38.5, 0, 58.5, 40], [60, 60, 80, 80]], np.float32)
    sample = Sample(np.zeros((100, 100, 3), np.uint8), Target(boxes, np.arange(4)))
    out = cropped(sample, (0, 0, 40, 40), min_visible=0.3).target
    np.testing.assert_array_equal(out.labels, [0, 1, 2])
    np.testing.assert_array_equal(out.boxes[1], [30, 0, 40, 40])
    np.testing.assert_array_equal(out.difficult, [False, True, True])
    np.testing.assert_allclose(out.area[1], 400)


def test_degenerate_boxes_are_dropped() -> None:
    boxes = np.array([[5, 5, 5, 9], [np.nan, 0, 5, 5], [8, 8, 4, 4], [200, 5, 220, 9], [5, 5, 25, 25]], np.float32)
    sample = Sample(np.zeros((100, 100, 3), np.uint8), Target(boxes, np.arange(5), area=np.ones(5)))
    assert usable(sample.target, (100, 100)).labels.tolist() == [4]
    augment = Augment.off(scale=(0.9, 1.1))
    out = augment(sample, np.random.default_rng(0), RESIZE)
    assert out.target.labels.tolist() == [4]
    empty = augment(sample.replace(target=Target.empty()), np.random.default_rng(0), RESIZE)
    assert len(empty.target) == 0


def test_colour_shift_is_exact_and_clipped() -> None:
    image = np.array([[[100, 100, 100], [250, 10, 240], [0, 0, 0]]], np.uint8)
    expected = [[[120, 80, 120], [255, 0, 255], [20, 0, 20]]]
    np.testing.assert_array_equal(colour_shift(image, (20, -20, 20)), expected)


def test_pca_changes_most_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-100, 100, (64, 64))
    image = np.stack([128 + values, 128 + values / 20, 128 + values * 0.9], axis=-1).astype(np.uint8)
    covariance = np.cov(image.reshape(-1, 3).T)
    augment = Augment.off(pca=0.5, covariance=covariance.tolist())
    changes = []
    for seed in range(50):
        out = augment(Sample(image), np.random.default_rng(seed), Resize(64))
        changes.append(np.abs(out.image.astype(int) - image).mean(axis=(0, 1)))
    red, green, blue = np.mean(changes, axis=0)
    assert min(red, blue) > 8 * green
    assert red > 2


def test_pca_axes_are_eigenvectors_times_eigenvalues() -> None:
    axes = principal_axes(IMAGENET_COVARIANCE)
    lengths = np.linalg.norm(axes, axis=0) / 255
    np.testing.assert_allclose(np.sort(lengths), [0.0045, 0.0188, 0.2175], rtol=1e-2)
    with pytest.raises(DetkitError):
        principal_axes([[1, 2], [3, 4]])


@pytest.mark.parametrize("name", [*COLOURS, "noise", "blur", "grey"])
def test_each_pixel_change_has_a_switch_and_leaves_boxes_alone(name: str) -> None:
    strength = {"hue": 0.3, "noise": 40.0, "blur": 3, "shift": 30.0}.get(name, 1.0)
    sample = drawn("ellipse", 256, 256, (60, 90, 200, 190))
    noise = np.random.default_rng(1).integers(0, 200, sample.image.shape, dtype=np.uint8)
    sample = sample.replace(image=cv2.addWeighted(sample.image, 0.2, noise, 0.8, 0))
    before = sample.image.copy()
    out = Augment.off(chance=1.0, **{name: strength})(sample, np.random.default_rng(3), RESIZE)
    assert (out.image != sample.image).any()
    np.testing.assert_array_equal(out.target.boxes, sample.target.boxes)
    np.testing.assert_array_equal(sample.image, before)


def test_same_generator_same_image_also_after_pickling() -> None:
    augment = Augment(rotate=10, shear=5, warp=0.1, crop=0.5, noise=20, blur=2, grey=0.3, mixup=0.5)
    others = [drawn("ellipse"), drawn("rectangle", 200, 200, (20, 30, 90, 80))]
    first, second = (
        a(drawn("ellipse").replace(proposals=None), rng, RESIZE, lambda: others[1].replace(proposals=None))
        for a, rng in ((x, np.random.default_rng(5)) for x in (augment, pickle.loads(pickle.dumps(augment))))
    )
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.target.boxes, second.target.boxes)


@pytest.mark.parametrize(
    "values", [{"mirror": 1.5}, {"scale": (2.0, 1.0)}, {"warp": 0.9}, {"hue": 0.7}, {"crop_area": (0.0, 1.0)}]
)
def test_strengths_out_of_range_are_a_persons_error(values: dict) -> None:
    with pytest.raises(DetkitError) as error:
        Augment(**values)
    assert f"augment.{next(iter(values))}" in str(error.value)


def test_importing_is_light() -> None:
    code = "import sys, detkit.data.augment; print([m for m in ('torch', 'albumentations') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
