"""Detectors from Darknet's files: the same numbers as OpenCV's reader, detkit's own head, and every mistake told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import detkit
from detkit.cli import main
from detkit.config.experiment import read_config
from detkit.data.names import COCO_CLASSES, COCO_IDS
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.importers.darknet import import_darknet, untrained
from detkit.importers.darknet_files import load_darknet_weights
from detkit.structures import Batch, Target

Make = Callable[[str], tuple[Path, Path, Path]]
# Of the convolution before each region or yolo layer, finest stride first, by OpenCV 4.12's readNetFromDarknet: rows,
# columns, mean, mean of the absolute values, and the values at three places.
OPENCV = {
    "v2": [(8, 12, 0.29941, 0.63385, -0.4842, 1.1483, -0.2570)],
    "v3": [
        (16, 24, -0.34560, 1.77595, 0.3678, -1.7899, 0.0733),
        (8, 12, -0.37376, 1.62720, 0.5265, -1.2970, 1.9730),
    ],
    "v3_tiny": [
        (16, 24, 0.10526, 0.56963, 0.6002, 0.2070, -0.6260),
        (8, 12, 0.60586, 1.49111, -0.4585, -1.1300, 0.2456),
    ],
    "v4": [
        (32, 48, 0.11609, 0.70480, -0.4150, -0.0353, 0.4316),
        (16, 24, -0.08084, 0.86293, -0.5139, -0.7591, -0.0218),
        (8, 12, 0.46963, 1.21522, -0.0469, 1.5425, -1.4123),
    ],
    "v4_tiny": [
        (16, 24, -0.14838, 0.51915, 0.8170, 0.0899, -0.1115),
        (8, 12, -0.24586, 0.60747, -1.6627, -0.0384, -0.0735),
    ],
    "new_coords": [(16, 24, 0.19434, 0.59644, 0.3142, 0.1148, 0.3937)],
}
IMAGE = np.random.RandomState(1).randint(0, 256, (64, 96, 3)).astype(np.uint8)


def pixels() -> torch.Tensor:
    return torch.from_numpy(IMAGE).permute(2, 0, 1)[None]


def outputs(detector: Detector) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [layer(x)[0] for layer, x in zip(detector.head.layers, detector.features(pixels()), strict=True)]


@pytest.mark.parametrize("name", OPENCV)
def test_the_convolutions_put_out_what_opencv_computes(name: str, make: Make) -> None:
    for output, (rows, columns, *wanted) in zip(outputs(import_darknet(*make(name))), OPENCV[name], strict=True):
        assert output.shape[1:] == (rows, columns)
        places = (output[0, 0, 0], output[5, rows // 2, columns // 3], output[-1, -1, -1])
        got = [float(v) for v in (output.mean(), output.abs().mean(), *places)]
        assert got == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("name", OPENCV)
def test_boxes_are_decoded_as_darknet_does(name: str, make: Make) -> None:
    """Darknet's get_yolo_box and get_region_box, output by output."""
    detector = import_darknet(*make(name))
    boxes, scores = (x[0] for x in detector.head.decoded(detector.raw(pixels())))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    scales = {"v4": (1.2, 1.1, 1.05), "v4_tiny": (1.05, 1.05), "new_coords": (2.0,)}.get(name, (1.0, 1.0))
    start = 0
    for output, anchors, scale in zip(outputs(detector), detector.head.anchors, scales, strict=False):
        _, rows, columns = output.shape
        for k, (row, column) in enumerate([(0, 0), (rows - 1, 2), (3, columns - 1)]):
            slot = k % len(anchors)
            x, y, w, h, presence, *classes = output[slot * 8 : slot * 8 + 8, row, column].double().numpy()
            x, y = ((sigmoid(v) * scale - (scale - 1) / 2 + c) for v, c in ((x, column), (y, row)))
            grow = (lambda t: (2 * sigmoid(t)) ** 2) if name == "new_coords" else np.exp
            w, h = grow(w) * float(anchors[slot, 0]), grow(h) * float(anchors[slot, 1])
            x, y = x * 96 / columns, y * 64 / rows
            prior = start + (row * columns + column) * len(anchors) + slot
            assert boxes[prior].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-2)
            of_class = np.exp(classes) / np.exp(classes).sum() if name == "v2" else sigmoid(np.array(classes))
            assert scores[prior].tolist() == pytest.approx((sigmoid(presence) * of_class).tolist(), abs=1e-4)
        start += rows * columns * len(anchors)
    assert start == len(boxes)


def test_the_head_is_told_by_the_cfg(make: Make) -> None:
    heads = {name: import_darknet(*make(name)).config["model"]["head"] for name in OPENCV}
    chosen = {name: [h[key] for key in ("coder", "xy_scale", "classes", "objectness", "ignore_above", "box_loss",
                                        "smoothing")] for name, h in heads.items()}  # fmt: skip
    assert chosen == {
        "v2": ["darknet", [1.0], "softmax", "iou", 0.6, "ciou", 0.0],
        "v3": ["darknet", [1.0, 1.0], "sigmoid", "one", 0.7, "ciou", 0.0],
        "v3_tiny": ["darknet", [1.0, 1.0], "sigmoid", "one", 0.7, "ciou", 0.0],
        "v4": ["darknet", [1.2, 1.1, 1.05], "sigmoid", "one", 0.7, "ciou", 0.0],
        "v4_tiny": ["darknet", [1.05, 1.05], "sigmoid", "one", 0.7, "ciou", 0.0],
        "new_coords": ["bounded", [2.0], "sigmoid", "one", 0.7, "ciou", 0.1],
    }
    assert heads["v2"]["anchors"] == [[(0.6 * 8, 0.7 * 8), (1.9 * 8, 2.1 * 8)]]
    assert heads["v3_tiny"]["anchors"] == [[(20, 12), (15, 30), (40, 25)], [(40, 25), (33, 60), (70, 50)]]
    assert all(h["assign"] == "midpoint" for h in heads.values())


@pytest.mark.parametrize("name", OPENCV)
def test_it_is_trained_saved_and_loaded_like_any_other(name: str, make: Make, tmp_path: Path) -> None:
    detector = import_darknet(*make(name))
    path = tmp_path / "model.safetensors"
    detector.save(path)
    again = detkit.load(path, device="cpu")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(detector), outputs(again), strict=True))
    assert (again.classes, again.class_ids, again.resize) == (("cat", "dog", "ant"), (0, 1, 2), detector.resize)
    assert again.record["images_seen"] == 1234
    target = Target(torch.tensor([[8.0, 8, 40, 50], [50, 10, 90, 30]]), torch.tensor([0, 2]))
    batch = Batch(pixels(), torch.tensor([[64, 96]]), (Geometry(96, 64, 1.0, 1.0),), (0,), ("",))
    losses = again.train()(batch, [target])
    sum(term.sum for term in losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in again.parameters())


def test_images_are_stretched_unless_the_cfg_says_letter_box(make: Make) -> None:
    cfg, weights, names = make("v3_tiny")
    resize = import_darknet(cfg, weights, names).resize
    assert (resize.mode, resize.height, resize.width, resize.content(500, 100)) == ("stretch", 64, 96, (64, 96))
    cfg.write_text(cfg.read_text().replace("channels=3", "channels=3\nletter_box=1"))
    assert import_darknet(cfg, weights, names).resize.mode == "letterbox"


def test_without_names_80_classes_are_cocos(make: Make) -> None:
    cfg, _, names = make("new_coords")
    cfg.write_text(cfg.read_text().replace("classes=3", "classes=80").replace("filters=24", "filters=255"))
    detector, _ = untrained(cfg)
    assert detector.classes == COCO_CLASSES
    assert detector.class_ids == tuple(COCO_IDS.values())
    assert (COCO_IDS["person"], COCO_IDS["stop sign"], COCO_IDS["toothbrush"]) == (1, 13, 90)
    spelt = ["motorbike" if n == "motorcycle" else "tvmonitor" if n == "tv" else n for n in COCO_CLASSES]
    names.write_text("\n".join(spelt))
    assert untrained(cfg, names)[0].class_ids == tuple(COCO_IDS.values())
    names.write_text("\n".join(sorted(spelt)))
    assert untrained(cfg, names)[0].class_ids == tuple(range(80))


def test_the_older_header_is_four_bytes_shorter(make: Make) -> None:
    cfg, weights, names = make("v2")
    new = import_darknet(cfg, weights, names)
    weights.write_bytes(struct.pack("<4i", 0, 1, 0, 77) + weights.read_bytes()[20:])
    old = import_darknet(cfg, weights, names)
    assert old.record["images_seen"] == 77
    assert all(torch.equal(a, b) for a, b in zip(outputs(new), outputs(old), strict=True))


@pytest.mark.parametrize(
    ("old", "new", "needle", "place"),
    [
        ("stride=2\n", "stride=two\n", "stride must be a number", "layer 1 [convolutional]"),
        ("activation=leaky", "activation=selu", "activation selu", "line 12: layer 0 [convolutional]"),
        ("[shortcut]", "[gru]", "layer gru is not supported", "layer 4 [gru]"),
        ("classes=3", "classes=4", "24 filters, but 3 anchors and 4 classes need 27", "layer 15 [convolutional]"),
        ("mask=3,4,5", "mask=3,4,6", "not within 0..5", "layer 16 [yolo]"),
        ("mask=3,4,5", "mask=3,inf,5", "separated by commas", "layer 16 [yolo]"),
        ("num=6", "num=9", "9 anchors are 18 numbers", "layer 16 [yolo]"),
        ("activation=linear\n\n[yolo]", "activation=leaky\n\n[yolo]", "must be linear", "layer 15"),
        (
            "size=1\nstride=1\npad=1\nactivation=linear",
            "size=3\nstride=1\npad=1\nactivation=linear",
            "1 x 1",
            "16 [yolo]",
        ),
        ("[route]\nlayers=-4", "[route]\nlayers=-1", "part of the detection head", "layer 17 [route]"),
        ("channels=3", "channels=1", "3 channels", "line 4: [network]"),
        ("width=96", "width=0", "width must be a whole number", "line 2"),
        ("[yolo]", "[Gaussian_yolo]", "no yolo or region layer", ""),
    ],
)
def test_a_cfg_that_cannot_be_imported(old: str, new: str, needle: str, place: str, make: Make) -> None:
    cfg, weights, names = make("v3")
    cfg.write_text(cfg.read_text().replace(old, new))
    with pytest.raises(DetkitError) as caught:
        import_darknet(cfg, weights, names)
    assert needle in caught.value.what
    assert place in caught.value.where
    assert str(cfg) in caught.value.where


@pytest.mark.parametrize(
    ("damage", "needle"),
    [
        (lambda b: b[:-4], "18,832 numbers expected, 18,831 found"),
        (lambda b: b + b"\0\0\0\0", "18,832 numbers expected, 18,833 found"),
        (lambda b: b[:10], "not a Darknet weights file"),
        (lambda b: b"PK\3\4" + b, "not a Darknet weights file"),
        (lambda b: b[:20] + b"\0\0\xc0\x7f" + b[24:], "layer 0 would get values that are not finite"),
        (lambda b: b[:20] + b[24:] + b[20:24], "variances below 0"),
    ],
)
def test_weights_that_do_not_fit(damage: Callable[[bytes], bytes], needle: str, make: Make) -> None:
    cfg, weights, names = make("v3")
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(DetkitError, match=needle) as caught:
        import_darknet(cfg, weights, names)
    assert caught.value.where == str(weights)


@pytest.mark.parametrize(("text", "needle"), [("a\nb\n", "2 names for 3"), ("a\nb\na\n", "'a' is there twice")])
def test_names_that_do_not_fit(text: str, needle: str, make: Make) -> None:
    cfg, weights, names = make("v2")
    names.write_text(text)
    with pytest.raises(DetkitError, match=needle):
        import_darknet(cfg, weights, names)
    with pytest.raises(DetkitError, match="need names"):
        import_darknet(cfg, weights)
    with pytest.raises(DetkitError, match="not a text file"):
        import_darknet(weights, cfg, names)
    with pytest.raises(DetkitError, match="cannot be read"):
        import_darknet(cfg.with_name("nothing.cfg"), weights, names)


def test_the_verb(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    cfg, weights, names = (str(path) for path in make("v4_tiny"))
    monkeypatch.chdir(tmp_path)
    assert main(["import", "darknet", cfg, weights, "--names", names]) == 0
    assert "strides 4, 8" in capsys.readouterr().out
    assert main(["import", "darknet", cfg, weights, "--names", names]) == 2
    assert "exists already" in capsys.readouterr().err
    out = tmp_path / "other.safetensors"
    assert main(["import", "darknet", cfg, weights, "--names", names, "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["classes"], said["strides"], said["size"]) == (["cat", "dog", "ant"], [4, 8], [64, 96])
    assert main(["info", str(out)]) == 0
    assert "Darknet v4_tiny.cfg" in capsys.readouterr().out
    assert main(["import", "darknet", cfg, names, "--names", names, "-o", "x.safetensors"]) == 2
    assert "not a Darknet weights file" in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


def test_a_model_file_is_a_config_to_train_on_from(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    import_darknet(*make("v4")).save(path)
    config = read_config(path, ["data.train=toy", "train.epochs=2"], train_schema=TrainOptions)
    assert config.model["weights"] == str(path)
    assert config.model["backbone"]["name"] == "darknet"
    assert config.train.epochs == 2
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert read_config(again, train_schema=TrainOptions).model == config.model


@pytest.mark.parametrize(
    ("name", "length", "header"),
    [
        ("yolov2", 203_934_260, 16),
        ("yolov3", 248_007_048, 20),
        ("yolov3_tiny", 35_434_956, 20),
        ("yolov4", 257_717_640, 20),
        ("yolov4_tiny", 24_251_276, 20),
    ],
)
def test_the_published_nets_have_as_many_numbers_as_their_files(
    name: str, length: int, header: int, published: Callable[[str], Path]
) -> None:
    with torch.device("meta"):
        detector, convolutions = untrained(published(name))
    count = sum(c.weight.numel() + c.out_channels * (4 if norm else 1) for c, norm in convolutions.values())
    assert count == (length - header) // 4
    strides = {"yolov2": (32,), "yolov3": (8, 16, 32), "yolov4": (8, 16, 32)}
    assert detector.head.strides == strides.get(name, (16, 32))
    assert detector.classes == COCO_CLASSES


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "strides"), [("coco", [16, 32]), ("xl-coco", [16, 32])])
def test_published_weights_find_what_is_there(name: str, strides: list[int], shared_data: Path) -> None:
    import matplotlib

    stem = shared_data.parent / "weights" / f"yolo-fastest-1.1-{name}"
    detector = import_darknet(stem.with_suffix(f"{stem.suffix}.cfg"), stem.with_suffix(f"{stem.suffix}.weights"))
    assert detector.head.strides == tuple(strides)
    found = detector.predict(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    assert found.names[:2] == ["person", "tie"]
    assert found.scores[0] > 0.9


def test_the_numbers_come_in_the_order_of_the_layers(make: Make) -> None:
    cfg, weights, names = make("v3")
    detector, convolutions = untrained(cfg, names)
    load_darknet_weights(convolutions, weights)
    values = np.frombuffer(weights.read_bytes(), "<f4", offset=20)
    first, norm = convolutions[0]
    assert norm is not None
    parts = [norm.bias, norm.weight, norm.running_mean, norm.running_var, first.weight]
    assert torch.equal(torch.cat([p.detach().flatten() for p in parts if p is not None]), torch.tensor(values[:248]))
    last, _ = convolutions[max(convolutions)]
    assert last is detector.head.layers[0]
    assert torch.equal(last.weight.detach().flatten(), torch.tensor(values[-last.weight.numel() :]))
