"""Objects cut out of a detection set."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.cli import main
from detkit.data.crops import write_crops
from detkit.data.dataset import read
from detkit.data.toy import write_toy_data
from detkit.errors import DetkitError
from detkit.io.images import read_image


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toys"), train=8, val=3, size=96)


def test_crops_are_the_objects_pixels(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="train")
    done = write_crops({"": a}, tmp_path / "out", min_size=20)
    large = (a.xywh[:, 2:] >= 20).all(axis=1)
    expected = {name: int(((a.labels == k) & large).sum()) for k, name in enumerate(a.classes)}
    assert done.facts["parts"] == {"": expected}
    assert {f.name: f.count for f in done.facts["left_out"]} == {
        "a side below 20 pixels (left out)": int((~large).sum())
    }
    made = read(tmp_path / "out")
    assert made.labelled
    assert made.classes == tuple(sorted(name for name, count in expected.items() if count))
    row = int(np.flatnonzero(large)[0])
    image = Path(a.files[a.image_index[row]])
    x, y, w, h = a.xywh[row].astype(int)
    crop = read_image(tmp_path / "out" / a.classes[a.labels[row]] / f"{image.stem}_{row}.jpg")
    wanted = read_image(image)[y : y + h, x : x + w]
    assert crop.shape == wanted.shape
    assert np.abs(crop.astype(int) - wanted).mean() < 8  # JPEG


def test_background_touches_no_object_and_is_a_function_of_the_seed(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="train")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        done = write_crops({"": a}, tmp_path / name, background=5, min_size=10, seed=seed)
        assert done.facts["parts"][""]["background"] == 5
    first, again, other = (
        sorted((p.name, p.read_bytes()) for p in (tmp_path / name / "background").iterdir()) for name in "abc"
    )
    assert first == again != other


def test_no_room_for_background_is_counted(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="train")
    whole = replace(a, xywh=np.tile([0.0, 0, 96, 96], (len(a.labels), 1)))
    done = write_crops({"": whole}, tmp_path / "out", background=2)
    assert done.facts["parts"][""]["background"] == 0
    assert [(f.name, f.count) for f in done.facts["left_out"]] == [("background crops that found no room", 2)]


def test_crowds_difficult_ones_and_other_classes_stay_out(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="train")
    only = np.flatnonzero(a.labels == 0)
    difficult = np.zeros(len(a.labels), bool)
    difficult[only[0]] = True
    done = write_crops({"": replace(a, difficult=difficult)}, tmp_path / "out", classes=["circle"], min_size=1)
    assert done.facts["parts"] == {"": {"circle": len(only) - 1}}
    assert [(f.name, f.count) for f in done.facts["left_out"]] == [("crowd or difficult (left out)", 1)]


def test_the_command(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "crops", str(toys), "--out", str(out), "--min-size", "10", "--background", "2"]) == 0
    said = capsys.readouterr().out
    assert "train: " in said
    assert "background: 2" in said
    assert (out / "val" / "background").is_dir()
    assert main(["data", "check", str(out), "--headers"]) == 0
    assert main(["data", "crops", str(toys), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    for wrong, words in (
        (["--classes", "cirle"], "did you mean circle"),
        (["--min-size", "900"], "give a smaller --min-size"),
        (["--split", "test"], "no part 'test'"),
    ):
        assert main(["data", "crops", str(toys), "--out", str(tmp_path / "new"), *wrong]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert str(toys) in said
        assert not (tmp_path / "new").exists()


def test_images_that_cannot_be_read(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "toys"
    shutil.copytree(toys, data)
    pictures = [Path(file) for file in read(data, split="val").files]
    words = ["data", "crops", str(data), "--split", "val", "--min-size", "10", "--out"]
    pictures[0].write_bytes(b"no image")
    assert main([*words, str(tmp_path / "some")]) == 3
    assert f"cannot be read (its objects are left out)\n         {pictures[0]}" in capsys.readouterr().out
    for image in pictures:
        image.write_bytes(b"no image")
    assert main([*words, str(tmp_path / "none")]) == 2
    assert "none of the images could be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_classes_without_objects_and_of_one_folder_are_refused(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="val")
    only = a.subset([i for i in range(len(a)) if 0 not in a.labels[a.offsets[i] : a.offsets[i + 1]]])
    with pytest.raises(DetkitError, match="no object of these classes"):
        write_crops({"": only}, tmp_path / "out", classes=a.classes[:1], min_size=1)
    with pytest.raises(DetkitError, match="would share the folder a_b"):
        write_crops({"": a.select_classes(rename={"circle": "a/b", "square": "a:b"})}, tmp_path / "out", min_size=1)


def test_a_class_called_background_is_refused(toys: Path, tmp_path: Path) -> None:
    a = read(toys, split="train").select_classes(rename={"circle": "background"})
    with pytest.raises(DetkitError, match="of its own"):
        write_crops({"": a}, tmp_path / "out", background=1)
