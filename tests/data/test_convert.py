"""Writers of all formats: round trips, verbatim records, and what is lost counted by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.data.convert import convert_annotations
from detkit.data.dataset import read, splits
from detkit.errors import DetkitError


@pytest.mark.parametrize("kind", ["coco_file", "voc_folder", "yolo_file"])
@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "csv", "labelme"])
def test_round_trip(request: pytest.FixtureRequest, tmp_path: Path, kind: str, to: str) -> None:
    a = read(request.getfixturevalue(kind))
    out = tmp_path / "deep" / "out"
    done = convert_annotations({"train": a}, to, out)
    b = read(out)
    assert [Path(f).stem for f in b.files] == ["a", "b ü", "empty"]
    assert all(Path(f).is_file() for f in b.files)
    assert b.classes == a.classes
    assert b.findings == []
    keep = ~a.crowd if to in ("yolo", "csv") else np.ones(3, bool)
    np.testing.assert_allclose(b.xywh, a.xywh[keep], atol=1e-5)
    assert b.labels.tolist() == a.labels[keep].tolist()
    assert done.facts["boxes"] == int(keep.sum())
    if to == "labelme":
        assert (b.crowd.tolist(), b.difficult.tolist()) == (a.crowd.tolist(), a.difficult.tolist())
    if to not in ("yolo", "csv"):
        ignored = a.difficult | a.crowd
        assert (b.difficult | b.crowd).tolist() == ignored.tolist()


def test_coco_records_stay_verbatim(coco_file: Path, tmp_path: Path) -> None:
    text = coco_file.read_text().replace('{"k": 1.5}', '{"k":1.500,  "ü": [1,\t2]}')
    coco_file.write_text(text)
    out = tmp_path / "new" / "labels.json"
    done = convert_annotations({"train": read(coco_file)}, "coco", out)
    assert done.facts["lost"] == []
    before, after = json.loads(text), json.loads(out.read_text())
    for key in ("images", "annotations", "categories"):
        assert after[key] == before[key]
    assert out.read_text().count('{"k":1.500,  "ü": [1,\t2]}') == 3
    assert all(Path(f).is_file() for f in read(out).files), "the images stay where they were, and are found"


def test_verbatim_from_a_file_with_nan(coco_file: Path, tmp_path: Path) -> None:
    coco_file.write_text(coco_file.read_text().replace("[5, 6, 20, 10]", "[NaN, 6, 20, 10]"))
    out = tmp_path / "out.json"
    convert_annotations({"train": read(coco_file)}, "coco", out)
    assert [r["id"] for r in json.loads(out.read_text())["annotations"]] == [101, 102]


@pytest.mark.parametrize(
    ("to", "lost"),
    [
        ("voc", {"crowd regions (written as difficult)": 1, "areas that are not the box's": 3,
                 "image ids (the files' names are the ids)": 3, "category ids (numbered anew)": 2,
                 "segmentation of annotations": 3, "extra of annotations": 3}),
        ("labelme", {"areas that are not the box's": 3, "image ids (the files' names are the ids)": 3,
                     "category ids (numbered anew)": 2, "segmentation of annotations": 3, "extra of annotations": 3}),
        ("yolo", {"crowd regions (left out)": 1, "difficult flags (the objects are written)": 1,
                  "areas that are not the box's": 3, "image ids (the files' names are the ids)": 3,
                  "category ids (numbered anew)": 2, "segmentation of annotations": 3, "extra of annotations": 3}),
        ("csv", {"crowd regions (left out)": 1, "difficult flags (the objects are written)": 1,
                 "areas that are not the box's": 3, "image ids (the files' names are the ids)": 3,
                 "category ids (numbered anew)": 2, "segmentation of annotations": 3, "extra of annotations": 3}),
    ],
)  # fmt: skip
def test_what_is_lost_is_counted(coco_file: Path, tmp_path: Path, to: str, lost: dict[str, int]) -> None:
    done = convert_annotations({"train": read(coco_file)}, to, tmp_path / "out")
    assert {f.name: f.count for f in done.facts["lost"]} == lost


def test_weights_are_kept_by_coco_alone(coco_file: Path, tmp_path: Path) -> None:
    a = replace(read(coco_file), source=None, weight=np.array([1.0, 0.5, 0.25]))
    assert convert_annotations({"train": a}, "coco", tmp_path / "new").facts["lost"] == []
    found = read(tmp_path / "new").weight
    assert found is not None
    assert found.tolist() == [1.0, 0.5, 0.25]
    lost = convert_annotations({"train": a}, "csv", tmp_path / "table").facts["lost"]
    assert {f.name: f.count for f in lost}["weights of objects"] == 2


def test_nothing_is_overwritten(coco_file: Path, tmp_path: Path) -> None:
    a = read(coco_file)
    for to, out in (("yolo", tmp_path / "y"), ("coco", tmp_path / "c.json")):
        convert_annotations({"train": a}, to, out)
        with pytest.raises(DetkitError, match=r"exists|not empty"):
            convert_annotations({"train": a}, to, out)
        convert_annotations({"train": a}, to, out, overwrite=True)


def test_images_as_links(coco_file: Path, tmp_path: Path) -> None:
    convert_annotations({"train": read(coco_file)}, "voc", tmp_path / "v", link=True)
    assert (tmp_path / "v" / "JPEGImages" / "a.png").is_symlink()


def test_missing_image_and_file_name_outside(coco_file: Path, tmp_path: Path) -> None:
    original = coco_file.read_text()
    coco_file.write_text(original.replace('"a.png"', '"../a.png"'))
    for to in ("coco", "voc", "yolo", "csv", "labelme"):
        with pytest.raises(DetkitError, match="outside the image folder"):
            convert_annotations({"train": read(coco_file)}, to, tmp_path / "o")
    done = convert_annotations({"train": read(coco_file)}, "coco", coco_file.parent / "copy.json")
    assert done.facts["images"] == 3, "copies nothing"
    coco_file.write_text(original.replace('"a.png"', '"gone.png"'))
    for to in ("coco", "voc", "yolo", "csv", "labelme"):
        with pytest.raises(DetkitError, match="missing"):
            convert_annotations({"train": read(coco_file)}, to, tmp_path / "o2")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "o"))] == [], "nothing half-written is left"


def test_a_part_of_another_name_is_there_once(coco_file: Path, tmp_path: Path) -> None:
    convert_annotations({"val": read(coco_file)}, "yolo", tmp_path / "y")
    assert splits(tmp_path / "y") == ["val"]
    assert len(read(tmp_path / "y")) == 3


def test_a_data_set_is_not_converted_onto_itself(coco_file: Path) -> None:
    before = coco_file.read_text()
    for out in (coco_file.parent, coco_file.parents[1]):
        with pytest.raises(DetkitError, match="replace the data set itself"):
            convert_annotations({"train": read(coco_file)}, "yolo", out, overwrite=True)
    assert coco_file.read_text() == before


def test_same_name_in_two_folders(coco_file: Path, tmp_path: Path) -> None:
    value = json.loads(coco_file.read_text())
    (coco_file.parents[1] / "train" / "sub").mkdir()
    (coco_file.parents[1] / "train" / "empty.png").rename(coco_file.parents[1] / "train" / "sub" / "a.png")
    value["images"][2]["file_name"] = "sub/a.png"
    coco_file.write_text(json.dumps(value))
    convert_annotations({"train": read(coco_file)}, "yolo", tmp_path / "o")
    assert [Path(f).stem for f in read(tmp_path / "o").files] == ["a", "a_2", "b ü"]
    convert_annotations({"train": read(coco_file)}, "coco", tmp_path / "c")
    assert all(Path(f).is_file() for f in read(tmp_path / "c").files)
