"""Features on disk: whose they are, that they are computed once, and the stages that the engine fits on them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader, collate
from detkit.data.toy import CLASSES, write_toy_data
from detkit.detector import Detector
from detkit.engine import feature_cache as module
from detkit.engine.evaluator import detect_dataset
from detkit.engine.events import Notice
from detkit.engine.feature_cache import Embeddings, FeatureStore, embed_regions, feature_key, network_hash
from detkit.engine.options import TrainOptions
from detkit.engine.runtime import Runtime
from detkit.engine.trainer import Trainer
from detkit.errors import DetkitError
from detkit.io.cache import cache_size
from detkit.metrics import coco


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def detector(**head: Any) -> Detector:
    torch.manual_seed(0)
    model = {
        "size": 64,
        "backbone": {"name": "lenet_textbook", "taps": [1]},
        "proposals": {"name": "windows", "windows": [24, 40], "aspects": [1.0]},
        "head": {"name": "roi", "layers": "mlp", "width": 16, "size": 3, "classifier": "svm", **head},
    }
    return build_detector(Config({}, check_model(model, Place()), {}, TrainOptions(), EvaluateOptions()), CLASSES)


def images(folder: Path, count: int = 3) -> Dataset:
    return Dataset(read(write_toy_data(folder / "toy", train=count, val=2, size=64), split="train"))


def embedded(model: Detector, data: Dataset, tell: Any = lambda text: None) -> Embeddings:
    with Loader(data, resize=model.resize, batch=2) as loader:
        return embed_regions(model, loader, len(data), Runtime("cpu", "fp32"), tell)


def test_a_network_is_its_weights_and_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    first = network_hash([net])
    assert network_hash([net]) == first
    net[1].running_mean[0] += 1
    second = network_hash([net])
    net[0].weight.data[0, 0, 0, 0] += 1e-6
    assert len({first, second, network_hash([net]), network_hash([net, nn.ReLU()])}) == 4
    net.bfloat16()
    assert len(network_hash([net])) == 64
    one, other = (FeatureStore([net], {"size": size}, print).cache for size in (320, 640))
    assert one.path("a" * 40) != other.path("a" * 40)


def test_an_entry_is_of_these_pixels_and_boxes() -> None:
    pixels, boxes = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4)
    keys = {feature_key(pixels), feature_key(pixels, boxes), feature_key(pixels, boxes + 1), feature_key(pixels + 1)}
    assert len(keys) == 4
    assert all(len(key) == 40 for key in keys)


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, said = detector(), images(tmp_path), list[str]()
    first = embedded(model, data, said.append)
    assert len(first) == len(data) == cache_size()[0]
    rows = sum(len(item.features) for item in first)
    assert f"{len(data)} images: about 0.01 MB in" in said[0]
    for item in first:
        assert item.features.dtype == "float16"
        assert item.features.shape == (len(item.boxes), 16)
        assert torch.equal(item.boxes[: len(item.target)], item.target.boxes)
    batch_rows = torch.cat([item.boxes for item in first])
    assert len(batch_rows) == rows

    def refuse(*arguments: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(model.head, "embed", refuse)
    again = embedded(model, data)
    assert all((a.features == b.features).all() for a, b in zip(first, again, strict=True))
    model.head.trunk[1].weight.data += 1e-3
    with pytest.raises(AssertionError, match="again"):
        embedded(model, data)


def test_each_way_of_pooling_has_features_of_its_own(tmp_path: Path) -> None:
    data = images(tmp_path, 1)
    first = np.array(embedded(detector().eval(), data)[0].features)
    for change in ({"aligned": False}, {"sampling": 1}, {"pool": "max"}):
        other = detector(**change).eval()  # the same weights
        assert not np.array_equal(first, embedded(other, data)[0].features), change


def test_features_are_what_the_head_embeds(tmp_path: Path) -> None:
    model, data = detector().eval(), images(tmp_path, 1)
    item = embedded(model, data)[0]
    sample = data.load(0)
    batch, _ = collate([sample], model.resize)
    rois = torch.cat((torch.zeros(len(item.boxes), 1), item.boxes), dim=1)
    with torch.no_grad():
        wanted = model.head.embed(model.features(batch.pixels), rois)
    torch.testing.assert_close(torch.tensor(item.features).float(), wanted, rtol=1e-3, atol=1e-3)


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    said: list[str] = []
    store = FeatureStore([nn.ReLU()], {}, said.append)
    for size, there in ((2.53e7, 0), (5e8, 0), (2e9, 1.5e9)):
        store.announce("features", size, "", there=there)
    assert ["about 25.30 MB" in said[0], "about 0.50 GB" in said[1], "about 2.00 GB" in said[2]] == [True] * 3
    with pytest.raises(DetkitError, match=r"2.00 GB, but the disk has 1.00 GB") as caught:
        store.announce("features", 2e9, "keep fewer")
    assert caught.value.code == 4
    assert "keep fewer" in caught.value.do
    assert "DETKIT_CACHE" in caught.value.do


def test_without_a_cache_features_stay_in_memory(tmp_path: Path, place: Path) -> None:
    place.write_text("a file where the folder should be")
    said: list[str] = []
    found = embedded(detector(), images(tmp_path), said.append)
    assert sum("nothing is cached" in text for text in said) == 1
    assert all(len(item.features) for item in found)


def test_a_file_that_vanishes_is_an_error(tmp_path: Path) -> None:
    found = embedded(detector(), images(tmp_path))
    found.store.cache.clear()
    with pytest.raises(DetkitError, match="gone") as caught:
        found[0]
    assert caught.value.code == 4


def test_svms_on_a_trained_cnn_know_four_images_by_heart(tmp_path: Path) -> None:
    """R-CNN as published: fine-tuning, then SVMs and ridge regression on the features of crops."""
    torch.manual_seed(0)
    crops = {"pool": "crops", "size": 32, "padding": 4, "rois": 64, "classifier": "svm", "svm_cost": 1.0, "ridge": 10.0}
    values = {
        "size": 96,
        "backbone": {"name": "identity", "cnn": "lenet5"},
        "proposals": {"name": "windows", "windows": [20, 28, 40], "aspects": [1.0], "max": 600},
        "head": {"name": "roi", **crops},
    }
    model = build_detector(Config({}, check_model(values, Place()), {}, TrainOptions(), EvaluateOptions()), CLASSES)
    data = Dataset(read(write_toy_data(tmp_path / "toy", train=4, val=1, size=96), split="train"))
    batch, targets = collate([data.load(i) for i in range(4)], model.resize)
    optimizer = torch.optim.AdamW(model.train().parameters(), 2e-3)
    for _ in range(100):
        losses = model(batch, targets)
        torch.stack([term.sum / term.count for term in losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().head.fit(embedded(model, data))
    found = detect_dataset(model, data)
    assert coco.Coco().evaluate(*found[:2]).metrics["AP50"] >= 0.9
    model.save(tmp_path / "fitted.safetensors")
    assert np.array_equal(found[1].score, detect_dataset(load_detector(tmp_path / "fitted.safetensors"), data)[1].score)


OPTIONS = TrainOptions(epochs=1, batch=2, workers=0, device="cpu", precision="fp32", close_mosaic=0)


def train(*parts: Any, resume: bool = False, dry_run: bool = False, **more: Any) -> Any:
    return Trainer(*parts, **more).train(resume=resume, dry_run=dry_run)


def test_the_engine_fits_the_head_once_after_the_loop(tmp_path: Path) -> None:
    data, said, run = images(tmp_path), list[Any](), tmp_path / "run"
    val = Dataset(read(tmp_path / "toy", split="val"))
    done: Any = train(detector(), data, val, OPTIONS, run=run, on_event=said.append)
    notices = [str(event) for event in said if isinstance(event, Notice)]
    assert any("regions of 3 images" in text for text in notices)
    assert any("stages are fitted: AP " in text for text in notices)
    best = load_detector(run / "best.safetensors")
    assert best.head.fitted
    assert best.head.svm.any()
    assert best.scores["AP"] == done.row["AP"]
    assert not load_detector(run / "last.safetensors").head.fitted
    assert cache_size()[0] == 0  # no other run has this trunk

    said.clear()
    again: Any = train(detector(), data, val, OPTIONS, run=run, resume=True, on_event=said.append)
    assert not any("fitted" in str(event) for event in said)
    assert again.row == done.row


def test_without_validation_the_last_weights_are_fitted(tmp_path: Path) -> None:
    started = detector()
    started.head.fitted.fill_(True)  # as from a model file to train on
    train(started, images(tmp_path), None, OPTIONS, run=tmp_path / "run")
    assert load_detector(tmp_path / "run" / "last.safetensors").head.fitted


def test_a_softmax_head_asks_for_nothing(tmp_path: Path) -> None:
    train(detector(classifier="softmax"), images(tmp_path), None, OPTIONS, run=tmp_path / "run")
    assert cache_size()[0] == 0
