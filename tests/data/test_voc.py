"""PASCAL VOC folders: corners, lists, classes, and files that are broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from detkit.data.check import check_annotations
from detkit.data.convert import convert_annotations
from detkit.data.dataset import read
from detkit.data.reading import UNSAFE
from detkit.data.voc import CLASSES
from detkit.errors import DetkitError


def test_corners_and_difficult(voc_folder: Path) -> None:
    a = read(voc_folder)
    assert a.xywh[2].tolist() == [0, 0, 30, 50], "1..30 of 30 pixels is the whole image"
    assert a.difficult.tolist() == [False, False, True]
    assert a.image_ids == ["a", "b ü", "empty"]


def test_lists(voc_folder: Path) -> None:
    a = read(voc_folder, split="train")
    assert a.image_ids == ["a", "empty"]
    assert a.classes == ("blue thing", "red"), "classes are those of the whole folder"
    assert read(voc_folder, split=str(voc_folder / "ImageSets/Main/red_train.txt")).image_ids == ["a"]


def test_works_without_lists(voc_folder: Path) -> None:
    shutil.rmtree(voc_folder / "ImageSets")
    assert len(read(voc_folder)) == 3


def test_list_with_unknown_and_repeated_images(voc_folder: Path) -> None:
    (voc_folder / "ImageSets/Main/train.txt").write_text("a\na\nghost\n")
    found = {f.name: f.examples[0] for f in read(voc_folder, split="train").findings}
    assert "train.txt:3: ghost" in found["listed image without annotation (dropped)"]
    assert "train.txt:2: a" in found["image listed twice (once dropped)"]


def test_classes_come_from_the_data(voc_folder: Path) -> None:
    """The twenty keep their order where the data holds most of them, and then those without boxes are no finding."""
    for file in (voc_folder / "Annotations").glob("*.xml"):
        text = file.read_text(encoding="utf-8").replace(">red<", ">dog<").replace(">blue thing<", ">cat<")
        file.write_text(text, encoding="utf-8")
    assert read(voc_folder).classes == ("cat", "dog")
    xml = (voc_folder / "Annotations" / "a.xml").read_text(encoding="utf-8")
    one = xml[xml.index("<object>") : xml.index("</object>") + 9]
    more = "".join(one.replace(">dog<", f">{name}<") for name in CLASSES[:11])
    (voc_folder / "Annotations" / "empty.xml").write_text(xml.replace(one, more))
    assert read(voc_folder, split="train").classes == CLASSES
    assert "class without boxes" not in {f.name for f in check_annotations(read(voc_folder)).facts["findings"]}


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("<name>red</name>", "", "object without name (dropped)"),
        ("<xmin>6</xmin>", "", "object without xmin (dropped)"),
        ("<xmin>6</xmin>", "<xmin>six</xmin>", "box is not finite (dropped)"),
        ("<xmax>25</xmax>", "<xmax>2</xmax>", "box of negative size (dropped)"),
    ],
)
def test_bad_object(voc_folder: Path, old: str, new: str, finding: str) -> None:
    file = voc_folder / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    a = read(voc_folder)
    assert [(f.name, f.count) for f in a.findings] == [(finding, 1)]
    assert a.findings[0].examples[0] == f"{file}:4"
    assert len(a.labels) == 2


def test_missing_size_comes_from_the_image(voc_folder: Path) -> None:
    file = voc_folder / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>60</width>", ""))
    a = read(voc_folder)
    assert a.sizes[0].tolist() == [40, 60]
    assert a.findings[0].name == "size missing (read from the image)"


def test_broken_xml_costs_that_image(voc_folder: Path) -> None:
    (voc_folder / "Annotations" / "a.xml").write_text("<annotation>\n<object>")
    a = read(voc_folder)
    assert a.image_ids == ["b ü", "empty"]
    assert "a.xml:2" in a.findings[0].examples[0]


def test_entity_bomb_is_refused(voc_folder: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n<annotation><filename>&b;</filename></annotation>'
    (voc_folder / "Annotations" / "a.xml").write_text(bomb)
    with pytest.raises(DetkitError, match="declare XML entities") as error:
        read(voc_folder)
    assert error.value.where.endswith("a.xml")
    a = read(voc_folder, refuse=False)
    assert a.image_ids == ["b ü", "empty"]
    assert [(f.name, f.count) for f in a.findings] == [(UNSAFE, 1)]


def test_a_file_outside_the_folder_is_not_copied(voc_folder: Path, tmp_path: Path) -> None:
    file = voc_folder / "Annotations" / "a.xml"
    shutil.move(voc_folder / "JPEGImages" / "a.png", voc_folder / "hidden.png")
    file.write_text(file.read_text().replace("<filename>a.png<", "<filename>../hidden.png<"))
    a = read(voc_folder)
    assert Path(a.files[0]).is_file()
    with pytest.raises(DetkitError, match="outside the image folder"):
        convert_annotations({"train": a}, "yolo", tmp_path / "out")
