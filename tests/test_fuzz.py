"""Damaged inputs of every kind are read or refused in words; tools/fuzz.py runs as many cases as one has time for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from detkit import zoo
from detkit.cli import main
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model, read_config
from detkit.config.schema import Place
from detkit.data.check import check_annotations
from detkit.data.convert import convert_annotations
from detkit.data.dataset import Dataset, read
from detkit.data.resize import Resize
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.exporting.header import Header
from detkit.exporting.predictor import load_exported
from detkit.io.detections import read_detections
from detkit.io.images import write_image
from detkit.registry import UntrustedPart
from detkit.tracking.frames import read_found


@pytest.mark.skipif(sys.platform != "linux", reason="processes and their memory are watched by Linux's means")
def test_damaged_inputs_are_read_or_refused(tmp_path: Path) -> None:
    root, faults = Path(__file__).resolve().parents[1], tmp_path / "faults"
    command = [sys.executable, root / "tools" / "fuzz.py", "--cases", "2000", "--seed", "1", "--out", faults]
    command += ["--seconds", "60"]  # what never ends is found, what is slow is not
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    found = "\n".join(path.read_text(errors="replace") for path in faults.glob("*/what.txt"))
    assert done.returncode == 0, f"{done.stdout!r}{found}{done.stderr[-2000:]!r}"


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}],
}


def coco(folder: Path, change: Callable[[bytes], bytes] = bytes) -> Path:
    (folder / "d.json").write_bytes(change(json.dumps(COCO).encode()))
    return folder / "d.json"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"cat"', b'"c\xff"', "not JSON"),
        (b'"annotations": [{', b'"annotations": 7, "old": [{', "annotations that are no list"),
        (b'"id": 1, "file_name"', b'"id": ' + b"[" * 5000 + b', "file_name"', "not JSON"),
    ],
)
def test_json_that_is_no_data_set(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    with pytest.raises(DetkitError, match=said):
        read(coco(tmp_path, lambda data: data.replace(old, new, 1)))


@pytest.mark.parametrize("name", [rb"\u0000.png", rb"\ud800.png", b"/dev/zero", b"x" * 5000])
def test_names_that_no_file_has(tmp_path: Path, name: bytes) -> None:
    annotations = read(coco(tmp_path, lambda data: data.replace(b"a.png", name)))
    assert check_annotations(annotations).to_dict()["findings"]
    with pytest.raises(DetkitError):
        Dataset(annotations).load(0)


@pytest.mark.parametrize("word", [b"1e400", b"Infinity", b"-Infinity"])
def test_ids_without_end_become_record_numbers(tmp_path: Path, word: bytes) -> None:
    old = b'[{"id": 1, "image_id"'
    found = read(coco(tmp_path, lambda data: data.replace(old, old.replace(b"1", word, 1))))
    assert found.ids.tolist() == [1]


def test_detections_of_category_nan(tmp_path: Path) -> None:
    found = '[{"image_id": 1, "category_id": NaN, "bbox": [1, 1, 4, 4], "score": 0.5}]'
    (tmp_path / "r.json").write_text(found)
    with pytest.raises(DetkitError):
        read_detections(tmp_path / "r.json", read(coco(tmp_path)))
    for text in ("\xff", '[{"image_id": "\xff'):
        (tmp_path / "r.json").write_bytes(text.encode("latin1"))
        with pytest.raises(DetkitError):
            read_detections(tmp_path / "r.json", read(coco(tmp_path)))


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": "5", "shapes": [], "imagePath": "a.png"}')
    (tmp_path / "labels.txt").write_bytes(b"cat\n\xff")
    with pytest.raises(DetkitError, match="cannot read this file"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["train: " + "[" * 5000, "train: " + "- " * 5000, "train: {a: " + "{b: " * 3000])
def test_yaml_that_is_nested_too_deep(tmp_path: Path, text: str) -> None:
    for name in ("config.yaml", "data.yaml"):
        (tmp_path / name).write_text(f"names: [a]\n{text}")
    with pytest.raises(DetkitError):
        read_config(tmp_path / "config.yaml", train_schema=TrainOptions)
    with pytest.raises(DetkitError):
        read(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text(f"names: [a]\ntrain: {'x' * 5000}")
    with pytest.raises(DetkitError):
        read(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize": {"f^ll": 1, "size": [32, 32]}}, "unknown key 'f.ll'"),
        ({"resize": {"size": [2**28, 32]}}, "size must be one number of pixels"),
        ({"resize": 5}, "damaged"),
        ({"classes": ["a"], "class_ids": [1, 2]}, "damaged"),
        ({"classes": [1, 2], "class_ids": [1, 2]}, "damaged"),
        ({"config": {"model": None}}, "is missing"),
    ],
)
def test_headers_that_no_model_has(tmp_path: Path, change: dict[str, object], said: str) -> None:
    header: dict[str, object] = {key: {} for key in ("resize", "config", "scores", "record")}
    header |= {"classes": ["a"], "class_ids": [1], "threshold": 0.5, **change}
    if "resize" in change:
        body = {"backbone": {"name": "lenet5", "taps": [1]}, "head": {"name": "yolo", "anchors": [[8, 8]]}}
        header["config"] = {"model": body}
    save_file({}, tmp_path / "m.safetensors", zoo.header_metadata(header))
    with pytest.raises(DetkitError, match=said):
        load_detector(tmp_path / "m.safetensors")


def test_numbers_of_thousands_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python refuses to read them; a digit of another kind (\u00b2) is none."""
    nines = "9" * 5000
    (tmp_path / "x.yaml").write_text(f"train:\n  epochs: {nines}\n")
    with pytest.raises(DetkitError, match="whole number"):
        read_config(tmp_path / "x.yaml", train_schema=TrainOptions)
    (tmp_path / "data.yaml").write_text(f"names: [a]\ntrain: images\nkpt_shape: [{nines}, 3]\n")
    (tmp_path / "images").mkdir()
    with pytest.raises(DetkitError, match="kpt_shape"):
        read(tmp_path / "data.yaml")
    data = read(coco(tmp_path))
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "a.txt").write_text(f"{nines} 0.5 0.5 0.1 0.1 0.9\n")
    with pytest.raises(DetkitError, match="is not one of the 1"):
        read_detections(tmp_path / "yolo", data)
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2,label\na.png,1,1,4,4,cat\n")
    for number in (nines, "\u00b2"):
        (tmp_path / "classes.csv").write_text(f"dog,{number}\n")
        assert read(tmp_path / "boxes.csv").classes == ("cat",)
    save_file({}, tmp_path / "m.safetensors", {**zoo.header_metadata({}), "version": nines})
    with pytest.raises(DetkitError, match="not written by detkit"):
        zoo.read_model_header(tmp_path / "m.safetensors")
    with pytest.raises(DetkitError, match="this ONNX file was not written by detkit"):
        Header.from_metadata({"format": "detkit", "version": nines}, "m.onnx")
    assert main(["detect", nines, "--conf", "0.5"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "0.5"},
        {"iou": 7},
        {"candidates": 2.5},
        {"candidates": 0},
        {"classes": ["a"]},
        {"classes": [], "class_ids": []},
        {"flip_pairs": [[0]]},
        {"resize": {"size": [32, "x"]}},
    ],
)
def test_headers_that_no_export_has(change: dict[str, object]) -> None:
    sound = Header(
        classes=("a", "b"), class_ids=(1, 2), resize=Resize((32, 64)), flip_pairs=((0, 1),), mean=(1.0, 2, 3)
    )
    metadata = sound.to_metadata()
    assert Header.from_metadata(metadata, "m.onnx") == sound
    deep = "[" * 100_000
    for said in (json.dumps({**json.loads(metadata["detkit"]), **change}), deep, f'{{"proof": {deep}'):
        with pytest.raises(DetkitError, match="what the ONNX file says of itself is damaged"):
            Header.from_metadata({**metadata, "detkit": said}, "m.onnx")


def test_onnx_files_that_are_no_detectors(tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    numbers = helper.make_tensor_value_info("y", 1, [1])
    value = helper.make_tensor("y", 1, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=value)], "g", [], [numbers])
    for name, text in (("plain", ""), ("damaged", "\udcff")):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, {"format": "XYZ"})
        data = model.SerializeToString().replace(b"XYZ", text.encode(errors="surrogateescape") * 3 or b"XYZ")
        (tmp_path / f"{name}.onnx").write_bytes(data)
    with pytest.raises(DetkitError, match="does not take an image"):
        load_exported(tmp_path / "plain.onnx", "onnxruntime")
    with pytest.raises(DetkitError, match="may be damaged"):
        load_exported(tmp_path / "damaged.onnx", "onnxruntime")


def test_exported_files_do_not_import_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    (tmp_path / "stranger.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    pixels, numbers = helper.make_tensor_value_info("x", 1, [1, 3, 32, 32]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [pixels], [numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    header = Header(classes=("a",), class_ids=(0,), resize=Resize(32), protocol="stranger:Metric")
    helper.set_model_props(model, header.to_metadata())
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedPart, match="asks for metric stranger:Metric"):
        load_exported(tmp_path / "model.onnx", "onnxruntime")
    assert "stranger" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "1000000000000,1,2,3,4,5,0.5", "not a row of MOT's"),
        (
            "a.jsonl",
            '{"source": "a", "width": 99999999999999999999, "height": 9, "detections": []}',
            "no image has|line",
        ),
        ("a.jsonl", '{"source": "a", "width": -1, "height": 9, "detections": []}', "no image has|line"),
    ],
)
def test_frames_that_no_video_has(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DetkitError, match=said):
        read_found(tmp_path / name)


@pytest.mark.parametrize("attributes", ["no JSON", '"{""a"":' + "[" * 20_000 + '"'])
def test_regions_of_via_that_are_no_json(tmp_path: Path, attributes: str) -> None:
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    sound = '"{""name"":""rect"",""x"":1,""y"":1,""width"":4,""height"":4}"'
    rows = [f'a.png,9,{{}},2,{k},{shape},"{{""class"":""b""}}"' for k, shape in enumerate((sound, attributes))]
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    (tmp_path / "via.csv").write_text("\n".join((head, *rows)))
    found = read(tmp_path)
    assert len(found.xywh) == 1
    assert "region's attributes are not JSON (dropped)" in [one.name for one in found.findings]


def test_an_input_that_is_too_small_for_its_network() -> None:
    body = {"size": 32, "backbone": {"name": "lenet5", "taps": [1]}, "head": {"name": "yolo", "anchors": [[8, 8]]}}
    model = build_detector(Config({}, check_model(body, Place()), {}, TrainOptions(), EvaluateOptions()), ("a",))
    model.resize = Resize((32, 2), stride=1)
    with pytest.raises(DetkitError, match="too small for this network"):
        model.predict(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("word", [b"1e400", b"Infinity", b"NaN", b"[1]", b"1.5", b'"\\ud800"', b"null"])
@pytest.mark.parametrize("old", [b'"images": [{"id": 1', b'"categories": [{"id": 1', b'"area": 16', b'"categories": ['])
def test_what_cannot_be_written_as_json_is_not(tmp_path: Path, old: bytes, word: bytes) -> None:
    new = old + word + b", " if old.endswith(b"[") else old.rstrip(b"0123456789") + word
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    found = read(coco(tmp_path, lambda data: data.replace(old, new, 1)))
    # A number on its own, no record, is dropped; with no id to speak of the box is of an unknown image or class.
    assert found.counts()["boxes"] == int(b"id" not in old)
    convert_annotations({"all": found}, "coco", tmp_path / "out")
    assert read(tmp_path / "out").counts() == found.counts()
    text = next((tmp_path / "out").rglob("*.json")).read_text()
    json.loads(text, parse_constant=pytest.fail)
    if found.files:
        convert_annotations({"all": found}, "voc", tmp_path / "voc")


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="not JSON"):
        read(coco(tmp_path, lambda data: data.replace(b'"width": 8', b'"width": ' + b"9" * 5000)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "names: LONG\ntrain: images"),
        ("data.yaml", "names: [a]\npath: LONG\ntrain: images"),
        ("train.txt", "LONG.jpg"),
        ("a.json", '{"shapes": [], "imagePath": "LONG.jpg"}'),
        ("a.csv", "image,x1,y1,x2,y2,label\nLONG/a,1,2,3,4,cat"),
    ],
)
def test_names_that_are_too_long_for_a_file_system(tmp_path: Path, name: str, text: str) -> None:
    write_image(tmp_path / "images" / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    for file, content in (("labels/a.txt", "0 .5 .5 .1 .1"), ("classes.txt", "a"), (name, text)):
        if file == name or Path(name).suffix in (".yaml", ".txt"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(content.replace("LONG", "x" * 5000))
    with suppress(DetkitError):
        check_annotations(read(tmp_path))
    with pytest.raises(DetkitError):
        read(tmp_path, split="x" * 5000)
