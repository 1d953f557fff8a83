"""The detector end to end on small images, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from detkit import zoo
from detkit.backbones.torchvision import mobilenet_v3_small
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.loader import collate
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.interfaces import Head
from detkit.prediction.ensemble import Ensemble
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample, Target

CLASSES = ("cat", "dog", "café")


def make_config(**model) -> Config:
    values = {
        "size": 64,
        "backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]},
        "neck": {"name": "fpn", "out": 16},
        "head": {"name": "yolo", "anchors": [[8, 8], [16, 16], [24, 32], [40, 40]]},
        **model,
    }
    return Config({}, check_model(values, Place("test.yaml")), {}, TrainOptions(), EvaluateOptions())


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(make_config(), CLASSES, class_ids=(3, 7, "x")).eval()


def noise_image(height=48, width=80, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def samples() -> list[Sample]:
    target = Target(np.array([[5, 5, 30, 40], [40, 10, 70, 45]], np.float32), np.array([0, 2]))
    return [Sample(noise_image(), target), Sample(noise_image(100, 30, 1))]


def test_it_is_a_predictor(detector):
    assert isinstance(detector, Predictor)
    assert detector.resize.stride == 16


def test_arguments_decide_what_comes_out(detector):
    batch, targets = collate(samples(), detector.resize)
    losses = detector(batch, targets)
    found = detector(batch, limits=Limits(conf=0.0))
    both, found_too = detector(batch, targets, detections=True, limits=Limits(conf=0.0))
    assert all(torch.isfinite(loss.sum) for loss in losses.values())
    assert losses.keys() == both.keys()
    assert all(torch.allclose(losses[k].sum, both[k].sum) for k in losses)
    assert [len(d) for d in found] == [len(d) for d in found_too]
    assert torch.equal(found[0].boxes, found_too[0].boxes)
    assert found[0].classes == CLASSES
    assert len(found[0]) > 0


@pytest.mark.parametrize("wrong", [noise_image(), torch.zeros(1, 3, 64, 64), "photo.jpg", [noise_image()]])
def test_what_is_no_batch_is_told_how_to_predict(detector, wrong):
    with pytest.raises(DetkitError, match=r"takes a Batch.*\n.*detector\.predict\(image\)"):
        detector(wrong)


def test_boxes_come_back_in_original_pixels(detector):
    for sample, found in zip(samples(), detector.predict_samples(samples(), Limits(conf=0.0)), strict=True):
        height, width = sample.image.shape[:2]
        assert isinstance(found.boxes, np.ndarray)
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, [0, 2]] <= width).all()
        assert (found.boxes[:, [1, 3]] <= height).all()


def test_every_trainable_weight_gets_a_gradient_with_an_empty_image_in_the_batch():
    torch.manual_seed(0)
    model = build_detector(make_config(), CLASSES)
    batch, targets = collate(samples(), model.resize)
    sum(loss.sum / loss.count.clamp(min=1) for loss in model(batch, targets).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()
    batch, targets = collate([samples()[1]] * 2, model.resize)
    sum(loss.sum / loss.count.clamp(min=1) for loss in model(batch, targets).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_precision_is_a_matter_of_prediction_alone(detector, tmp_path):
    twin, seen = copy.deepcopy(detector), []
    twin.precision = "bf16"
    twin.neck.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0].dtype))
    found = twin.predict(noise_image(), conf=0.0)
    assert seen == [torch.bfloat16]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores[:10], detector.predict(noise_image(), conf=0.0).scores[:10], atol=0.02)
    twin.raw(torch.zeros(1, 3, 64, 64))
    assert seen[1] == torch.float32
    twin.save(tmp_path / "m.safetensors")
    assert load_detector(tmp_path / "m.safetensors").precision == "fp32"


def test_normalisation_is_the_models(detector):
    pixels = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    seen = []
    handle = detector.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    detector.raw(pixels)
    handle.remove()
    expected = (200 - torch.tensor(mobilenet_v3_small().mean)) / torch.tensor(mobilenet_v3_small().std)
    assert torch.allclose(seen[0][0, :, 0, 0], expected)


@pytest.mark.parametrize("width", [1, 33])
def test_either_layout_is_normalised_to_the_same_bits(detector, width):
    pixels = torch.randint(0, 256, (2, 3, 20, width), dtype=torch.uint8, generator=torch.manual_seed(0))
    by_channel = detector.normalised(pixels)
    for last in (pixels.to(memory_format=torch.channels_last), pixels.float().to(memory_format=torch.channels_last)):
        assert torch.equal(detector.normalised(last), by_channel)
        assert detector.normalised(last).is_contiguous(memory_format=torch.channels_last)


def test_prediction_keeps_the_mode(detector):
    detector.train()
    detector.predict(noise_image())
    assert detector.training
    detector.eval()


def test_one_image_in_every_form(detector, tmp_path):
    from PIL import Image

    image = noise_image()
    path = tmp_path / "größe.png"
    Image.fromarray(image).save(path)
    forms = (image, path, str(path), path.read_bytes(), Image.fromarray(image))
    found = [detector.predict(form, conf=0.0) for form in forms]
    found.append(detector.predict(image[..., ::-1], conf=0.0, bgr=True))
    assert all(np.allclose(f.boxes, found[0].boxes, atol=1e-4) for f in found)
    grey = noise_image()[..., 0]
    assert np.array_equal(
        detector.predict(grey, conf=0.0).boxes, detector.predict(np.stack([grey] * 3, 2), conf=0.0).boxes
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (3.5, "float"),
        ("missing.jpg", "missing.jpg"),
    ],
)
def test_what_is_no_image(detector, source, reason):
    with pytest.raises(DetkitError, match=reason):
        detector.predict(source)


def test_classes_by_name_or_label(detector):
    assert detector.limits(classes=["café", 0]).classes == (2, 0)
    assert detector.limits().conf == detector.threshold
    assert set(detector.predict(noise_image(), conf=0.0, classes=["dog"]).names) <= {"dog"}
    with pytest.raises(DetkitError, match="did you mean dog"):
        detector.limits(classes=["dgo"])
    with pytest.raises(DetkitError, match="no class 3"):
        detector.limits(classes=[3])


def test_of_many_classes_a_few_are_named():
    class Names(Predictor):
        classes, threshold = tuple(f"number {k}" for k in range(1000)), 0.5

    with pytest.raises(DetkitError, match="knows no class 'numbr 7'") as told:
        Names().limits(classes=["numbr 7"])
    assert told.value.do == "did you mean number 7?"
    with pytest.raises(DetkitError, match="number 3, number 4 and 995 more"):
        Names().limits(classes=["a lamp"])


def test_stream(detector, tmp_path):
    from PIL import Image

    for i in range(3):
        Image.fromarray(noise_image(seed=i)).save(tmp_path / f"{i}.png")
    found = list(detector.stream(tmp_path, conf=0.0, batch=2))
    assert len(found) == 3
    assert np.allclose(found[1].boxes, detector.predict(tmp_path / "1.png", conf=0.0).boxes, atol=1e-3)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DetkitError):
        list(detector.stream(tmp_path))


def test_saved_and_loaded_is_the_same(detector, tmp_path):
    path = tmp_path / "ñ" / "model.safetensors"
    detector.threshold, detector.scores, detector.record = 0.31, {"AP50": 0.5}, {"seed": 3, "bad": float("nan")}
    detector.save(path)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    other = load_detector(path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not other.training
    assert (other.classes, other.class_ids, other.resize) == (CLASSES, (3, 7, "x"), detector.resize)
    assert (other.threshold, other.scores, other.record) == (0.31, {"AP50": 0.5}, {"seed": 3, "bad": None})
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in detector.state_dict().items())
    a, b = (model.predict(noise_image(), conf=0.0) for model in (detector, other))
    assert np.array_equal(a.boxes, b.boxes)
    other.save(tmp_path / "again.safetensors")
    assert zoo.read_model_header(tmp_path / "again.safetensors") == zoo.read_model_header(path)
    detector.threshold = 0.25


def test_half_is_half_the_size_and_nearly_the_same(detector, tmp_path):
    detector.save(tmp_path / "full.safetensors")
    detector.save(tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    other = load_detector(tmp_path / "half.safetensors")
    assert {v.dtype for v in other.parameters()} == {torch.float32}
    norms = {k for k in detector.state_dict() if "running" in k}
    assert all(torch.equal(detector.state_dict()[k], other.state_dict()[k]) for k in norms)
    a, b = (m.predict(noise_image(), conf=0.0) for m in (detector, other))
    assert abs(a.scores.max() - b.scores.max()) < 0.01


def test_loading_fetches_nothing(detector, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("weights were fetched")

    detector.save(tmp_path / "best.safetensors")
    monkeypatch.setattr("detkit.backbones.pretrained.imagenet_file", refuse)
    changed = load_detector(tmp_path)  # a run folder
    changed.config["model"]["backbone"]["weights"] = "imagenet"
    changed.save(tmp_path / "best.safetensors")
    assert load_detector(tmp_path).classes == CLASSES


def test_saving_over_is_chosen(detector, tmp_path):
    path = tmp_path / "m.safetensors"
    detector.save(path)
    detector.save(path)
    with pytest.raises(DetkitError, match="exists"):
        detector.save(path, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_full_disk_leaves_the_old_file(detector, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    detector.save(path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DetkitError) as caught:
        detector.save(path)
    assert caught.value.code == 4
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_model_files(detector, tmp_path):
    good = tmp_path / "good.safetensors"
    detector.save(good)
    data = good.read_bytes()
    length = int.from_bytes(data[:8], "little")
    newer = {"format": "detkit", "version": "99", "detkit": "{}"}
    save_file(load_file(good), tmp_path / "newer.safetensors", newer)
    save_file(load_file(good), tmp_path / "other.safetensors", {"format": "pt"})
    save_file(load_file(good), tmp_path / "holes.safetensors", {**newer, "version": "1"})
    cases = {
        "cut.safetensors": (data[: len(data) // 2], "cut off"),
        "cut_header.safetensors": (data[: length // 2], "cut off"),
        "zeros.safetensors": (data[:20] + bytes(length) + data[20 + length :], "damaged"),
        "empty.safetensors": (b"", "not a model file"),
        "text.safetensors": (b"hello world, hello", "not a model file"),
        "old.pt": (pickle.dumps({"a": 1}), "pickle"),
        "newer.safetensors": (None, "format 99"),
        "other.safetensors": (None, "not written by detkit"),
        "holes.safetensors": (None, "damaged"),
        "missing.safetensors": (None, "no such model file"),
    }
    torch.save({"a": 1}, tmp_path / "new.pt")
    cases["new.pt"] = (None, "pickle")
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DetkitError, match=reason) as caught:
            load_detector(path)
        error = caught.value
        assert error.code == 2
        assert str(path) in error.where
        assert error.do
        assert len(str(error).splitlines()) == 3


def test_weights_that_do_not_fit_their_header(detector, tmp_path):
    path = tmp_path / "m.safetensors"
    detector.save(path)
    header = json.loads(json.dumps(zoo.read_model_header(path)))
    header["config"]["model"]["neck"]["out"] = 24
    keep = {k: v for k, v in header.items() if k not in ("tensors", "format")}
    save_file(load_file(path), path, zoo.header_metadata(keep))
    with pytest.raises(DetkitError, match="do not fit"):
        load_detector(path)


def test_start_from_another_detector(detector, tmp_path):
    path = tmp_path / "m.safetensors"
    detector.save(path)
    config = make_config(weights=str(path))
    torch.manual_seed(9)
    other = build_detector(config, ("one",))
    ours, theirs = detector.state_dict(), other.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k.startswith(("backbone.", "neck.")))
    assert other.classes == ("one",)
    with pytest.raises(DetkitError, match="fits"):
        build_detector(make_config(weights=str(path), backbone={"name": "resnet18", "taps": [2, 3]}), CLASSES)


def test_a_two_stage_detector_hands_over_clipped_proposals_once(detector):
    class Candidates(torch.nn.Module):
        def propose(self, batch, features, training):
            boxes = [torch.tensor([[-5.0, -5.0, 500.0, 500.0]], requires_grad=True) for _ in range(len(batch))]
            return boxes, "learned"

        def loss(self, raw, targets, sizes):
            assert raw == "learned"
            return detector.head.loss(detector.head.raw(features), targets, sizes)

    from detkit.detector import Detector

    calls = []

    class Echo(Head, torch.nn.Module):
        def sample(self, proposals, targets):
            calls.append("sample")
            return proposals

        def raw(self, features, proposals=None):
            calls.append(proposals)
            return detector.head.raw(features)

        def loss(self, raw, targets, sizes):
            return detector.head.loss(raw, targets, sizes)

        def predict(self, raw, sizes, limits):
            return detector.head.predict(raw, sizes, limits)

    model = Detector(
        detector.backbone, detector.neck, Echo(), Candidates(), classes=CLASSES, resize=detector.resize, config={}
    )
    batch, targets = collate(samples(), detector.resize)
    features = model.features(batch.pixels)
    losses = model(batch, targets)
    assert calls[0] == "sample"
    assert any(name.startswith("proposals_") for name in losses)
    height, width = batch.sizes[0].tolist()
    assert calls[1][0].tolist() == [[0, 0, width, height]]
    assert not calls[1][0].requires_grad
    calls.clear()
    model(batch, targets, detections=True)
    assert "sample" not in calls  # ground truth never reaches a score
    model(replace(batch), limits=Limits())
    assert len(calls) == 2


def test_the_nms_threshold_is_the_files_own_and_a_word_overrules_it(tmp_path):
    config = replace(make_config(), evaluate=EvaluateOptions(iou=0.6))
    build_detector(config, CLASSES).save(tmp_path / "m.safetensors")
    model = load_detector(tmp_path / "m.safetensors")
    assert (model.iou, model.limits().iou, model.limits(iou=0.3).iou) == (0.6, 0.6, 0.3)
    asked, other = [], build_detector(make_config(), CLASSES)
    model.head.predict = lambda raw, sizes, limits: asked.append(limits.iou) or [Detections.empty()]
    batch, targets = collate(samples()[:1], model.resize)
    model(batch)
    model(batch, targets, detections=True)
    model.predict(noise_image())
    assert asked == [0.6] * 3
    assert Ensemble([model, other]).iou == pytest.approx(0.55)
