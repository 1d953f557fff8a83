"""Masks as PNGs and in a COCO json: what each pixel is, and what is said of files that are wrong."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset, read, splits
from detkit.data.masks import label_map, label_maps, pixel_counts
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.io.masks import mask_bytes, read_mask, voc_colours
from detkit.structures import Detections, Sample, Target

NUMBERS = np.array([[0, 1, 1, 2], [0, 1, 1, 2], [3, 3, 255, 9]], np.uint8)


def write(folder: Path, name: str, mask: np.ndarray, size: tuple[int, int] = (3, 4)) -> None:
    for part, pixels in (("images", np.full((*size, 3), 90, np.uint8)), ("masks", mask)):
        file = folder / part / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train/a", NUMBERS)
    write(tmp_path, "val/a", NUMBERS.copy() * 0)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\nvoid\n")
    return tmp_path


def test_a_damaged_length_takes_no_memory(tmp_path: Path) -> None:
    data = mask_bytes(NUMBERS, voc_colours())
    place = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:place] + b"\x7f\xff\xff\xff" + data[place + 4 :])
    tracemalloc.start()
    read_mask(tmp_path / "a.png", (3, 4))  # all pixels are there
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_numbers_have_names(folder: Path) -> None:
    assert splits(folder) == ["train", "val"]
    found = read(folder, split="train")
    assert found.classes == ("cat", "dog")
    assert found.class_ids == (1, 2)
    assert found.xywh.tolist() == [[1, 0, 2, 2], [3, 0, 1, 2]]
    assert found.area.tolist() == [4, 2]
    assert label_map(found, 0, (3, 4)).tolist() == [[254, 0, 0, 1], [254, 0, 0, 1], [255, 255, 255, 255]]
    (finding,) = found.findings
    assert "without a name" in finding.name
    assert finding.examples[0].endswith("a.png: 1 pixel, the first of number 9")
    chosen = found.select_classes(["dog"])
    assert label_map(chosen, 0, (3, 4)).tolist()[0] == [254, 254, 254, 0]
    both = read(folder)
    assert len(both) == 2
    assert (label_map(both.subset([1]), 0, (3, 4)) == 254).all()


def test_colours_are_numbers_by_the_palette(folder: Path) -> None:
    colours = voc_colours()
    assert colours[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]
    ]  # fmt: skip
    write(folder, "train/b", np.where((NUMBERS == 9)[..., None], [1, 2, 3], colours[NUMBERS]).astype(np.uint8))
    found = read(folder, split="train")
    assert label_map(found, 1, (3, 4)).tolist() == label_map(found, 0, (3, 4)).tolist()
    assert found.findings[0].examples[1].endswith("b.png: 1 pixel, the first of colour 1,2,3")
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncat:0,0,0::\ndog:1,2,3::\n")
    assert (label_map(read(folder, split="train"), 1, (3, 4)) == 1).sum() == 1


def test_vocs_folders_need_no_list_of_names(tmp_path: Path) -> None:
    for part in ("JPEGImages", "SegmentationClass"):
        (tmp_path / part).mkdir()
    for name in ("one", "two"):
        (tmp_path / "SegmentationClass" / f"{name}.png").write_bytes(mask_bytes(NUMBERS[:2], voc_colours()))
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), np.zeros((2, 4, 3), np.uint8))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("two\n")
    found = read(tmp_path, split="train")
    assert found.image_ids == ["two"]
    assert found.classes[:2] == ("aeroplane", "bicycle")
    assert len(found.classes) == 20
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/one.xml").write_text(
        "<annotation><filename>one.jpg</filename><size><width>4</width><height>2</height></size></annotation>"
    )
    assert read(tmp_path).masks is None  # boxes go first
    assert read(tmp_path, format="masks").masks is not None


def test_files_that_do_not_fit_are_left_out_and_said(folder: Path) -> None:
    write(folder, "train/wide", np.zeros((3, 5), np.uint8))
    write(folder, "train/lone", NUMBERS)
    (folder / "images/train/lone.png").unlink()
    write(folder, "train/cut", NUMBERS)
    file = folder / "masks/train/cut.png"
    file.write_bytes(file.read_bytes()[:45])
    found = read(folder, split="train")
    assert len(found) == 1
    said = {finding.name: finding for finding in found.findings}
    assert said["mask without an image that can be read (left out)"].count == 1
    unfit = said["mask that does not fit its image, or is damaged (left out)"]
    assert unfit.count == 2
    assert any("the mask is 5 x 3 pixels, its image 4 x 3" in example for example in unfit.examples)
    with pytest.raises(DetkitError, match="5 x 3"):
        read_mask(folder / "masks/train/wide.png", (3, 4))


def test_without_names_or_fitting_masks_nothing_is_read(folder: Path) -> None:
    (folder / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DetkitError, match="unique"):
        read(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(DetkitError, match="nothing says which classes"):
        read(folder, format="masks")
    with pytest.raises(DetkitError, match=r"not a data set.*\n.*\n.*masks of pixels\? write classes.txt"):
        read(folder)
    (folder / "classes.txt").write_text("sky\n")
    write(folder, "val/a", np.zeros((9, 9), np.uint8))
    with pytest.raises(DetkitError, match="no mask of this folder fits"):
        read(folder, split="val")


def coco(folder: Path, *segmentations: object) -> Path:
    cv2.imwrite(str(folder / "a.png"), np.zeros((6, 8, 3), np.uint8))
    rows = [
        {"id": k, "image_id": 1, "category_id": 1 + k % 2, "bbox": [0, 0, 8, 6], "segmentation": one}
        for k, one in enumerate(segmentations)
    ]
    table = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": rows,
    }
    (folder / "data.json").write_text(json.dumps(table))
    return folder / "data.json"


def test_polygons_and_run_lengths_of_coco(tmp_path: Path) -> None:
    """A polygon and both kinds of run lengths are pycocotools'; where two classes overlap nothing is asked."""
    other = np.zeros((6, 8), bool)
    other[2:5, 3:7] = True
    coded = rle.encode(np.asfortranarray(other.astype(np.uint8)))
    compressed = {"size": [6, 8], "counts": coded["counts"].decode()}
    polygon = [[1, 1, 5, 1, 5, 4, 1, 4]]
    mine = rle.decode(rle.merge(rle.frPyObjects(polygon, 6, 8))).astype(bool)
    flat = other.T.reshape(-1).astype(int)
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), 48]).tolist()
    for second in (compressed, {"size": [6, 8], "counts": counts}):
        found = read(coco(tmp_path, polygon, second))
        wanted = np.where(mine & other, 255, np.where(mine, 0, np.where(other, 1, 254)))
        assert label_map(found, 0, (6, 8)).tolist() == wanted.tolist()
        sample = Dataset(found, masks=True).load(0)
        assert sample.target.mask.tolist() == wanted.tolist()
        assert Dataset(found).load(0).target.mask is None


LONG = {"size": [6, 8], "counts": [0, 1000]}


@pytest.mark.parametrize(
    "wrong", [None, "x", [[1, 2]], {"size": [5, 5], "counts": "0"}, {"size": [6, 8]}, 7, LONG, [[1, 1, 1e99, 4, 3, 3]]]
)
def test_an_object_without_a_mask_is_named(tmp_path: Path, wrong: object) -> None:
    file = coco(tmp_path, [[1, 1, 5, 1, 5, 4]], wrong)
    file.write_text(file.read_text().replace("1e+99", "1e400"))
    with pytest.raises(DetkitError, match="mask") as error:
        label_map(read(file), 0, (6, 8))
    assert "annotation number 1" in error.value.where


def test_answers_are_counted_against_labels(folder: Path) -> None:
    found = read(folder, split="train")
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 1:3] = True  # dog where the cat is
    masks[1, 2] = True  # of a class that the data does not have, where nothing is asked
    answer = Detections(np.zeros((2, 4)), np.ones(2), np.array([1, 0]), ("cow", "dog"), {"masks": masks})
    truth, said = label_maps(found, 0, answer)
    assert truth.tolist() == label_map(found, 0, (3, 4)).tolist()
    assert said.tolist() == [[254, 1, 1, 254], [254] * 4, [254] * 4]
    counts = pixel_counts(truth, said, 2)
    assert counts.tolist() == [[0, 2, 2], [0, 0, 2], [0, 0, 2]]
    assert pixel_counts(*label_maps(found, 0, Detections.empty(("cat",))), 2)[:, 2].tolist() == [4, 2, 2]


def test_masks_follow_every_change_of_geometry() -> None:
    """The image shows its own mask, in grey: whatever moves, they still agree."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 3, (6, 8), dtype=np.uint8)
    mask = cv2.resize(small, (160, 120), interpolation=cv2.INTER_NEAREST)
    boxes = np.array([[0, 0, 160, 120]], np.float32)
    sample = Sample(np.repeat(80 * mask[..., None], 3, axis=2), Target(boxes, np.zeros(1, np.int64), mask=mask))
    augment = Augment.off(mirror=0.5, flip=0.5, crop=0.5, scale=[0.7, 1.4], aspect=0.2, rotate=30, shear=10, warp=0.1)
    resize = Resize((96, 128), fill=240)
    for seed in range(12):
        for change in (augment, Augment.off(mirror=0.5, flip=0.5)):
            out = change(sample, np.random.default_rng(seed), resize)
            grey, moved = out.image[..., 0].astype(int), out.target.mask
            assert moved.shape == (96, 128)
            known = moved != 255
            assert np.mean(np.abs(grey - 80 * moved.astype(int))[known] < 40) > 0.85
            assert (moved[grey > 225] == 255).mean() > 0.8 if (grey > 225).any() else True
