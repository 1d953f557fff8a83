"""PASCAL VOC's xml as the tools write it: each export holds the scene."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.dataset import read, splits
from detkit.errors import DetkitError
from detkit.io.images import write_image

# Makes the export in a folder; returns what a person would name, and the findings that the reader must have.
Export = Callable[[Any, Path], tuple[Path, dict[str, int]]]


def label(
    scene: Any, folder: Path, name: str = "{}.jpg", file: str = "{}", first: int = 1, sized: bool = True, head: str = ""
) -> None:
    """Writes an xml per image: ``name`` is its <filename>, ``file`` its own name, ``first`` its lowest corner."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in scene:
        rows = [
            f"<object><name>{b.name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{b.x + first}</xmin><ymin>{b.y + first}</ymin>"
            f"<xmax>{b.x + b.w}</xmax><ymax>{b.y + b.h}</ymax></bndbox></object>"
            for b in photo.boxes
        ]
        width, height = (photo.width, photo.height) if sized else (0, 0)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation>{head}<filename>{name.format(photo.stem)}</filename>{size}{''.join(rows)}</annotation>"
        (folder / f"{file.format(photo.stem)}.xml").write_text(text, encoding="utf-8")


def lists(root: Path, **parts: list[str]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))


def roboflow(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "train", *(f"{p.stem}_jpg.rf.0a1b2c.jpg" for p in scene))
    label(scene, root / "train", "{}_jpg.rf.0a1b2c.jpg", "{}_jpg.rf.0a1b2c")
    (root / "README.roboflow.txt").write_text("exported via roboflow.com")
    return root, {}


def cvat(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "JPEGImages" / "s1")
    label(scene, root / "Annotations" / "s1", "s1/{}.jpg")
    lists(root, default=[f"s1/{p.stem}" for p in scene])
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")
    return root, {}


def label_studio(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images", *(f"1a2b3c4d-{p.file}" for p in scene))
    label(scene, root / "Annotations", "1a2b3c4d-{}.jpg", "1a2b3c4d-{}")
    return root, {}


def fiftyone(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "data")
    label(scene, root / "labels")
    return root, {}


def labelimg(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "day 1")
    head = "<folder>day 1</folder><path>C:\\photos\\day 1</path>"
    label(scene, root / "day 1", "C:\\photos\\{}.jpg", sized=False, head=head)
    return root, {"size missing (read from the image)": 3}


def vott(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "JPEGImages")
    label(scene, root / "Annotations")
    train = {
        f"{name}_train": [f"{p.file} {1 if any(b.name == name for b in p.boxes) else -1}" for p in scene]
        for name in scene.classes
    }
    lists(root, **train)
    (root / "pascal_label_map.pbtxt").write_text("item {\n id: 1\n name: 'cat'\n}\n")
    return root, {}


def kaggle(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images", *(f"{p.stem}.png" for p in scene))
    label(scene, root / "annotations", "{}.png")
    return root, {}


def torchvision(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    home = root / "VOCdevkit" / "VOC2007"
    scene.draw(home / "JPEGImages")
    label(scene, home / "Annotations")
    lists(home, trainval=[p.stem for p in scene])
    scene.draw(home / "SegmentationClass", *(f"{p.stem}.png" for p in scene))
    return root, {}


def zero_based(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "JPEGImages")
    label(scene, root / "Annotations", first=0)
    return root, {"corners count from 0, not from 1 as VOC's (taken as they are)": 1}


def names_differ(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Each xml means the image of its <filename>, though others are called as the xml."""
    scene.draw(root / "JPEGImages", *(f"IMG {p.file}" for p in scene))
    scene.draw(root / "JPEGImages", *(f"0001_{p.file}" for p in reversed(scene.photos)))
    label(scene, root / "Annotations", "IMG {}.jpg", "0001_{}")
    return root, {"image without an annotation file (left out)": 3}


def endings_differ(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """The <filename> has another ending than the image, or decides between two of one name."""
    scene.draw(root / "images", *(f"{p.stem}.png" for p in scene))
    scene.draw(root / "images", "alpha.bmp", "zeta.bmp", "eta.bmp")
    write_image(root / "images" / "alpha.bmp", np.zeros((9, 9, 3), np.uint8), overwrite=True)
    label(scene, root / "annotations", "{}.png")
    for name in ("beta", "gamma"):
        file = root / "annotations" / f"{name}.xml"
        file.write_text(file.read_text().replace(f"{name}.png", f"{name}.jpg"))
    return root, {"image without an annotation file (left out)": 3}


EXPORTS: dict[str, Export] = {
    "Roboflow": roboflow,
    "CVAT": cvat,
    "Label Studio": label_studio,
    "FiftyOne": fiftyone,
    "labelImg": labelimg,
    "VoTT": vott,
    "Kaggle": kaggle,
    "torchvision": torchvision,
    "zero-based": zero_based,
    "names differ": names_differ,
    "endings differ": endings_differ,
}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_holds_the_scene(name: str, scene: Any, tmp_path: Path) -> None:
    path, findings = EXPORTS[name](scene, tmp_path / "export")
    for folder in [path, *(p for p in path.rglob("*") if p.is_dir())]:  # what macOS leaves
        (folder / "._alpha.jpg").write_bytes(b"\0")
        (folder / "._alpha.xml").write_bytes(b"\0")
    label(scene, path / "__MACOSX")
    a = read(path)
    scene.check(a, findings)
    scene.check_round_trips(a, tmp_path)
    assert a.source is not None
    assert a.source.format == "voc"
    assert a.image_ids == sorted(map(str, a.image_ids))
    for part in splits(path):
        assert len(read(path, split=part)) == 3


def test_one_class_is_one_class(scene: Any, tmp_path: Path) -> None:
    kaggle(scene, tmp_path)
    for file in (tmp_path / "annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("<name>dog", "<name>car").replace("<name>cat", "<name>car"))
    assert read(tmp_path).classes == ("car",)


def test_parts_are_folders(scene: Any, tmp_path: Path) -> None:
    for part in ("train", "valid"):
        scene.draw(tmp_path / part / "JPEGImages")
        label(scene, tmp_path / part / "Annotations")
    assert splits(tmp_path) == ["train", "valid"]
    scene.check(read(tmp_path, split="valid"))
    assert read(tmp_path).image_ids[0] == "train/Annotations/alpha"
    (tmp_path / "train" / "Annotations" / "beta.xml").unlink()
    (tmp_path / "train" / "JPEGImages" / "a.heif").write_bytes(b"\0")
    found = {f.name: f.count for f in read(tmp_path, split="train").findings}
    assert found["image without an annotation file (left out)"] >= 1
    assert read(tmp_path, split="valid").findings == []


def test_images_elsewhere(scene: Any, tmp_path: Path) -> None:
    cvat(scene, tmp_path / "voc")
    shutil.move(tmp_path / "voc" / "JPEGImages", tmp_path / "photos")
    a = read(tmp_path / "voc", images=tmp_path / "photos")
    scene.check(a)
    assert read(tmp_path / "voc", split="default").image_ids == a.image_ids
    assert not any(Path(file).exists() for file in read(tmp_path / "voc").files)  # said by data check, and in training


def test_other_xml_and_several_data_sets(scene: Any, tmp_path: Path) -> None:
    torchvision(scene, tmp_path)
    file = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "all.xml"
    file.write_text("<annotations><image/></annotations>")
    a = read(tmp_path)
    assert [(f.name, f.count, f.note) for f in a.findings] == [
        ("xml file that is no VOC annotation (left out)", 1, False)
    ]
    file.unlink()
    scene.check(read(tmp_path))
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations").mkdir(parents=True)
    shutil.copy(tmp_path / "VOCdevkit/VOC2007/Annotations/alpha.xml", tmp_path / "VOCdevkit/VOC2012/Annotations")
    with pytest.raises(DetkitError, match=r"2 VOC data sets\n.*\ngive one of them as DATA: .*VOC2007, .*VOC2012"):
        read(tmp_path)


def test_several_formats_are_asked_about(scene: Any, tmp_path: Path) -> None:
    kaggle(scene, tmp_path)
    for photo in scene:
        (tmp_path / "images" / f"{photo.stem}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(
        DetkitError, match=r"labels of 2 formats lie here: voc, yolo\n.*\n.*--format voc or --format yolo"
    ):
        read(tmp_path)
    scene.check(read(tmp_path, format="voc"))
    assert read(tmp_path, format="yolo").classes == ("0",)


def test_a_folder_of_data_sets_names_them(scene: Any, tmp_path: Path) -> None:
    torchvision(scene, tmp_path / "one")
    scene.draw(tmp_path / "two" / "train")
    (tmp_path / "two" / "train.csv").write_text("image,x1,y1,x2,y2,label\nalpha.jpg,4,6,24,18,cat\n")
    with pytest.raises(DetkitError, match=r"another format\n.*\ngive one as DATA: .*two, or --format voc"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(DetkitError, match=r"not a data set.*\n.*\ngive one of its folders: .*two$"):
        read(tmp_path)


def test_lists_that_cannot_be_read(scene: Any, tmp_path: Path) -> None:
    torchvision(scene, tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (folder / "val.txt").mkdir()
    assert splits(tmp_path) == ["trainval"]
    (folder / "trainval.txt").write_bytes(b"al\xffpha\n")
    with pytest.raises(DetkitError, match="cannot read this file"):
        read(tmp_path, split="trainval")
    (folder / "trainval.txt").write_bytes(b"\n")
    with pytest.raises(
        DetkitError, match=r"no annotation of this data set could be read\n.*\nthe list of images is empty"
    ):
        read(tmp_path, split="trainval")


def test_of_images_of_one_name_the_nearest_is_meant(tmp_path: Path) -> None:
    """The folders of the xml decide, then those that it names, then where images usually lie."""
    text = "<annotation><filename>{}</filename><size><width>9</width><height>9</height></size></annotation>"
    wanted = {
        "Annotations/clip 1/0.xml": ("0.jpg", "JPEGImages/clip 1/0.jpg"),
        "Annotations/clip 2/0.xml": ("C:\\films\\clip 1\\0.png", "JPEGImages/clip 2/0.jpg"),
        "Annotations/1.xml": ("/films/day/1.jpg", "films/day/1.jpg"),
        "Annotations/2.xml": ("2.jpg", "images/2.jpg"),
        "Annotations/3.xml": ("3.jpg", "JPEGImages/3.jpg"),  # two of them, none is nearest: the usual place is named
    }
    for xml, (name, _) in wanted.items():
        (tmp_path / xml).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / xml).write_text(text.format(name))
    for file in ("films/night/1.jpg", "small/2.jpg", "a/3.jpg", "b/3.jpg", *(file for _, file in wanted.values())):
        if file != "JPEGImages/3.jpg":
            write_image(tmp_path / file, np.zeros((9, 9, 3), np.uint8))
    found = [Path(file).relative_to(tmp_path).as_posix() for file in read(tmp_path).files]
    assert found == [wanted[xml][1] for xml in sorted(wanted)]
