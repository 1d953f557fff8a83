"""What a network looks at, against what can be known of small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import detkit
from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.dataset import Dataset, read
from detkit.data.loader import collate
from detkit.data.toy import CLASSES, toy_sample, write_toy_data
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.explain.drawings import draw_cam
from detkit.explain.features import cut_patches, find_peaks, first_filters, published_network, stage_maps
from detkit.explain.gradcam import grad_cam
from detkit.structures import Limits, Sample

FAMILIES: dict[str, dict[str, Any]] = {
    "classify": {"head": {"name": "classify"}},
    "localize": {"head": {"name": "localize", "cells": 2}},
    "yolo": {"head": {"name": "yolo", "anchors": [[20.0, 20.0]]}},
    "sliding": {"backbone": {"scales": [1.0, 0.7]}, "head": {"name": "sliding_window", "cells": 2, "width": 8}},
    "faster": {"proposals": {"name": "rpn", "scales": [20]}, "head": {"name": "roi", "layers": "mlp", "width": 8}},
}


def model(family: str, size: Any = 64, **changes: Any) -> Detector:
    parts = {"size": size, **FAMILIES[family], **changes}
    parts["backbone"] = {"name": "lenet_textbook", "taps": [2], **parts.get("backbone", {})}
    torch.manual_seed(0)
    config = Config({}, check_model(parts, Place()), {}, TrainOptions(), EvaluateOptions())
    return build_detector(config, CLASSES).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_says_where_it_looked(family: str) -> None:
    detector, image = model(family), toy_sample(1, 90).image[:60]
    detector.backbone.freeze(1)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    found = grad_cam(detector, image)
    assert found.heat.shape == (60, 90)
    assert found.heat.min() >= 0
    assert found.heat.max() in (0, pytest.approx(1))
    assert found.stage == 2
    with torch.no_grad():
        best = detector(collate([Sample(image)], detector.resize)[0], limits=Limits(conf=0, iou=1))[0]
    if family == "localize":  # whose detections count the object's presence in
        assert found.label == best.labels[0]
    else:
        assert found.score == pytest.approx(float(best.scores.max()), abs=1e-5)
    other = (found.label + 1) % 3
    asked = grad_cam(detector, image, other, 1)
    assert (asked.label, asked.stage) == (other, 1)
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_behind_an_average_it_is_the_class_activation_map() -> None:
    # Selvaraju et al. 2017, section 3.1: the last layer's own weights.
    detector, image = model("classify"), toy_sample(2, 64).image
    with torch.no_grad():
        torch.nn.init.normal_(detector.head.last.weight)
        x = detector.backbone((torch.from_numpy(image).permute(2, 0, 1)[None] - detector.mean) / detector.std)[0]
        heat = (x[0] * detector.head.last.weight[1][:, None, None]).sum(0).relu()
        wanted = F.interpolate(heat[None, None], (64, 64), mode="bilinear")[0, 0]
    found = grad_cam(detector, image, 1)
    np.testing.assert_allclose(found.heat, (wanted / wanted.max()).numpy(), atol=1e-4)
    (drawn,) = draw_cam(detector, image, [1]).images.values()
    assert drawn.shape[1] > 2 * image.shape[1]
    assert drawn.dtype == np.uint8


def test_the_stage_is_the_deepest_that_the_answer_comes_through() -> None:
    levels = {"backbone": {"taps": [1, 2]}, "head": {"name": "yolo", "anchors": [[[9.0, 9.0]], [[30.0, 30.0]]]}}
    detector, image = model("yolo", **levels), toy_sample(3, 64).image
    with torch.no_grad():
        detector.head.layers[0].bias[4] += 9  # the fine level answers
        assert grad_cam(detector, image, 0).stage == 1
        with pytest.raises(DetkitError, match="circle does not come through stage 2"):
            grad_cam(detector, image, 0, 2)
        detector.head.layers[1].bias[4] += 20
        assert grad_cam(detector, image, 0).stage == 2
        for layer in detector.head.layers:
            layer.weight.zero_()
        with pytest.raises(DetkitError, match="circle does not depend on what"):
            grad_cam(detector, image, 0)


def rcnn(**head: Any) -> Detector:
    parts = {
        "backbone": {"name": "identity", "cnn": "lenet5", "taps": [0]},
        "proposals": {"name": "windows", "windows": [30], "aspects": [1.0]},
        "head": {"name": "roi", "pool": "crops", "size": 64, "padding": 8, **head},
    }
    return model("faster", **parts)


def test_where_pixels_are_only_handed_on_the_heads_network_is_looked_into() -> None:
    detector, image = rcnn(), toy_sample(3, 64).image
    assert first_filters(detector).shape == (6, 5, 5, 3)
    assert [len(stage_maps(detector, image, stage)) for stage in range(3)] == [6, 16, 120]
    with pytest.raises(DetkitError, match="no stage 3"):
        grad_cam(detector, image, stage=3)
    sample = Sample(image)
    with torch.no_grad():
        best = detector(collate([sample], detector.resize)[0], limits=Limits(conf=0, iou=1))[0]
    found = grad_cam(detector, image)
    assert (found.stage, found.score) == (2, pytest.approx(float(best.scores.max()), abs=1e-5))
    assert found.heat.max() == pytest.approx(1)
    # All that was looked at is one window, a third larger than 30 pixels.
    rows, columns = found.heat.any(1).nonzero()[0], found.heat.any(0).nonzero()[0]
    assert max(np.ptp(rows), np.ptp(columns)) <= 40
    with pytest.raises(DetkitError, match="no convolutions"):
        grad_cam(rcnn(layers="mlp", width=8), image)


def test_a_region_is_looked_at_as_an_image_of_its_own() -> None:
    detector, image = rcnn(padding=0), toy_sample(3, 64).image
    boxes = torch.tensor([[10.0, 20.0, 42.0, 52.0]])
    detector.proposals.propose = lambda *words: ([boxes], None)
    found = grad_cam(detector, image, 2, 1)
    detector.proposals.propose = lambda *words: ([torch.tensor([[0.0, 0.0, 64.0, 64.0]])], None)
    crop = torch.from_numpy(image[20:52, 10:42]).permute(2, 0, 1)[None].float()
    whole = F.interpolate(crop, (64, 64), mode="bilinear")[0].permute(1, 2, 0).round().byte().numpy()
    other = grad_cam(detector, whole, 2, 1)
    assert other.score == pytest.approx(found.score, abs=1e-3)
    shrunk = F.interpolate(torch.from_numpy(other.heat)[None, None], (32, 32), mode="area")[0, 0].numpy()
    assert np.corrcoef(shrunk.ravel(), found.heat[20:52, 10:42].ravel())[0, 1] > 0.99


def test_maps_end_where_the_image_does() -> None:
    detector, image = model("classify", (64, 96)), toy_sample(4, 80).image[:, :40]
    # 32 of the input's 96 columns hold the image.
    assert stage_maps(detector, image, 0).shape == (8, 60, 31)
    assert stage_maps(detector, image, 2).shape == (120, 9, 6)
    with pytest.raises(DetkitError, match="no stage 3"):
        stage_maps(detector, image, 3)


def test_patches_hold_what_excites_a_channel(tmp_path: Path) -> None:
    data = Dataset(read(write_toy_data(tmp_path, train=12, val=1, size=64), split="train"))
    detector = model("classify", 64)
    # Channel 0 of the first stage answers to red, as far as it is more than green.
    conv = detector.backbone.stages[0][0]
    with torch.no_grad():
        conv.weight[0] = 0
        conv.weight[0, 0, 2, 2], conv.weight[0, 1, 2, 2] = 1, -1
    found = find_peaks(detector, data, 0, batch=5)
    assert (found.field.size, found.field.stride) == (5, 1)
    assert sorted(found.images) == list(range(12))
    assert found.values.shape == (12, 8)
    top = cut_patches(found, detector, data, 0, side=30)
    assert len(top) == 9
    assert [p.value for p in top] == sorted((p.value for p in top), reverse=True)
    place = found.cells[found.values[:, 0].argmax(), 0]
    image = data.load(int(found.images[found.values[:, 0].argmax()])).image
    difference = (image[..., 0] - detector.mean[0, 0, 0, 0].item()) / 58.395
    difference = difference - (image[..., 1] - detector.mean[0, 1, 0, 0].item()) / 57.12
    assert difference[place[1] + 2, place[0] + 2] == pytest.approx(difference[2:-2, 2:-2].max(), abs=1e-4)
    assert all(p.image.shape == (30, 30, 3) for p in top)
    assert len(find_peaks(detector, data, 0, images=9).choose(3)) == 3
    with pytest.raises(DetkitError, match="no channel 8"):
        cut_patches(found, detector, data, 8)


def test_deep_patches_frame_their_cell_and_stay_inside(tmp_path: Path) -> None:
    root = write_toy_data(tmp_path, train=4, val=1, size=64)
    data = Dataset(read(root, split="train"))
    detector = model("classify", (64, 64))
    found = find_peaks(detector, data, 2)
    whole, near = (cut_patches(found, detector, data, 5, count=2, window=window) for window in (None, 12))
    assert [p.path for p in whole] == [p.path for p in near]
    assert all(max(p.image.shape[:2]) == 128 for p in whole + near)
    assert (found.field.size, found.field.stride) == (32, 4)
    assert any((p.image == (255, 56, 56)).all(2).any() for p in near)
    broken = Path(data.annotations.files[0])
    broken.write_bytes(b"no image")
    again = find_peaks(detector, data, 2)
    assert len(again.failed) == 1
    assert broken.name in again.failed[0]
    assert 0 not in again.images


def test_drawings_say_what_they_show_and_write_nothing_over(tmp_path: Path) -> None:
    detector, image = published_network("lenet5", "none"), toy_sample(5, 50).image
    drawn = detkit.inspect.draw_maps(detector, image, count=4)
    assert list(drawn.images) == ["stage0.png", "stage1.png", "stage2.png"]
    assert drawn.to_dict() == {"maps": {"stage 0": (6, 28, 28), "stage 1": (16, 10, 10), "stage 2": (120, 1, 1)}}
    assert drawn.lines()[0].startswith("stage 0: 6 maps of 28 x 28")
    paths = drawn.save(tmp_path / "maps")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [path.name for path in paths]
    with pytest.raises(DetkitError, match="exists"):
        drawn.save(tmp_path / "maps")
    drawn.save(tmp_path / "maps", overwrite=True)
    assert detkit.inspect.draw_filters(detector).lines() == ["6 filters of 5 x 5"]
    assert detkit.inspect.draw_edges().to_dict()["learned"]["from"] == "sobel"


def test_published_networks_bring_their_classifier() -> None:
    detector = published_network("lenet5", "none")
    assert detector.classes == tuple("0123456789")
    image = toy_sample(5, 50).image
    assert grad_cam(detector, image, 3).heat.shape == (50, 50)
    assert stage_maps(published_network("lenet5", "none", 48), image, 0).shape == (6, 44, 44)
    assert first_filters(detector).shape == (6, 5, 5, 3)
    with pytest.raises(DetkitError, match="does not take 20 pixels"):
        published_network("lenet5", "none", 20)
    for name, reason in (("lenet5", "no ImageNet weights of lenet5"), ("darknet", "graph")):
        with pytest.raises(DetkitError, match=reason):
            published_network(name)
