"""Style transfer: its two losses by hand, and that J falls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.cli import main
from detkit.data.augment import Augment
from detkit.data.resize import Resize
from detkit.data.restyle import restyled
from detkit.explain.features import published_network
from detkit.explain.style import content_loss, gram, style_loss, transfer_style
from detkit.io.images import read_image, write_image
from detkit.structures import Sample


def stripes(size: int = 64) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[:, ::8] = image[:, 1::8] = (250, 200, 20)
    return image


def disc(size: int = 64) -> np.ndarray:
    ys, xs = np.ogrid[:size, :size]
    inside = (ys - size / 2) ** 2 + (xs - size / 2) ** 2 < (size / 3) ** 2
    return np.where(inside[..., None], np.uint8([40, 90, 200]), np.uint8([120, 120, 120])).astype(np.uint8)


def test_the_losses_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]])  # two channels of two places
    assert gram(maps).tolist() == [[5, 2], [2, 1]]
    other = torch.tensor([[[1.0]], [[1.0]]])  # of one place: (5/2 - 1)^2 + 2 (2/2 - 1)^2 + (1/2 - 1)^2 over 4 * 2^2
    assert style_loss(maps, other).item() == pytest.approx((2.25 + 0.25) / 16)
    assert style_loss(maps, maps.flip(2)).item() == 0  # where something is does not matter
    assert content_loss(maps, maps.flip(2)).item() == pytest.approx((1 + 1 + 1 + 1) / 4 / 2)


@pytest.mark.parametrize(("optimizer", "start"), [("lbfgs", "content"), ("adam", "noise")])
def test_the_loss_falls(optimizer: str, start: str) -> None:
    network = published_network("vgg11", "none", 64)
    losses: list[float] = []
    how = {"optimizer": optimizer, "start": start, "steps": 8, "size": 64, "content_stage": 2, "style_stages": [0, 1]}
    made = transfer_style(network, disc(), stripes(), on_step=lambda *told: losses.append(told[1]), **how)  # type: ignore[arg-type]
    assert made.shape == (64, 64, 3)
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "content.png", disc())
    write_image(tmp_path / "style.png", stripes(48))
    words = ["style", str(tmp_path / "content.png"), str(tmp_path / "style.png"), "--weights", "none", "--size", "64"]
    words += ["--network", "resnet20", "-o", str(tmp_path / "out.png"), "--steps", "3"]
    assert main([*words, "--layers", "1:0,1", "--every", "2"]) == 0
    assert read_image(tmp_path / "out.png").shape == (64, 64, 3)
    assert (tmp_path / "out-0002.png").is_file()
    assert main([*words, "--layers", "9:0", "--overwrite"]) == 2
    assert "the network has the stages 0 to" in capsys.readouterr().err
    assert main([*words, "--layers", "2", "--overwrite"]) == 2
    assert "no stages: 2" in capsys.readouterr().err
    assert main(words) == 2  # out exists


def test_statistics_become_the_others() -> None:
    rng = np.random.default_rng(0)
    dark, light = rng.integers(0, 60, (40, 50, 3), dtype=np.uint8), rng.integers(150, 220, (30, 30, 3), dtype=np.uint8)
    made = restyled(dark, light, "statistics")
    assert made.shape == dark.shape
    assert np.allclose(made.mean((0, 1)), light.mean((0, 1)), atol=4)


@pytest.mark.parametrize("by", ["statistics", "fourier"])
def test_an_image_in_its_own_style_stays(by: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8)
    assert np.abs(restyled(image, image, by).astype(int) - image).max() <= 3  # type: ignore[arg-type]


def test_the_lowest_frequencies_carry_the_light() -> None:
    image = disc(100)
    made = restyled(image, np.full((50, 80, 3), 200, np.uint8), "fourier")
    assert made.mean() == pytest.approx(200, abs=12)  # but for what is clipped
    edge = np.abs(np.diff(made[50].astype(int), axis=0)).sum(1)
    assert {int(edge[:50].argmax()), int(edge[50:].argmax()) + 50} == {16, 82} or edge.max() > 60


def test_training_images_take_the_looks_of_others() -> None:
    augment, resize = Augment.off(restyle=1.0), Resize(64)
    sample, other = Sample(disc()), Sample(np.full((64, 64, 3), (200, 10, 10), np.uint8))
    changed = augment(sample, np.random.default_rng(0), resize, lambda: other)
    assert changed.image[..., 0].mean() > 150
    assert np.array_equal(augment(sample, np.random.default_rng(0), resize).image, sample.image)
