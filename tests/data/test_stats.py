"""Numbers that describe a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit.data.dataset import read
from detkit.data.stats import colour_statistics, describe_annotations, plot_annotations
from detkit.errors import DetkitError
from detkit.io.images import read_image, write_image


def test_describe(coco_file: Path) -> None:
    numbers = describe_annotations(read(coco_file))
    assert (numbers["images"], numbers["images_without_boxes"], numbers["boxes"]) == (3, 1, 3)
    assert numbers["classes"] == {"red": {"boxes": 2, "images": 2}, "blue thing": {"boxes": 1, "images": 1}}
    assert numbers["sizes"] == {"small": 3, "medium": 0, "large": 0}
    assert numbers["boxes_per_image"]["mean"] == 1


def test_colour_covariance(coco_file: Path) -> None:
    a = read(coco_file)
    rng = np.random.default_rng(3)
    mixing = np.asarray([[30, 0, 0], [20, 10, 0], [5, 5, 20]])
    for file in a.files:
        pixels = 128 + rng.normal(size=(200, 200, 3)) @ mixing.T
        write_image(file, np.clip(pixels, 0, 255).astype(np.uint8), overwrite=True)
    rgb = colour_statistics(a, seed=1)
    assert rgb.images == 3
    np.testing.assert_allclose(rgb.mean, 128, atol=2)
    np.testing.assert_allclose(rgb.covariance, mixing @ mixing.T, atol=40)
    assert (colour_statistics(a, seed=1).covariance == rgb.covariance).all()


def test_colour_without_images(coco_file: Path) -> None:
    a = read(coco_file)
    for file in a.files:
        Path(file).unlink()
    with pytest.raises(DetkitError, match="none of the images"):
        colour_statistics(a)


def test_plot(coco_file: Path, tmp_path: Path) -> None:
    a = read(coco_file)
    plot_annotations(a, tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").std() > 10
    with pytest.raises(DetkitError, match="exists"):
        plot_annotations(a, tmp_path / "p.png")
    with pytest.raises(DetkitError, match=r"written as \.xyz"):
        plot_annotations(a.subset([2]), tmp_path / "p.xyz")
