"""Experiments: YAML 1.2, checks with file, line and nearest name, overrides, data sets and anchors."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from detkit import registry
from detkit.config.anchors import anchors_for
from detkit.config.build import build_detector
from detkit.config.datasets import build_dataset, train_val_datasets
from detkit.config.experiment import check_model, read_config, shipped, shipped_configs
from detkit.config.schema import Key, Place, check, keys_of, located
from detkit.config.yaml_file import dump, parse
from detkit.data.toy import write_toy_data
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError

TEXT = """\
data:
  train: things.json
  classes: [cat, no]
model:
  size: [64, 96]
  backbone: {name: mobilenet_v3_small, taps: [2, 3]}
  neck:
    name: fpn
    out: 16
  head: {name: yolo, anchors: auto}
train:
  epochs: 3
  lr: 1e-3
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def read(path, *overrides):
    return read_config(path, overrides, train_schema=TrainOptions)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("+7", 7),
        ("[1, 1e1, {a: no}]", [1, 10.0, {"a": "no"}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse(text, "test")[0]
    assert parsed == value
    assert type(parsed) is type(value)
    assert parse(dump({"a": value}), "test")[0] == {"a": value}


@pytest.mark.parametrize("word", ["1e-3", "true", "null", "3", "", "no", "a: b", "ñ"])
def test_words_stay_words_through_a_file(word):
    assert parse(dump({"a": word}), "test")[0] == {"a": word}


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("a: 1\nb: [1", "not YAML", 2),
        ("a: 1\nb: 2\na: 3", "twice", 3),
        ("a: &x 1\nb: *x", "alias", 2),
        ("a: b\n\tc: d", "not YAML", 2),
    ],
)
def test_what_is_no_yaml(text, reason, line):
    with pytest.raises(DetkitError) as caught:
        parse(text, "file.yaml")
    assert reason in caught.value.what
    assert f"file.yaml, line {line}" in caught.value.where


def test_every_value_in_force_is_shown_and_reads_back(file, tmp_path):
    config = read(file)
    assert config.model["size"] == (64, 96)
    off = {"bottom_up": False, "plain": False, "extra": False}
    assert config.model["neck"] == {"name": "fpn", "out": 16, "kernel": 5, "depthwise": True, **off}
    assert (config.train.epochs, config.train.lr, config.train.optimizer) == (3, 1e-3, TrainOptions().optimizer)
    assert config.data["classes"] == ["cat", "no"]
    assert config.data["train"][0]["path"] == "things.json"
    assert config.evaluate.limits().conf == 0.001
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert read(again).to_dict() == config.to_dict()
    for key in ("kernel: 5", "mosaic:", "weight_decay:", "protocol: coco", "weights: none", "val_share: 0.1"):
        assert key in config.to_yaml()


def test_of_several_keys_that_an_error_names_the_first_is_meant():
    place = Place("file.yaml", {("head", "points"): 3, ("head", "flip_pairs"): 4})
    with pytest.raises(DetkitError) as caught, located(place, ("head",), ["points", "flip_pairs"]):
        raise ValueError("flip_pairs names each of the 2 points at most once")
    assert caught.value.where == "file.yaml, line 4, head.flip_pairs"


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_experiments_are_sound_and_short(name):
    config = read(name)
    assert len(shipped(name).read_text(encoding="utf-8").splitlines()) <= 60
    assert read_config(shipped(name), train_schema=TrainOptions).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("old", "new", "line", "reason", "do"),
    [
        ("epochs: 3", "epoch: 3", 12, "unknown key 'epoch'", "did you mean epochs?"),
        ("out: 16", "oot: 16", 9, "unknown key 'oot'", "did you mean out?"),
        ("train:\n  epochs", "trian:\n  epochs", 11, "unknown key 'trian'", "did you mean train?"),
        ("name: fpn", "name: fpm", 8, "no neck 'fpm'", "did you mean fpn?"),
        ("name: yolo", "name: yollo", 10, "no head 'yollo'", "yolo"),
        ("mobilenet_v3_small", "mobilenet_v3_smal", 6, "no backbone", "did you mean mobilenet_v3_small?"),
        ("lr: 1e-3", "lr: fast", 13, "train.lr must be a number", "give a number"),
        ("epochs: 3", "epochs: 3.5", 12, "train.epochs must be a whole number", "whole"),
        ("epochs: 3", "epochs: -3", 12, "epochs must be at least 1", ""),
        ("epochs: 3", "epochs: true", 12, "whole number", ""),
        ("lr: 1e-3", "optimizer: adan", 13, "one of adamw, adam", "did you mean adam"),
        ("lr: 1e-3", "tensorboard: yes", 13, "true or false", ""),
        ("taps: [2, 3]", "taps: [a]", 6, "a list, each item a whole number", ""),
        ("size: [64, 96]", "size: big", 5, "whole number or", ""),
        ("train: things.json", "tran: things.json", 2, "unknown key 'tran'", "did you mean train?"),
        ("train: things.json", "train: {pth: things.json}", 2, "unknown key 'pth'", "did you mean path?"),
        ("train: things.json", "val: things.json", 1, "train is missing", "data.train"),
        ("train: things.json", "train: []", 2, "data.train is empty", ""),
        ("classes: [cat, no]", "classes: cat", 3, "each item text", ""),
        ("  classes: [cat, no]", "  train: 3", 3, "twice", ""),
        ("  neck:\n    name: fpn\n    out: 16", "  neck: {out: 16}", 7, "needs a name", "name:"),
        ("  lr: 1e-3", "augment:\n  mirror: 7", 14, "mirror", ""),
        ("  lr: 1e-3", "evaluate:\n  iou: 7", 14, "iou", ""),
        ("  lr: 1e-3", "augment: 7", 13, "augment must hold keys", ""),
    ],
)
def test_mistakes_are_told_with_file_line_and_way_out(file, old, new, line, reason, do):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DetkitError) as caught:
        read(file)
    error = caught.value
    assert reason in error.what
    assert f"{file}, line {line}" in error.where
    assert do in error.do
    assert error.code == 2
    assert len(str(error).splitlines()) <= 3


def test_overrides_are_checked_like_the_file(file):
    config = read(file, "train.epochs=20", "model.neck=identity", "model.head.anchors=[[8, 8], [16, 16]]")
    assert config.train.epochs == 20
    assert config.model["neck"] == {"name": "identity"}
    assert config.model["head"]["anchors"] == [(8.0, 8.0), (16.0, 16.0)]
    assert read(file, "data.train.split=a").data["train"][0] == {**config.data["train"][0], "split": "a"}
    (file.parent / "nine.txt").write_text("000005\n", encoding="utf-8")  # a list of names beside the config
    assert read(file, "data.train.split=nine.txt").data["train"][0]["split"] == str(file.parent / "nine.txt")
    assert read(file, 'data.train="p=q.json"').data["train"][0]["path"] == "p=q.json"
    for override, reason in (
        ("train.epoch=2", "did you mean epochs"),
        ("modle.size=2", "did you mean model"),
        ("train.epochs=x", "whole number"),
        ("train.epochs", "KEY=VALUE"),
        ("model.size.x=2", "holds no keys"),
        ("train.epochs=[", "not YAML"),
        ("train.batch=0", "at least 1"),
    ):
        with pytest.raises(DetkitError) as caught:
            read(file, override)
        assert reason in str(caught.value)
        assert f"override {override}" in caught.value.where


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(DetkitError, match="did you mean yolo_voc"):
        read("yolo_vok")
    with pytest.raises(DetkitError, match="no such config file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(DetkitError, match="sections"):
        read(tmp_path / "list.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DetkitError, match="cannot be read"):
        read(tmp_path / "bytes.yaml")


def test_a_signature_is_the_schema():
    class Part:
        def __init__(self, wired, *, word: Literal["a", "b"] = "a", pair: tuple[int, int] | None = None, need: float):
            pass

    @dataclass
    class Options:
        count: int = 3

    assert list(keys_of(Part)) == ["word", "pair", "need"]
    assert keys_of(Options) == {"count": Key(int, 3)}
    place = Place("f.yaml", {("p", "pair"): 4})
    assert check({"need": 3, "pair": [1, 2]}, keys_of(Part), place, ("p",)) == {
        "word": "a",
        "pair": (1, 2),
        "need": 3.0,
    }
    with pytest.raises(DetkitError, match=r"f.yaml, line 4, p.pair"):
        check({"need": 3, "pair": [1]}, keys_of(Part), place, ("p",))
    with pytest.raises(DetkitError, match="need is missing"):
        check({}, keys_of(Part), place, ("p",))


def test_an_argument_without_a_type_has_that_of_its_default():
    class Part:
        def __init__(self, *, gain=1.0, count=3, on=True, word="a"):
            pass

    class Untyped:
        def __init__(self, *, pair=(1, 2)):
            pass

    assert [key.type for key in keys_of(Part).values()] == [float, int, bool, str]
    with pytest.raises(DetkitError, match="the types of Untyped's arguments cannot be read: pair has no type"):
        keys_of(Untyped)


@pytest.mark.parametrize(
    ("override", "what", "do"),
    [
        ("model.head={name: positional:Positional, gain: 2}", "no keyword-only one", "put it after the *"),
        ("model.head={name: positional:Positional, channels: 2}", "unknown key 'channels'", "leave it out"),
        ("model.head={name: ''}", "model.head.name is empty", "write head: {name: "),
        ("model.head=''", "model.head.name is empty", "write head: {name: "),
    ],
)
def test_keys_and_names_that_no_part_has(file, tmp_path, monkeypatch, override, what, do):
    (tmp_path / "positional.py").write_text(
        "from detkit.heads.yolo import YOLO\n"
        "class Positional(YOLO):\n"
        "    def __init__(self, channels, strides, num_classes, gain: float = 1.0): ...\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DetkitError) as caught:
        read(file, override)
    assert what in caught.value.what
    assert do in caught.value.do


def write_coco(path: Path, images: int, names=("cat", "dog"), box=(10, 10, 20, 40)) -> Path:
    from PIL import Image

    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        Image.fromarray(np.full((80, 120, 3), i, np.uint8)).save(folder / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 80} for i in range(images)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 10 + i % len(names),
                "bbox": [box[0], box[1], box[2] + i % 5, box[3]],
                "area": 800,
                "iscrowd": 0,
            }
            for i in range(images)
        ],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(names)],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_validation_part_is_drawn_and_said(file, tmp_path):
    data = write_coco(tmp_path / "things.json", 20)
    config = read(file, f"data.train={json.dumps(str(data))}", "data.classes=null", "data.val_share=0.2")
    train, val, notes = train_val_datasets(config)
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.annotations.files) & set(val.annotations.files)
    assert "4 of 20" in notes[0]
    assert "seed 0" in notes[0]
    assert train_val_datasets(config)[1].annotations.files == val.annotations.files
    assert train.classes == val.classes == ("cat", "dog")


def test_validation_has_the_training_classes_in_their_order(file, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train = write_coco(tmp_path / "a" / "t.json", 4)
    val = write_coco(tmp_path / "b" / "v.json", 4, names=("bird", "dog"))
    config = read(file, f"data.train={json.dumps(str(train))}", f"data.val={json.dumps(str(val))}", "data.classes=null")
    _, found, notes = train_val_datasets(config)
    assert found.classes == ("cat", "dog")
    assert found.annotations.labels.tolist() == [1, 1]
    assert notes == []


def test_several_sources_with_renamed_classes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_coco(tmp_path / "a" / "t.json", 4)
    second = write_coco(tmp_path / "b" / "t.json", 2, names=("kitty", "fox"))
    both = build_dataset(
        [str(first), {"path": str(second), "classes": ["cat"], "rename": {"kitty": "cat"}}], split="train"
    )
    assert both.classes == ("cat", "dog")
    assert len(both) == 6
    assert np.bincount(both.annotations.labels).tolist() == [3, 2]
    with pytest.raises(DetkitError, match="no class 'cow'"):
        build_dataset({"path": str(first), "classes": ["cow"]}, split="train")
    with pytest.raises(DetkitError, match=r"^data\.val has .*, the training data cow, horse: no class in common"):
        build_dataset(str(first), split="val", classes=("cow", "horse"))
    with pytest.raises(DetkitError, match="unknown key"):
        build_dataset({"path": str(first), "clases": ["cow"]}, split="train")


def test_anchors_come_from_the_letterboxed_training_set(file, tmp_path):
    data = write_coco(tmp_path / "things.json", 20, names=("cat",), box=(0, 0, 30, 40))
    config = read(file, f"data.train={json.dumps(str(data))}", "data.classes=null", "model.head.anchors_per_level=2")
    dataset = build_dataset(str(data), split="train")
    found = anchors_for(config, dataset)
    assert found is not None
    assert len(found) == 4  # two levels of two
    assert all(h == pytest.approx(32) for _, h in found)  # 80 x 120 fits 64 x 96 at 0.8
    detector = build_detector(config, dataset.classes, class_ids=dataset.class_ids, anchors=found)
    assert detector.class_ids == (10,)
    assert detector.resize.input_size == (64, 96)
    assert "data" not in detector.config
    with pytest.raises(DetkitError, match="anchors are auto"):
        build_detector(config, ("cat",))
    assert anchors_for(config, dataset.subset([0, 1])) is not None  # of two sizes: one for each level
    with pytest.raises(DetkitError, match="no boxes to find anchors from"):
        anchors_for(config, dataset.subset([]))
    fixed = read(file, "model.head.anchors=[[8, 8], [16, 16]]")
    assert anchors_for(fixed, dataset) is None


def test_a_model_file_holds_no_folders_of_weights(file, tmp_path):
    anchors = "model.head.anchors=[[9, 9], [20, 20], [30, 30], [40, 40], [50, 50], [60, 60]]"
    build_detector(read(file, anchors), ("cat", "no")).save(tmp_path / "first.safetensors")
    again = read(file, anchors, f"model.weights={json.dumps(str(tmp_path / 'first.safetensors'))}")
    config = build_detector(again, ("cat", "no")).config
    assert config["model"]["weights"] == "first.safetensors"
    assert str(tmp_path) not in json.dumps(config)


def test_a_run_stands_for_its_model_file_but_not_for_a_shipped_config(file, tmp_path, monkeypatch):
    anchors = "model.head.anchors=[[9, 9], [20, 20], [30, 30], [40, 40], [50, 50], [60, 60]]"
    detector = build_detector(read(file, anchors), ("cat", "no"))
    for name in ("mine", "toy"):
        detector.save(tmp_path / name / "best.safetensors")
    monkeypatch.chdir(tmp_path)
    mine = read_config("mine", ["data.train=x.json"], train_schema=TrainOptions)
    assert mine.model["weights"] == str(Path("mine") / "best.safetensors")
    assert mine.model["backbone"]["name"] == "mobilenet_v3_small"
    assert read_config("toy", train_schema=TrainOptions).model["weights"] == "none"
    with pytest.raises(DetkitError, match="no such config"):
        read_config(tmp_path, train_schema=TrainOptions)


def test_parts_that_refuse_their_arguments_name_the_key(file):
    config = read(file, "model.backbone.taps=[3, 2]", "model.head.anchors=[[8, 8], [16, 16]]")
    with pytest.raises(DetkitError, match="taps") as caught:
        build_detector(config, ("cat",))
    assert "override model.backbone.taps=[3, 2]" in caught.value.where
    config = read(file, "model.neck.kernel=4", "model.head.anchors=[[8, 8], [16, 16]]")
    with pytest.raises(DetkitError, match="kernel must be odd"):
        build_detector(config, ("cat",))


@pytest.mark.shared_data
def test_own_parts_of_a_data_set_are_used(file, shared_data):
    for name, count in (("bccd", 87), ("voc", 600)):
        path = json.dumps(str(shared_data / name))
        train, val, notes = train_val_datasets(read(file, f"data.train={path}", "data.classes=null"))
        assert len(val) == count
        assert not set(train.annotations.files) & set(val.annotations.files)
        assert "own part val" in notes[0]
    whole = json.dumps(str(shared_data / "voc"))
    config = read(file, f"data.train={{path: {whole}, split: trainval}}", "data.classes=null")
    train, val, notes = train_val_datasets(config)
    assert "drawn with seed" in notes[0]  # its own val lies inside trainval
    assert not set(train.annotations.files) & set(val.annotations.files)


def test_older_spellings_work_and_say_so():
    with pytest.warns(FutureWarning, match="yolo_course is called yolo_textbook"):
        config = read("yolo_course", "data.train=toy", "data.val=null")
    assert config.model["head"]["coder"] == "textbook"
    older = {"size": 64, "backbone": "lenet_course", "head": {"name": "yolo", "anchors": [[8, 8]], "coder": "course"}}
    with pytest.warns(FutureWarning, match="is called") as said:
        model = check_model(older, Place())
    assert [str(warning.message).split()[0] for warning in said] == ["lenet_course", "course"]
    assert (model["backbone"]["name"], model["head"]["coder"]) == ("lenet_textbook", "textbook")
    with pytest.warns(FutureWarning, match="lenet_course"):
        assert len(registry.find_part("backbone", "identity")(7, cnn="lenet_course").classifier) > 3


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations-train.json", "annotations-val.json"),
        ("instances_train2017.json", "instances_val2017.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
    ],
)
def test_the_validation_part_may_lie_beside(file, tmp_path, train, val):
    write_toy_data(tmp_path / "toy", train=6, val=2, size=32)
    for name, part in ((train, "train"), (val, "val")):
        to = tmp_path / "toy" / name
        to.parent.mkdir(exist_ok=True)
        text = (tmp_path / "toy" / "annotations" / f"instances_{part}.json").read_text()
        to.write_text(text.replace('"file_name":"', f'"file_name":"{tmp_path}/toy/{part}/'))
    shutil.rmtree(tmp_path / "toy" / "annotations")
    config = read(file, f"data.train={json.dumps(str(tmp_path / 'toy' / train))}", "data.val=null", "data.classes=null")
    data, found, notes = train_val_datasets(config)
    assert (len(data), len(found)) == (6, 2)
    assert str(Path(val)) in notes[0]
    (tmp_path / "toy" / val).unlink()
    data, found, notes = train_val_datasets(config)
    assert (len(data), len(found)) == (4, 2)
    assert "2 of 6 training images, drawn" in notes[0]
    assert "(data.val_share=0.1 of them are too few to judge by)" in notes[0]
    assert "a part of your own would be" in notes[0]
