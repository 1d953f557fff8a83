"""Toy images: seeded, labelled to the pixel, and readable as the data set that they are written as."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detkit.data.dataset import Dataset, read
from detkit.data.toy import CLASSES, toy_sample, write_toy_data


def test_seed_decides() -> None:
    a, b, c = toy_sample(3), toy_sample(3), toy_sample(4)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.target.boxes, b.target.boxes)
    assert not np.array_equal(a.image, c.image)


def test_boxes_hold_the_shapes() -> None:
    """Painting the ground again inside the boxes leaves nothing of the shapes: outside, the image is ground."""
    for seed in range(20):
        sample = toy_sample(seed)
        assert 1 <= len(sample.target) <= 4
        for box, label in zip(sample.target.boxes.astype(int), sample.target.labels, strict=True):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 160
            assert 0 <= y1 < y2 <= 160
            if label == 1:  # a square fills its box with one colour, to the last column, and not beyond
                inside = sample.image[y1:y2, x1:x2].reshape(-1, 3)
                assert (inside == inside[0]).all()
                if x2 < 160:
                    assert (sample.image[y1:y2, x2] != inside[0]).any(axis=1).mean() > 0.9


def test_written_data_reads_back(tmp_path: Path) -> None:
    write_toy_data(tmp_path, train=3, val=2, size=96, seed=5)
    train = Dataset(read(tmp_path, split="train"))
    assert (len(train), train.classes) == (3, CLASSES)
    assert len(read(tmp_path, split="val")) == 2
    assert train.annotations.findings == []
    for i in range(3):
        sample, drawn = train.load(i), toy_sample(5 + i, 96)
        assert np.array_equal(sample.image, drawn.image)
        assert np.array_equal(sample.target.boxes, drawn.target.boxes)
        assert np.array_equal(sample.target.labels, drawn.target.labels)
