"""Seeded, class-balanced parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.dataset import read
from detkit.data.reading import ImageTable, ObjectTable, assemble
from detkit.data.split import split_annotations, stratify, write_split
from detkit.errors import DetkitError
from detkit.io.images import write_image


@pytest.fixture
def many() -> Annotations:
    """300 images; class 0 common, class 1 rare, 60 images without objects."""
    rng = np.random.default_rng(0)
    image = np.sort(rng.integers(0, 240, 900))
    labels = (rng.random(900) < 0.05).astype(np.int64)
    xywh = np.tile([1.0, 1, 5, 5], (900, 1))
    names = [f"{i}.jpg" for i in range(300)]
    sizes = np.full((300, 2), 50, np.int32)
    objects = ObjectTable(image, xywh, labels, str)
    images = ImageTable(list(range(300)), names, sizes)
    return assemble(objects, images, {1: "a", 2: "b"}, Findings(), Source("coco", Path("x")))


def test_parts_are_balanced(many: Annotations) -> None:
    parts = stratify(many, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=4)
    assert np.sort(np.concatenate(list(parts.values()))).tolist() == list(range(300))
    total = many.class_counts()
    for name, rows in parts.items():
        counts = many.subset(rows).class_counts()
        share = {"train": 0.7, "val": 0.2, "test": 0.1}[name]
        np.testing.assert_allclose(counts, share * total, atol=4)
        empty = (np.diff(many.offsets)[parts[name]] == 0).sum()
        assert abs(empty - share * (np.diff(many.offsets) == 0).sum()) <= 2
    assert abs(len(parts["val"]) - 60) <= 6


def test_few_images_with_many_objects(many: Annotations) -> None:
    """36 images, of which a few hold most objects, shared out by images all the same."""
    rng = np.random.default_rng(1)
    image = np.sort(np.concatenate([np.repeat(np.arange(36), 3), np.repeat([3, 9], 200)]))
    labels = rng.integers(0, 6, len(image))
    objects = ObjectTable(image, np.tile([1.0, 1, 5, 5], (len(image), 1)), labels, str)
    images = ImageTable(list(range(36)), [f"{i}.jpg" for i in range(36)], np.full((36, 2), 50, np.int32))
    a = assemble(objects, images, {i: f"{i}" for i in range(6)}, Findings(), Source("coco", Path("x")))
    for share, count in ((0.1, 4), (0.2, 7), (0.01, 1)):
        for seed in rng.integers(0, 1000, 5).tolist():
            assert len(stratify(a, {"train": 1 - share, "val": share}, seed)["val"]) == count
    val = a.subset(stratify(a, {"train": 0.9, "val": 0.1})["val"])
    assert (val.class_counts() > 0).sum() >= 5
    with pytest.raises(DetkitError, match="too few images for 2 parts: 1"):
        stratify(a.subset([0]), {"train": 0.5, "val": 0.5})


def test_nothing_is_written_unless_asked(coco_file: Path) -> None:
    before = sorted(coco_file.parents[1].rglob("*"))
    done = split_annotations(read(coco_file), {"train": 0.6, "val": 0.4})
    assert done.facts["files"] == []
    assert "nothing is written" in done.lines()[-1]
    assert sorted(coco_file.parents[1].rglob("*")) == before


def test_a_pose_set_keeps_its_key_points(yolo_file: Path, tmp_path: Path) -> None:
    yolo_file.write_text(yolo_file.read_text() + "kpt_shape: [2, 2]\n")
    for file in yolo_file.parent.rglob("labels/*/*.txt"):
        file.write_text("".join(f"{line} 0.1 0.9 0.9 0.1\n" for line in file.read_text().splitlines()))
    a = read(yolo_file)
    back = read(write_split(a, {"train": np.arange(3)}, tmp_path / "out")[-1])
    assert a.points is not None
    assert back.points is not None
    np.testing.assert_array_equal(back.points, a.points)


def test_seeded(many: Annotations) -> None:
    shares = {"train": 0.8, "val": 0.2}
    first, again, other = (stratify(many, shares, seed)["val"].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_bad_shares(many: Annotations) -> None:
    for shares in ({"train": 0.5}, {"train": 1.2, "val": -0.2}, {}):
        with pytest.raises(DetkitError, match="sum to 1"):
            stratify(many, shares)


@pytest.mark.parametrize("kind", ["coco_file", "voc_folder", "yolo_file"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_written_parts_can_be_read(request: pytest.FixtureRequest, tmp_path: Path, kind: str, elsewhere: bool) -> None:
    path: Path = request.getfixturevalue(kind)
    a = read(path)
    home = path if path.is_dir() else path.parent
    out = tmp_path / "deep" / "out" if elsewhere else home
    parts = {"one": np.asarray([0, 2]), "val": np.asarray([1])}
    if kind == "yolo_file":
        parts = {"train": parts["one"], "val": parts["val"]}
    files = write_split(a, parts, out)
    if kind == "coco_file":
        back = [read(file) for file in files]
    elif kind == "voc_folder":
        back = [read(path, split=str(file) if elsewhere else file.stem) for file in files]
    else:
        back = [read(files[-1], split=name) for name in parts]
    assert [[Path(f).stem for f in b.files] for b in back] == [["a", "empty"], ["b ü"]]
    assert all(Path(f).is_file() for b in back for f in b.files)
    assert back[0].classes == a.classes
    np.testing.assert_allclose(np.concatenate([b.xywh for b in back]), a.xywh)
    with pytest.raises(DetkitError, match="exists"):
        write_split(a, parts, out)


def test_class_folders_are_copied(tmp_path: Path) -> None:
    home, out = tmp_path / "pets", tmp_path / "parts"
    for part in ("train", "val"):
        for name, count in (("cat", 4), ("a dog", 2)):
            for i in range(count):
                write_image(home / part / name / f"{i}.png", np.full((9, 9, 3), 40 * i, np.uint8))
    a = read(home)
    files = write_split(a, stratify(a, {"train": 0.5, "test": 0.5}), out)
    assert files == [out / "train", out / "test"]
    assert len([p for p in out.rglob("*") if p.is_file()]) == 12  # names that came twice lie side by side
    for part in ("train", "test"):
        back = read(out, split=part)
        assert back.classes == a.classes
        assert back.class_counts().tolist() == [2, 4]
    with pytest.raises(DetkitError, match="not empty"):
        write_split(a, {"train": np.arange(12)}, out)
    for inside in (home, home / "deeper"):
        with pytest.raises(DetkitError, match="parts of class folders are folders"):
            write_split(a, {"train": np.arange(12)}, inside)
