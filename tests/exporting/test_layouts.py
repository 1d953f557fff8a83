"""ONNX files of other programs: outputs by hand, layouts told by shapes, and a file that detects."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import detkit
from detkit.cli import main
from detkit.data.names import COCO_CLASSES
from detkit.errors import DetkitError
from detkit.exporting.layouts import LAYOUTS, find_layout
from detkit.io.images import write_image

SIDE = 64
THREE, FOUR = 64 + 16 + 4, 64 + 16 + 4 + 1  # cells of strides 8, 16, 32, and 64


def zeros(*shape: int) -> np.ndarray:
    return np.zeros((1, *shape), np.float32)


def read(name: str, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = LAYOUTS[name].read(outputs, (SIDE, SIDE))
    assert boxes.shape[:2] == scores.shape[:2]
    return boxes[0], scores[0]


def test_yolox() -> None:
    table = zeros(THREE, 7)
    table[0, 65] = 0.5, 0.25, math.log(2), 0, 0.5, 0.4, 0.8  # stride 16, row 0, column 1
    boxes, scores = read("yolox", table)
    np.testing.assert_allclose(boxes[65], [24 - 16, 4 - 8, 24 + 16, 4 + 8], atol=1e-4)
    np.testing.assert_allclose(scores[65], [0.2, 0.4], rtol=1e-6)


def test_nanodet_and_picodet() -> None:
    codes = zeros(FOUR, 4, 8)
    codes[0, 65, :, 1] = 50.0  # all sides one stride away
    codes[0, 84, 0] = 0.0  # stride 64: the mean of 0..7
    codes, chances = codes.reshape(1, FOUR, 32), zeros(FOUR, 3)
    chances[0, 65] = 0.1, 0.2, 0.3
    boxes, scores = read("nanodet", np.concatenate([chances, codes], 2))
    np.testing.assert_allclose(boxes[65], [16 - 16, 0 - 16, 16 + 16, 0 + 16], atol=1e-4)
    np.testing.assert_allclose(boxes[84], np.array([-1, -1, 1, 1]) * 3.5 * 64, rtol=1e-5)
    np.testing.assert_allclose(scores[65], [0.1, 0.2, 0.3], rtol=1e-6)
    ends = np.cumsum([64, 16, 4])
    levels = [*np.split(chances, ends, 1), *np.split(codes, ends, 1)]
    boxes, scores = read("picodet", *levels)
    np.testing.assert_allclose(boxes[65], [24 - 16, 8 - 16, 24 + 16, 8 + 16], atol=1e-4)
    np.testing.assert_allclose(scores[65], [0.1, 0.2, 0.3], rtol=1e-6)


def test_yolov8() -> None:
    table = zeros(6, THREE)
    table[0, :, 3] = 20, 30, 10, 40, 0.7, 0.1
    boxes, scores = read("yolov8", table)
    assert boxes[3].tolist() == [15, 10, 25, 50]
    np.testing.assert_allclose(scores[3], [0.7, 0.1], rtol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_detr_and_ssd(swapped: bool) -> None:
    boxes, logits = zeros(5, 4), zeros(5, 3)
    boxes[0, 2], logits[0, 2] = [0.5, 0.25, 0.5, 0.25], [math.log(2), 0, 0]
    outputs = (boxes, logits) if swapped else (logits, boxes)
    found, scores = read("detr", *outputs)
    np.testing.assert_allclose(found[2], [16, 8, 48, 24])
    np.testing.assert_allclose(scores[2], [0.5, 0.25], rtol=1e-6)
    boxes[0, 2], logits[0, 2] = [0.25, 0.5, 0.5, 1.0], [0.1, 0.7, 0.2]
    found, scores = read("ssd", *outputs)
    assert found[2].tolist() == [16, 32, 32, 64]
    np.testing.assert_allclose(scores[2], [0.7, 0.2], rtol=1e-6)


SHAPES = {
    "yolox": [(1, THREE, 85)],
    "nanodet": [(1, FOUR, 112)],
    "picodet": [(1, n, k) for k in (80, 32) for n in (64, 16, 4, 1)],
    "yolov8": [(1, 24, THREE)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_tell_the_layout(name: str) -> None:
    assert find_layout(None, SHAPES[name], (SIDE, SIDE), "a.onnx") == name
    assert find_layout(name, SHAPES[name], (SIDE, SIDE), "a.onnx") == name


def test_what_cannot_be_told_is_asked() -> None:
    pair = [(1, 100, 92), (1, 100, 4)]
    with pytest.raises(DetkitError, match=r"may be of detr or ssd(.|\n)*--layout detr\|ssd"):
        find_layout(None, pair, (SIDE, SIDE), "a.onnx")
    with pytest.raises(DetkitError, match=r"are of none that is known"):
        find_layout(None, [(1, 10)], (SIDE, SIDE), "a.onnx")
    with pytest.raises(DetkitError, match="1 x 100 x 92, 1 x 100 x 4 are not yolox's"):
        find_layout("yolox", pair, (SIDE, SIDE), "a.onnx")
    with pytest.raises(DetkitError, match="did you mean yolox"):
        find_layout("yolx", pair, (SIDE, SIDE), "a.onnx")


def written(path: Path, output: np.ndarray, **metadata: str) -> Path:
    """A file that answers ``output`` whatever it sees."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["fixed"], ["found"])],
        "net",
        [helper.make_tensor_value_info("images", kind, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("found", kind, output.shape)],
        [onnx.numpy_helper.from_array(output, "fixed")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


def test_another_programs_file_detects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = zeros(6, THREE)
    table[0, :, 3] = 20, 30, 10, 40, 0.7, 0.1
    file, image = written(tmp_path / "net.onnx", table, names="{1: 'jug', 0: 'cup'}"), tmp_path / "a.png"
    pixels = np.zeros((128, 128, 3), np.uint8)
    write_image(image, pixels)
    with pytest.warns(UserWarning, match="read as yolov8"):
        model = detkit.load(file)
    for found in model.predict([pixels, pixels]):  # the file takes one at a time
        assert (found.names, found.boxes.tolist()) == (["cup"], [[30, 20, 50, 100]])
        assert found.scores.tolist() == pytest.approx([0.7])
    assert main(["detect", str(image), "--model", str(file), "--layout", "yolov8"]) == 0
    assert "1 cup" in capsys.readouterr().out
    nameless = written(tmp_path / "nameless.onnx", table)
    assert main(["detect", str(image), "--model", str(nameless)]) == 2
    assert "--names FILE" in capsys.readouterr().err
    for names in "cup, jug", "5", "(" * 500, "{0: 'cup'}", "{'a': 'cup', 'b': 'jug'}":
        damaged = written(tmp_path / "damaged.onnx", table, names=names)
        assert main(["detect", str(image), "--model", str(damaged)]) == 2
        assert "this ONNX file knows 2 classes, and has" in capsys.readouterr().err
    assert main(["detect", str(image), "--model", str(nameless), "--names", str(image)]) == 2
    assert "a.png" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("jar\nbox\n", encoding="utf-8-sig")
    assert main(["detect", str(image), "--model", str(nameless), "--names", str(tmp_path / "names.txt")]) == 0
    assert "1 jar" in capsys.readouterr().out
    assert main(["detect", str(image), "--model", str(file), "--size", "96"]) == 2
    assert "is fixed, 64 x 64" in capsys.readouterr().err


def test_eighty_classes_are_cocos(tmp_path: Path) -> None:
    model = detkit.load(written(tmp_path / "net.onnx", zeros(84, THREE)), layout="yolov8")
    assert model.classes == COCO_CLASSES
    assert model.class_ids[-1] == 90


def test_pixels_are_fed_as_the_network_knows_them() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[..., 0], image[:, 2:, 2] = 255, 100  # red; its right half bluish
    fed = LAYOUTS["yolox"].feed(image[None])
    assert fed.shape == (1, 3, 2, 4)
    assert fed[0, :, 0, 3].tolist() == [100, 0, 255]  # BGR, 0..255
    red = LAYOUTS["picodet"].feed(image[None])[0, 0]
    np.testing.assert_allclose(red, (1 - 0.485) / 0.229, rtol=1e-5)
    linear, cubic = (LAYOUTS[name].resize((2, 8))(image)[0][0, :, 2] for name in ("nanodet", "picodet"))
    assert linear.tolist() == [0, 0, 0, 25, 75, 100, 100, 100]
    assert cubic.tolist() != linear.tolist()
