"""Points of objects from COCO's key points to a model's input: they follow the pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.data.annotations import Findings, concat_annotations
from detkit.data.augment import Augment
from detkit.data.coco import _tolerant
from detkit.data.dataset import Dataset, read
from detkit.data.resize import Resize, moved_target
from detkit.data.show import sample_grid
from detkit.data.warp import cropped, turned
from detkit.io.images import write_image
from detkit.structures import Sample, Target

RESIZE = Resize(128)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """One image of 60 x 80 pixels: a person with three key points, one that has two, one that has none."""
    write_image(tmp_path / "a.png", np.zeros((60, 80, 3), np.uint8))
    keypoints = [[10, 12, 2, 20, 12, 1, 0, 0, 0], [50, 40, 2, 60, 40, 2], None]
    boxes = [[5, 5, 30, 30], [45, 30, 20, 25], [0, 0, 9, 9]]
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, **({"keypoints": points} if points else {})}
        for k, (box, points) in enumerate(zip(boxes, keypoints, strict=True))
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}]
    table = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "people.json").write_text(json.dumps(table))
    return tmp_path / "people.json"


def test_key_points_are_read_at_the_centres_of_their_pixels(people: Path) -> None:
    found = read(people)
    assert found.points is not None
    assert found.points[0].tolist() == [[10.5, 12.5, 2], [20.5, 12.5, 1], [0.5, 0.5, 0]]
    assert found.points[1].tolist() == [[50.5, 40.5, 2], [60.5, 40.5, 2], [0, 0, 0]]
    assert not found.points[2].any()
    target = Dataset(found).load(0).target
    np.testing.assert_array_equal(target.points, found.points)
    assert found.ground_truth().points is found.points


def test_key_points_stay_with_their_objects(people: Path) -> None:
    found = read(people)
    assert found.subset([0, 0]).points.shape == (6, 3, 3)  # type: ignore[union-attr]
    both = concat_annotations([found, found])
    assert both.points is not None
    assert both.points.shape == (6, 3, 3)
    assert concat_annotations([found, replace(found, points=None)]).points is None
    assert concat_annotations([found, replace(found, points=found.points[:, :2])]).points is None  # type: ignore[index]
    assert len(sample_grid([Dataset(found).load(0)], found.classes, tile=64)) > 64


def test_a_file_that_needs_patience_has_key_points_too(people: Path) -> None:
    value = json.loads(people.read_text())
    value["annotations"][0]["keypoints"][0] = "far left"
    assert _tolerant(value, people, Findings()).annotations[0].keypoints == [0.0, 12.0, 2.0, 20.0, 12.0, 1.0, 0, 0, 0]


def marked(x: float, y: float, also: float = 0.0) -> Sample:
    """Black, with a disc of 5 pixels around (x, y); its second point is ``also`` to the right."""
    rows, columns = np.mgrid[:100, :100] + 0.5
    image = np.zeros((100, 100, 3), np.uint8)
    image[np.hypot(columns - x, rows - y) < 5] = 255
    points = np.array([[[x, y, 2], [x + also, y, 2]]], np.float32)
    return Sample(image, Target(np.array([[10, 10, 90, 90]], np.float32), np.array([0]), points=points))


@pytest.mark.parametrize(
    "strengths",
    [
        {"mirror": 1.0},
        {"flip": 1.0},
        {"mirror": 0.5, "scale": (0.6, 1.2), "aspect": 0.2},
        {"rotate": 40.0, "shear": 15.0},
        {"warp": 0.2, "scale": (0.8, 1.0)},
        {"crop": 1.0, "crop_area": (0.5, 0.9)},
    ],
)
def test_points_follow_the_pixels_through_every_change(strengths: dict) -> None:  # type: ignore[type-arg]
    augment = Augment.off(**strengths)
    seen = 0
    for seed in range(12):
        out = augment(marked(37, 61), np.random.default_rng(seed), RESIZE)
        image = moved = out.image
        if not len(out.target):
            continue
        x, y, visible = out.target.points[0, 0]
        rows, columns = np.nonzero(image[..., 0] > 128)
        if visible and min(x, y, 128 - x, 128 - y) > 14:
            assert np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) < 1.5
            seen += 1
        assert visible == (0 <= x <= moved.shape[1] and 0 <= y <= moved.shape[0]) * 2
    assert seen > 2


def test_a_mirror_swaps_the_pairs_and_half_a_turn_does_not() -> None:
    sample = marked(30, 50, also=40)
    mirrored = turned(sample, True, False, [(0, 1)])
    assert mirrored.target.points[0, :, 0].tolist() == [30, 70]
    assert turned(sample, True, False).target.points[0, :, 0].tolist() == [70, 30]
    assert turned(sample, True, True, [(0, 1)]).target.points[0, :, 0].tolist() == [70, 30]
    assert sample.target.points[0, :, 0].tolist() == [30, 70]
    for strengths in ({}, {"scale": (1.0, 1.0)}):  # by turning the pixels, and by one map
        augment = Augment.off(mirror=1.0, **strengths)
        augment.flip_pairs = [(0, 1)]
        out = augment(sample, np.random.default_rng(0), RESIZE)
        np.testing.assert_allclose(out.target.points[0, :, 0], [30 * 1.28, 70 * 1.28], rtol=1e-5)


def test_points_outside_a_crop_are_not_visible() -> None:
    out = cropped(marked(30, 50, also=40), (20, 0, 60, 100), 0.0)
    assert out.target.points[0].tolist() == [[10, 50, 2], [50, 50, 0]]


def test_reduced_images_reduce_their_points(tmp_path: Path, people: Path) -> None:
    found = read(people)
    write_image(tmp_path / "b.jpg", np.zeros((240, 320, 3), np.uint8))
    large = replace(found, files=[str(tmp_path / "b.jpg")], sizes=np.array([[240, 320]]))
    small = Dataset(large).load(0, reduce_to=80)
    factor = small.image.shape[1] / 320
    assert factor <= 0.5
    assert small.target.points[0, 0].tolist() == [10.5 * factor, 12.5 * factor, 2]
    target = moved_target(small.target, Resize(160).geometry(*small.image.shape[:2]))
    assert target.points[0, 0].tolist() == pytest.approx([10.5 / 2, 12.5 / 2, 2])
