"""Draws the example's data, in its own format: ``python draw.py FOLDER``."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from detkit.data.toy import CLASSES, toy_sample
from detkit.io.images import write_image


def draw(folder: Path, size: int = 96, train: int = 16, val: int = 4) -> None:
    """Writes ``folder``/train and ``folder``/val: images of shapes, and boxes.csv beside them."""
    for part, seeds in (("train", range(train)), ("val", range(1000, 1000 + val))):
        rows = []
        for seed in seeds:
            sample = toy_sample(seed, size)
            write_image(folder / part / sample.path, sample.image)
            for box, label in zip(sample.target.boxes.tolist(), sample.target.labels.tolist(), strict=True):
                rows.append([sample.path, *box, CLASSES[label]])
        with (folder / part / "boxes.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
