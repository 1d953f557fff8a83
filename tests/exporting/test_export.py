"""Exported detectors: equal to the model, run without torch, and errors that say what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import detkit
from detkit.cli import main
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.toy import CLASSES, toy_sample
from detkit.engine.options import TrainOptions
from detkit.exporting import engines
from detkit.exporting.graph import DenseGraph
from detkit.exporting.header import Header
from detkit.exporting.onnx_file import Exported, export
from detkit.exporting.precision import _best_range, _network
from detkit.exporting.predictor import select_boxes
from detkit.exporting.proof import Agreement, PixelAgreement, Tolerance, _compared, photos, prove
from detkit.exporting.writing import graph_of
from detkit.geometry import Geometry
from detkit.heads.dense import select_detections
from detkit.io.cache import clear_cache
from detkit.io.images import write_image
from detkit.structures import Detections, Limits

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LENET: dict[str, Any] = {"name": "lenet_textbook", "taps": [1]}
ROI: dict[str, Any] = {"name": "roi", "layers": "mlp", "width": 8}
RPN: dict[str, Any] = {"name": "rpn", "ratios": [1.0], "before": [2000, 2000], "after": [2000, 2000]}
REGIONS: dict[str, dict[str, Any]] = {
    "rcnn": {
        "backbone": {"name": "identity", "cnn": "lenet_textbook"},
        "proposals": {"name": "selective_search", "max": 30},
        "head": {"name": "roi", "pool": "crops", "size": 32, "padding": 4},
    },
    "rcnn_svm": {
        "backbone": {"name": "identity", "cnn": "lenet_textbook"},
        "proposals": {"name": "windows", "windows": [32]},
        "head": {"name": "roi", "pool": "crops", "size": 32, "padding": 4, "classifier": "svm"},
    },
    "fast_rcnn": {"proposals": {"name": "windows", "windows": [32]}, "head": {**ROI, "pool": "max"}},
    "faster_rcnn": {
        "size": 48,  # so few proposals that no two of them overlap by the threshold to the last digit
        "backbone": {"name": "resnet20", "taps": [1, 2]},
        "neck": {"name": "fpn", "out": 8},
        "proposals": {**RPN, "scales": [16, 32]},
        "head": ROI,
    },
}
HEADS: dict[str, dict[str, Any]] = {
    "yolo": {"name": "yolo", "anchors": [[16, 16], [40, 40]]},
    "aligned": {"name": "aligned", "reg_max": 4, "objectness": True, "prior": 0.3},
    "sliding_window": {"name": "sliding_window", "width": 8, "cells": 4},
    "classify": {"name": "classify"},
    "localize": {"name": "localize"},
}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nms": {"nms": True},
    "dynamic": {"dynamic": True},
    "both": {"nms": True, "dynamic": True},
}


class Pair(NamedTuple):
    model: Path
    file: Path
    done: Exported


def build(folder: Path, head: str) -> Path:
    torch.manual_seed(0)
    parts = {"size": 64, "resize": "stretch", "backbone": LENET, **REGIONS.get(head, {"head": HEADS.get(head)})}
    detector = build_detector(Config({}, check_model(parts, Place()), {}, TrainOptions(), EvaluateOptions()), CLASSES)
    for name, layer in detector.named_modules():  # scores so far apart that rounding does not change their order
        if re.fullmatch(r"head\.classes|(head|proposals)\.(box_)?layers\.\d+", name):
            torch.nn.init.normal_(layer.weight, std=0.1)
    if head == "rcnn_svm":
        torch.nn.init.normal_(detector.head.svm, std=0.1)
        detector.head.fitted.fill_(True)
    detector.save(folder / f"{head}.safetensors")
    return folder / f"{head}.safetensors"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    @cache
    def made(head: str, options: str = "plain") -> Pair:
        folder = tmp_path_factory.mktemp(head)
        model, file = build(folder, head), folder / "model.onnx"
        return Pair(model, file, export(model, file, **OPTIONS[options]))

    return made


@pytest.fixture(params=HEADS)
def pair(request: pytest.FixtureRequest, pairs: Callable[..., Pair]) -> Pair:
    return pairs(request.param)


@pytest.fixture
def yolo(pairs: Callable[..., Pair]) -> Pair:
    return pairs("yolo")


def test_the_file_answers_as_the_model(pair: Pair) -> None:
    proof = pair.done.proof
    assert [(one.batch, one.images) for one in proof.differences] == [(1, 8), (4, 8)]
    assert all(one.matched == one.detections > 0 for one in proof.differences)
    assert all(one.box <= 0.05 and one.score <= 1e-3 for one in proof.differences)
    samples = [toy_sample(i, 100) for i in range(3)]
    limits = Limits(0.002, 0.5, 5)
    found = detkit.load(pair.file).predict_samples(samples, limits)
    for mine, theirs in zip(found, load_detector(pair.model).predict_samples(samples, limits), strict=True):
        assert mine.classes == theirs.classes == tuple(CLASSES)
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=0.02)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("head", "options"), [("yolo", "both"), ("aligned", "nms")])
def test_nms_and_any_size_may_be_inside(head: str, options: str, engine: str, pairs: Callable[..., Pair]) -> None:
    pytest.importorskip(engine)
    model, file, done = pairs(head, options)
    assert done.path == file, done.lines()
    inputs = ["64 x 64"] * 2 + ["80 x 48"] * 2 * ("dynamic" in OPTIONS[options])
    assert [one.input for one in done.proof.differences] == inputs
    grain = np.random.default_rng(0).integers(-20, 21, (100, 100, 3))  # no two places look alike, to the last digit
    samples = [toy_sample(i, 100) for i in range(3)]
    samples = [one.replace(image=np.clip(one.image + grain, 0, 255).astype(np.uint8)) for one in samples]
    limits = Limits(0.002, 0.5, 20, (0, 2))
    size = 96 if "dynamic" in OPTIONS[options] else None
    found = detkit.load(file, size=size, engine=engine).predict_samples(samples, limits)
    for mine, theirs in zip(found, detkit.load(model, size=size).predict_samples(samples, limits), strict=True):
        assert len(mine) == 20
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=0.02)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_images_side_by_side_are_answered_as_one_by_one(engine: str, yolo: Pair) -> None:
    pytest.importorskip(engine)
    samples, threads = [toy_sample(i, 100) for i in range(8)], torch.get_num_threads()
    try:
        model = detkit.load(yolo.model if engine == "torch" else yolo.file, engine=engine, threads=2, streams=2)
        side_by_side = list(model.stream([sample.image for sample in samples], conf=0.002))
    finally:
        detkit.api.set_threads(threads)
    assert model.streams == 2
    for mine, theirs in zip(side_by_side, model.predict_samples(samples, Limits(0.002)), strict=True):
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-6)


@pytest.mark.parametrize(("options", "engine"), [("plain", "openvino"), ("nms", "onnxruntime")])
@pytest.mark.parametrize("head", REGIONS)
def test_regions_are_padded_and_masked(head: str, options: str, engine: str, pairs: Callable[..., Pair]) -> None:
    pytest.importorskip(engine)
    model, file, done = pairs(head, options)
    assert done.path == file, done.lines()
    samples, limits = [toy_sample(0, 100), toy_sample(1, 70)], Limits(0.05, 0.5, 20)
    found = detkit.load(file, engine=engine).predict_samples(samples, limits)
    for mine, theirs in zip(found, load_detector(model).predict_samples(samples, limits), strict=True):
        assert len(mine) > 0
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=0.02)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)


def test_regions_of_inputs_of_any_size(pairs: Callable[..., Pair]) -> None:
    model, file, done = pairs("fast_rcnn", "dynamic")
    assert [one.input for one in done.proof.differences] == ["64 x 64"] * 2 + ["80 x 48"] * 2
    samples, limits = [toy_sample(i, 100) for i in range(2)], Limits(0.002, 0.5, 20)
    found = detkit.load(file, size=96).predict_samples(samples, limits)
    for mine, theirs in zip(found, detkit.load(model, size=96).predict_samples(samples, limits), strict=True):
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=0.02)
    detector = load_detector(build(file.parent, "faster_rcnn"))
    with pytest.raises(detkit.DetkitError, match="for one size: at another"):
        graph_of(detector, dynamic=True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_image_at_several_scales(engine: str, monkeypatch: pytest.MonkeyPatch, pairs: Callable[..., Pair]) -> None:
    pytest.importorskip(engine)
    pyramid = {**LENET, "scales": [1.0, 0.7, 1.3]}  # of 64 pixels no whole numbers, so their ratio is not the scale
    monkeypatch.setitem(REGIONS, "pyramid", {"backbone": pyramid, "head": HEADS["sliding_window"]})
    model, file, done = pairs("pyramid")
    assert done.path == file, done.lines()
    detector, found = load_detector(model), detkit.load(file, engine=engine)
    proof = prove(detector, found, photos(), Tolerance(), resize=detector.resize)
    assert proof.passed, proof.lines()


def test_regions_of_fp16_are_found_in_float32(tmp_path: Path) -> None:
    file, half = tmp_path / "model.onnx", tmp_path / "half.onnx"
    model, data = build(tmp_path, "faster_rcnn"), str(toy_data(tmp_path))
    export(model, file)
    done = export(model, half, precision="fp16", data=data, loss=1.0)
    assert done.path == half, done.lines()
    network = engines.read_onnx(file)
    _, inside = _network(network)
    made = {node.op_type for node in network.graph.node if node.name in inside}
    assert {"Conv", "RoiAlign", "Gemm"} <= made
    assert made.isdisjoint({"Exp", "Log", "TopK", "NonMaxSuppression"})  # boxes, and the map that suits each


def test_nms_inside_is_not_another(pairs: Callable[..., Pair]) -> None:
    model, sample = detkit.load(pairs("aligned", "nms").file), toy_sample(0, 80)
    for limits, option in (Limits(0.1, 0.6), "--iou"), (Limits(0, 0.5), "--conf"), (Limits(1, 0.5, 301), "--max-det"):
        with pytest.raises(detkit.DetkitError, match="NMS is in this file") as told:
            model.predict_samples([sample], limits)
        assert option in str(told.value.where)
    boxes, scores, labels = model.engine.run(model.feed(model.input_of([sample])))
    assert boxes.shape == (1, 300, 4)
    assert (np.diff(scores) <= 0).all()
    assert set(labels[scores < 0].tolist()) <= {-1}


def test_info_shows_what_the_file_says_of_itself(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(pair.file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == list(CLASSES)
    assert facts["resize"]["size"] == [64, 64]
    assert len(facts["weights"]) == 64
    assert facts["proof"]["passed"] is True
    assert {"torch", "onnx", "detkit"} <= facts["versions"].keys()
    assert main(["info", str(pair.file)]) == 0
    table = [f"  {line}" for line in pair.done.proof.lines()]
    assert capsys.readouterr().out.splitlines()[-len(table) - 1 :] == ["proof:", *table]
    model, header = engines.read_onnx(pair.file), engine_header(pair.file)
    engines.onnx_package().helper.set_model_props(model, replace(header, proof={"differences": []}).to_metadata())
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    assert main(["info", str(tmp_path / "other.onnx")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "proof: of another version, see --json"


def toy_data(folder: Path) -> Path:
    """COCO json of one image, toy.png, with one object."""
    sample = toy_sample(0, 80)
    write_image(folder / "toy.png", sample.image)
    x1, y1, x2, y2 = sample.target.boxes[0].tolist()
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1, "iscrowd": 0}
    image = {"id": 1, "file_name": "toy.png", "width": sample.image.shape[1], "height": sample.image.shape[0]}
    data = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": CLASSES[0]}]}
    (folder / "toy.json").write_text(json.dumps(data))
    return folder / "toy.json"


WITHOUT_TORCH = """
import socket, sys
sys.modules["torch"] = None
asked = []
socket.getaddrinfo = lambda *a, **k: asked.append(a) or []
from detkit.cli import main
file, image, data, engine = sys.argv[1:]
assert main(["detect", image, "--model", file, "--engine", engine, "--conf", "0.002", "--save"]) == 0
assert main(["evaluate", file, data, "--engine", engine, "--json"]) == 0
assert asked == [], asked
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_torch_and_no_network_is_needed(engine: str, tmp_path: Path, yolo: Pair) -> None:
    pytest.importorskip(engine)
    toy_data(tmp_path)
    words = [str(yolo.file), "toy.png", "toy.json", engine]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'"engine": "{engine}"' in done.stdout
    assert list(tmp_path.glob("runs/detect*/toy.jpg"))


@pytest.mark.parametrize("classes", [None, (0, 2)])
def test_selection_is_that_of_the_heads(classes: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-10, 70, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 40, (300, 2))], 1).astype(np.float32)
    scores = rng.random((300, 3), np.float32) ** 4
    limits = Limits(0.05, 0.4, 30, classes)
    found = select_boxes(boxes, scores, (50, 60), limits, 10_000)
    prior, label = np.nonzero(scores >= 0.05)
    wanted = np.isin(label, classes or (0, 1, 2))
    prior, label = prior[wanted], label[wanted]
    rows = (torch.from_numpy(one) for one in (boxes[prior], scores[prior, label], label, 0 * label))
    (there,) = select_detections(*rows, torch.tensor([[50, 60]]), 3, limits)
    for mine, theirs in zip(found, (there.boxes, there.scores, there.labels), strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    few = select_boxes(boxes, scores, (50, 60), limits, 5)
    assert len(few[1]) <= 5
    assert few[1][0] == found[1][0]


def test_differences_are_those_of_partners() -> None:
    ours = Detections(np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10.0]]), [0.9, 0.8, 0.7], [0, 1, 1])
    theirs = Detections(np.array([[0, 0, 10, 11], [21, 20, 30, 30.0]]), [0.8, 0.75], [0, 1])
    count, matched, extra, ties, box, score = _compared(ours, theirs, Geometry(10, 10, 0.5, 0.25), 0.0, 0.5)
    assert (count, matched, extra, ties) == (3, 2, 0, 0)
    assert box == 0.5  # one pixel to the right at half the size, one down at a quarter
    assert score == pytest.approx(0.1)
    assert _compared(theirs, ours, Geometry(10, 10), 0.0, 0.5)[:4] == (2, 2, 1, 0)


def test_partners_are_one_for_one_and_a_box_too_many_is_no_proof() -> None:
    box = np.array([[0, 0, 10, 10.0]])
    one, two = (Detections(box.repeat(n, 0), [0.9] * n, [0] * n) for n in (1, 2))
    assert _compared(one, two, Geometry(10, 10), 0.1, 0.5) == (1, 1, 1, 0, 0.0, 0.0)
    assert _compared(two, one, Geometry(10, 10), 0.1, 0.5) == (2, 1, 0, 0, 0.0, 0.0)
    few = Detections(np.empty((0, 4)), [], [])
    assert _compared(few, two, Geometry(10, 10), 0.1, 0.5) == (0, 0, 2, 0, 0.0, 0.0)
    # Below the score that is asked for, a partner counts, a stranger does not.
    shy = Detections(np.concatenate((box, box + 50)), [0.0999, 0.05], [0, 0])
    assert _compared(one, shy, Geometry(10, 10), 0.1, 0.5)[:3] == (1, 1, 0)
    # A third of its width to the right, the IoU is 0.5: at this threshold rounding decides whether NMS keeps it.
    tie = Detections(np.concatenate((box, box + np.array([10 / 3, 0, 10 / 3, 0]))), [0.9, 0.8], [0, 0])
    assert _compared(one, tie, Geometry(10, 10), 0.1, 0.5)[:4] == (1, 1, 1, 1)
    assert _compared(tie, one, Geometry(10, 10), 0.1, 0.5)[:4] == (2, 1, 0, 1)
    assert _compared(one, tie, Geometry(10, 10), 0.1, 0.6)[:4] == (1, 1, 1, 0)
    assert Agreement(1, 8, 200, 198, 1, 3, 0, 0).within(Tolerance())
    assert not Agreement(1, 8, 2000, 2000, 1, 0, 0, 0).within(Tolerance())


def test_a_graph_that_finds_a_box_too_many_is_not_written(
    yolo: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(graph: DenseGraph, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = decode(graph, pixels)
        return torch.cat((boxes, torch.full_like(boxes[:, :1], 2) + corner), 1), torch.cat(
            (scores, sure + 0 * scores[:, :1]), 1
        )

    decode, corner, sure = DenseGraph.forward, torch.tensor([0.0, 0, 3, 3]), torch.eye(len(CLASSES))[0]
    monkeypatch.setattr(DenseGraph, "forward", more)
    done = export(yolo.model, tmp_path / "no.onnx")
    assert done.path is None
    assert list(tmp_path.iterdir()) == []
    for one in done.proof.differences:
        assert (one.detections - one.matched, one.extra, one.ties) == (0, 8, 0)
        assert one.box <= 0.05
        assert one.score <= 1e-3


def test_photos_are_eight() -> None:
    views = photos()
    assert len({view.tobytes() for view in views}) == 8


def test_a_model_is_exported_once_into_the_cache(
    yolo: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detkit.exporting import cached

    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "toy.png"
    write_image(image, toy_sample(0, 80).image)
    assert cached.kept_export(yolo.model) is None
    words = ["detect", str(image), "--model", str(yolo.model), "--conf", "0.003"]
    assert main([*words, "--engine", "onnxruntime"]) == 0
    said = capsys.readouterr()
    assert "exporting yolo.safetensors, once on this machine" in said.err
    kept = cached.make_export(yolo.model)
    # as where there is no GPU
    monkeypatch.setattr(cached, "kept_export", lambda model, tell: kept)
    monkeypatch.setattr("detkit.config.build.load_detector", None)  # torch's model is not asked
    assert main(words) == 0
    assert capsys.readouterr().out == said.out


def test_how_detecting_becomes_quicker_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.exporting import cached

    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    on_gpu = sys.platform == "darwin" or Path("/dev/nvidiactl").exists()
    told: list[str] = []
    for _ in range(2):
        assert cached.kept_export("default", told.append) is None
        assert cached.kept_export(build(tmp_path, "classify"), told.append) is None
    assert len(told) == (not on_gpu)
    assert all("detkit doctor --warm" in line for line in told)
    assert clear_cache() == len(told)


def test_what_is_not_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for head, what in (
        ({"name": "localize", "points": 2}, "landmarks are not exported"),
        ({**ROI, "points": 2}, "landmarks are not exported"),
        ({"name": "embed"}, "this head is not exported"),  # its answer is a vector, no box and no score
    ):
        source = {"proposals": {"name": "windows"}} if head["name"] == "roi" else {}
        monkeypatch.setitem(REGIONS, "other", {"head": head, **source})
        told: list[str] = []
        with pytest.raises(detkit.DetkitError, match=what):
            export(build(tmp_path, "other"), tmp_path / "model.onnx", size=49, tell=told.append)
        assert told == ["the input's sides are multiples of 2: 50"]


def test_the_users_images_are_compared_too(yolo: Pair, tmp_path: Path) -> None:
    proof = export(yolo.model, tmp_path / "model.onnx", data=str(toy_data(tmp_path))).proof
    assert [one.images for one in proof.differences] == [9, 9]
    assert list(proof.scores) == ["AP", "AP50"]
    ours, theirs = proof.scores["AP50"]
    assert ours == theirs
    assert f"AP50 on the data: {ours:.4f} of the model, {ours:.4f}" in proof.lines()[-1]


def test_a_segmentation_is_compared_pixel_by_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"name": "segment", "decoder": "unet", "width": 8}
    monkeypatch.setitem(REGIONS, "segment", {"backbone": {**LENET, "taps": [0, 1]}, "head": head})
    model, file = build(tmp_path, "segment"), tmp_path / "segment.onnx"
    write_image(tmp_path / "toy.png", toy_sample(0, 80).image)
    for kind, pixels in (("images", toy_sample(0, 80).image), ("masks", np.eye(80, dtype=np.uint8))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / kind / "toy.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(["background", *CLASSES]))
    proof = export(model, file, data=str(tmp_path / "data")).proof
    sizes = [(one.batch, one.images, one.pixels) for one in proof.differences]
    assert sizes == [(1, 9, 9 * 60**2), (4, 9, 9 * 60**2)]  # of 64 x 64 the convolutions without padding leave 60
    assert all(one.same >= 0.9999 * one.pixels and one.logit <= 1e-3 for one in proof.differences)
    assert list(proof.scores) == ["mIoU", "accuracy"]
    assert proof.scores["mIoU"][0] == pytest.approx(proof.scores["mIoU"][1], abs=1e-3)
    samples, limits = [toy_sample(i, 100) for i in range(3)], Limits(0.0)
    truth = load_detector(model).predict_samples(samples, limits)
    for engine in filter(find_spec, engines.ENGINES):
        for mine, theirs in zip(detkit.load(file, engine=engine).predict_samples(samples, limits), truth, strict=True):
            assert mine.classes == theirs.classes == tuple(CLASSES)
            assert mine.labels.tolist() == theirs.labels.tolist()
            np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4)
            assert mine.extra["masks"].shape == (len(mine), *theirs.extra["masks"].shape[1:])
            assert (mine.extra["masks"] != theirs.extra["masks"]).mean() < 1e-3
    words = [sys.executable, "-c", WITHOUT_TORCH, str(file), "toy.png", "data", "onnxruntime"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"mIoU"' in done.stdout
    file.unlink()
    monkeypatch.setattr("detkit.exporting.onnx_file.Tolerance", lambda: Tolerance(pixels=-1.0))
    assert export(model, file).path is None
    assert not file.exists()
    assert PixelAgreement(1, 8, 10_000, 9_999, 1e-3, "").within(Tolerance())
    assert not PixelAgreement(1, 8, 10_000, 9_998, 0.0, "").within(Tolerance())
    assert not PixelAgreement(1, 8, 10_000, 10_000, float("nan"), "").within(Tolerance())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fewer_bits_are_judged_by_ap(
    precision: str, yolo: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    data, file = str(toy_data(tmp_path)), tmp_path / "model.onnx"
    option = {"fp16": "--half", "int8": "--int8"}[precision]
    assert main(["export", str(yolo.model), "-o", str(file), "--data", data, option]) == 0
    assert "allowed to lose: 0.005" in capsys.readouterr().out
    assert engine_header(file).precision == precision
    made = {node.op_type for node in onnx.load(file).graph.node}
    weights = {onnx.TensorProto.DataType.Name(one.data_type) for one in onnx.load(file).graph.initializer}
    if precision == "fp16":
        assert "FLOAT16" in weights
    else:
        assert {"QuantizeLinear", "DequantizeLinear"} <= made
        nodes = onnx.load(file).graph.node
        layers = {name for node in nodes if node.op_type == "Conv" for name in node.output}
        rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
        assert rounded
        assert not rounded & layers  # what a layer gives is rounded after its activation only
    sample, limits = toy_sample(0, 80), Limits(0.0, 0.5, 1000)
    (mine,), (exact,) = (detkit.load(one).predict_samples([sample], limits) for one in (file, yolo.file))
    assert 0 < np.abs(np.sort(mine.scores)[-50:] - np.sort(exact.scores)[-50:]).max() < 1e-3
    worse = {"AP": (0.5, 0.5), "AP50": (0.8, 0.794)}
    monkeypatch.setattr("detkit.exporting.onnx_file.score_both", lambda *given: worse)
    done = export(yolo.model, tmp_path / "b.onnx", precision=precision, data=data)
    assert done.path is None
    assert done.lines()[-1] == "nothing is written: it loses more than --loss allows"
    assert not (tmp_path / "b.onnx").exists()
    assert export(yolo.model, tmp_path / "b.onnx", precision=precision, data=data, loss=0.01).path


def test_int8_covers_what_costs_least() -> None:
    even = np.arange(1001, dtype=np.float32) / 1000
    assert _best_range(even) == (0, 1)
    assert _best_range(-even) == (-1, 0)
    # Of N values one at 1.25: to cover it costs (1.25 / 255)^2 / 12 each, to cut it (1 / 255)^2 / 12 and 0.25^2 / N.
    assert _best_range(np.append(np.tile(even, 200), np.float32(1.25))) == (0, 1)
    assert _best_range(np.append(even, np.float32(1.25))) == (0, 1.25)
    assert _best_range(np.zeros(3, np.float32)) == (0, 0)


def engine_header(file: Path) -> Header:
    return Header.from_metadata(engines.open_engine(file, "onnxruntime").metadata, str(file))


def test_what_differs_is_not_written(
    yolo: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detkit.exporting.onnx_file.Tolerance", lambda: Tolerance(box=-1.0))
    assert main(["export", str(yolo.model), "-o", str(tmp_path / "no.onnx")]) == 1
    assert "nothing is written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_explained(
    yolo: Pair,
    pairs: Callable[..., Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import onnx

    yolo = pairs("yolo")
    whole = yolo.file.read_bytes()
    damaged, other, image = tmp_path / "damaged.onnx", tmp_path / "other.onnx", tmp_path / "a.png"
    damaged.write_bytes(whole[: len(whole) // 2])
    model = onnx.load(str(yolo.file))
    del model.metadata_props[:]
    onnx.save(model, str(other))
    write_image(image, np.zeros((20, 20, 3), np.uint8))

    def said(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    assert "may be damaged" in said("detect", image, "--model", damaged)
    assert "may be damaged" in said("info", damaged)
    assert "cannot be run on a float32 image" in said("detect", image, "--model", other)
    assert "this ONNX file was not written by detkit" in said("info", other)
    assert "runs no ONNX files" in said("detect", image, "--model", yolo.file, "--engine", "torch")
    assert "says itself how it is read" in said("detect", image, "--model", yolo.file, "--layout", "ssd")
    assert "is no .onnx file" in said("detect", image, "--model", yolo.model, "--layout", "ssd")
    assert "at least 1" in said("detect", image, "--model", yolo.file, "--threads", "0")
    assert "no such model file" in said("detect", image, "--model", tmp_path / "none.onnx")
    assert "ends in .onnx" in said("export", yolo.model, "-o", tmp_path / "a.pt")
    for head, option in ("classify", "--nms"), ("localize", "--dynamic"), ("sliding_window", "--dynamic"):
        assert option in said("export", pairs(head).model, "-o", tmp_path / "a.onnx", option)
    assert "--split goes with --data" in said("export", yolo.model, "-o", tmp_path / "a.onnx", "--split", "val")
    assert "--loss goes with --half or --int8" in said("export", yolo.model, "-o", tmp_path / "a.onnx", "--loss", "1")
    assert "exists already" in said("export", yolo.model, "-o", yolo.file)
    assert "give labelled images: --data DATA" in said("export", yolo.model, "-o", tmp_path / "a.onnx", "--int8")
    assert "import torchvision" in said("export", "torchvision/ssd300_vgg16", "-o", tmp_path / "a.onnx")
    assert "a file has one precision" in said("export", yolo.model, "-o", tmp_path / "a.onnx", "--int8", "--half")
    assert "is fixed, 64 x 64" in said("detect", image, "--model", yolo.file, "--size", 96)
    assert "did you mean openvino?" in said("detect", image, "--model", yolo.file, "--engine", "openvnio")
    assert "computes ONNX files in fp32" in said(
        "detect", image, "--model", yolo.file, "--engine", "onnxruntime", "--precision", "bf16"
    )
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert "pip install 'detkit[onnx]'" in said("detect", image, "--model", yolo.file)
    assert "pip install 'detkit[openvino]'" in said("detect", image, "--model", yolo.file, "--engine", "openvino")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'detkit[onnx]'" in said("export", yolo.model, "-o", tmp_path / "a.onnx")
