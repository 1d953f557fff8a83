"""One scene, three images with five boxes, that every export in this folder holds and every reader must find again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from detkit.data.annotations import Annotations
from detkit.data.convert import convert_annotations
from detkit.data.dataset import read
from detkit.io.images import write_image


@dataclass(frozen=True)
class Box:
    """One object: its class, and x, y, w, h in zero-based pixels."""

    name: str
    x: int
    y: int
    w: int
    h: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.w, self.y + self.h

    @property
    def polygon(self) -> list[list[int]]:
        """A diamond that touches all four sides."""
        x1, y1, x2, y2 = self.corners
        return [[x1 + self.w // 2, y1], [x2, y1 + self.h // 2], [x1 + self.w // 2, y2], [x1, y1 + self.h // 2]]


@dataclass(frozen=True)
class Photo:
    """One image: its file name, size in pixels, objects."""

    file: str
    width: int
    height: int
    boxes: tuple[Box, ...]

    @property
    def stem(self) -> str:
        return Path(self.file).stem


class Scene:
    """Iterates over its photos."""

    classes = ("cat", "dog")
    photos = (
        Photo("alpha.jpg", 64, 48, (Box("cat", 4, 6, 20, 12), Box("dog", 30, 10, 34, 38))),
        Photo("beta.jpg", 40, 60, (Box("cat", 0, 0, 10, 16), Box("cat", 12, 20, 16, 30))),
        Photo("gamma.jpg", 50, 50, (Box("dog", 5, 10, 25, 20),)),
    )

    def __iter__(self) -> Iterator[Photo]:
        return iter(self.photos)

    def draw(self, folder: Path, *names: str) -> None:
        """Writes the images into ``folder``; names: instead of their own, in their order."""
        folder.mkdir(parents=True, exist_ok=True)
        for k, (photo, name) in enumerate(zip(self.photos, names or [p.file for p in self.photos], strict=True)):
            write_image(folder / name, np.full((photo.height, photo.width, 3), 60 + 50 * k, np.uint8))

    def check(self, a: Annotations, findings: dict[str, int] | None = None, atol: float = 1e-3) -> None:
        """The labels are the scene's; ``findings``: what the reader has to say, by name, counted (None: nothing).

        An image's name in the export may hold more than its own (alpha_jpg.rf.0a1b.jpg).
        """
        assert {f.name: f.count for f in a.findings} == (findings or {})
        assert sorted(a.classes) == list(self.classes)
        assert len(a) == len(self.photos)
        assert all(Path(file).is_file() for file in a.files), a.files
        for photo in self.photos:
            (i,) = (i for i, file in enumerate(a.files) if photo.stem in Path(file).name)
            assert a.sizes[i].tolist() == [photo.height, photo.width]
            rows = slice(int(a.offsets[i]), int(a.offsets[i + 1]))
            found = sorted(
                [a.classes[label], *box] for label, box in zip(a.labels[rows], a.xywh[rows].tolist(), strict=True)
            )
            wanted = sorted([b.name, b.x, b.y, b.w, b.h] for b in photo.boxes)
            assert [row[0] for row in found] == [row[0] for row in wanted]
            np.testing.assert_allclose([row[1:] for row in found], [row[1:] for row in wanted], atol=atol)
        assert not a.crowd.any()
        assert not a.difficult.any()

    def check_round_trips(self, a: Annotations, folder: Path, coco: dict[str, int] | None = None) -> None:
        """Written in every format and read again the labels are the scene's; only COCO's may say ``coco``."""
        for to in ("coco", "voc", "yolo", "csv", "labelme"):
            convert_annotations({"train": a}, to, folder / to)
            self.check(read(folder / to), coco if to == "coco" else None)
        if a.source is not None and a.source.images is not None:  # the images stay where they are
            convert_annotations({"train": a}, "coco", folder / "alone.json")
            alone = read(folder / "alone.json")
            more = {f.name: f.count for f in alone.findings if f.name.startswith("image that no label names")}
            self.check(alone, {**(coco or {}), **more})


@pytest.fixture
def scene() -> Scene:
    return Scene()
