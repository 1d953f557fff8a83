"""One way from a source that needs pixels to the head: in training, evaluation and prediction the same boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit import interfaces
from detkit.config.build import build_detector
from detkit.config.experiment import read_config
from detkit.data.augment import Augment
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader
from detkit.data.resize import Resize
from detkit.data.toy import write_toy_data
from detkit.detector import Detector
from detkit.engine.evaluator import detect_dataset
from detkit.engine.options import TrainOptions
from detkit.engine.trainer import Trainer
from detkit.errors import DetkitError
from detkit.proposals.search import SelectiveSearch
from detkit.proposals.windows import Windows
from detkit.structures import Detections, Limits, Loss, Sample

CONFIG = """
data: {train: toy}
model:
  size: 64
  backbone: {name: resnet18, weights: none, taps: [2, 3]}
  proposals: {name: selective_search, plan: fast, max: 50}
  head: {name: yolo, anchors: [[8, 8], [16, 16], [32, 32], [40, 40], [48, 48], [60, 60]]}
augment:
  mosaic: 0
"""


class Pixels(interfaces.Backbone, nn.Module):
    """A backbone whose features are the pixels."""

    mean, std, channels, strides = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), [3], [32]
    stages = ()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Echo(interfaces.Head, nn.Module):
    """A head that answers with the proposals themselves, and remembers those that it was trained on."""

    takes_proposals = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.trained: list[Tensor] = []

    def sample(self, proposals: list[Tensor], targets: Any) -> list[Tensor]:
        self.trained += proposals
        return proposals

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> dict[str, Any]:
        return {"rois": proposals}

    def loss(self, raw: dict[str, Any], targets: Any, sizes: Tensor) -> dict[str, Loss]:
        return {"nothing": Loss(self.weight.square().sum(), torch.tensor(1.0))}

    def predict(self, raw: dict[str, Any], sizes: Tensor, limits: Limits) -> list[Detections]:
        return [Detections(b, torch.ones(len(b)), torch.zeros(len(b), dtype=torch.long)) for b in raw["rois"]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(read(write_toy_data(tmp_path / "toy", train=4, val=1), split="train"))


def detector(source: Any, dataset: Dataset) -> Detector:
    return Detector(Pixels(), nn.Identity(), Echo(), source, classes=dataset.classes, resize=Resize(96), config={})


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_and_prediction_see_the_boxes_of_the_original_image(data: Dataset, workers: int) -> None:
    source = SelectiveSearch(max=30)
    model = detector(source, data)
    _, results, _ = detect_dataset(model, data, workers=workers, batch=2)
    for i in range(len(data)):
        image = data.load(i).image
        expected = source.proposals_for_image(image)
        found = model.predict_samples([Sample(image)], Limits.evaluation())[0]
        np.testing.assert_allclose(found.boxes, expected, atol=1e-3)
        xywh = results.xywh[results.image == i]
        np.testing.assert_allclose(xywh[:, :2] + xywh[:, 2:], expected[:, 2:], atol=1e-3)


def test_proposals_that_a_sample_brings_are_kept(data: Dataset) -> None:
    model = detector(SelectiveSearch(), data)
    own = np.array([[3, 4, 50, 60]], np.float32)
    found = model.predict_samples([Sample(data.load(0).image, proposals=own)], Limits.evaluation())[0]
    np.testing.assert_allclose(found.boxes, own, atol=1e-3)


def test_training_sees_them_moved_with_the_image(data: Dataset, tmp_path: Path) -> None:
    source = SelectiveSearch(max=25)
    model = detector(source, data)
    options = TrainOptions(epochs=1, batch=2, workers=1, precision="fp32", device="cpu", ema=0)
    mirrored = Augment.off(mirror=1)
    Trainer(model, data, None, options, run=tmp_path / "run", augment=mirrored).train()
    expected = [source.proposals_for_image(data.load(i).image) for i in range(len(data))]
    assert len(model.head.trained) == 4
    scale = 96 / data.load(0).image.shape[0]
    for boxes in model.head.trained:
        moved = [b[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) * scale + (96, 0, 96, 0) for b in expected]
        assert any(len(m) == len(boxes) and np.allclose(m, boxes, atol=1e-2) for m in moved)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4


@pytest.mark.parametrize("strengths", [{"crop": 1.0}, {"scale": (0.5, 1.5), "rotate": 20}, {"flip": 1.0, "warp": 0.1}])
def test_augmented_proposals_stay_on_the_objects(data: Dataset, strengths: dict[str, Any]) -> None:
    """The objects' own boxes as proposals: wherever an object goes, its proposal goes."""
    boxes = {data.annotations.files[i]: data.load(i).target.boxes for i in range(len(data))}
    moved = replace(data, proposals=lambda image, path: boxes[path])
    loader = Loader(moved, resize=Resize(96), augment=Augment.off(min_visible=0, **strengths), batch=2, shuffle=True)
    for batch, targets in loader.epoch(0):
        assert batch.proposals is not None
        for proposals, target in zip(batch.proposals, targets, strict=True):
            for box in target.boxes:
                assert (proposals - box).abs().amax(1).min() < 0.01


def test_windows_need_no_pixels(data: Dataset) -> None:
    source = Windows(windows=(32,), aspects=(1,), stride=1)
    model = detector(source, data)
    assert model.proposals_for_image is None
    found = model.predict_samples([Sample(data.load(0).image)], Limits.evaluation())[0]
    assert len(found) == 9


def read_text(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return read_config(path, train_schema=TrainOptions)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mosaic: 0", "mosaic: 0.5", ("mosaic joins images", "line 9, augment.mosaic", "mosaic: 0")),
        ("  mosaic: 0", "  scale: null", ("mosaic", "augment")),  # its default is on
        ("mosaic: 0", "{mosaic: 0, mixup: 0.2}", ("mixup joins", "line 8, augment.mixup", "mixup: 0")),
        ("plan: fast", "plan: best", ("model.proposals.plan", "line 6", "fast, quality")),
        ("plan: fast", "paln: fast", ("paln", "line 6", "plan")),
        ("selective_search", "selective-search", ("no proposals", "line 6", "selective_search")),
        ("{name: selective_search, plan: fast, max: 50}", "{plan: fast}", ("needs a name", "line 6")),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    text = CONFIG.replace("augment:\n  mosaic: 0", "augment: " + new) if new.startswith("{mosaic") else CONFIG
    with pytest.raises(DetkitError) as caught:
        read_text(tmp_path, text.replace(old, new) if text is CONFIG else text)
    assert all(word in str(caught.value) for word in words), caught.value


def test_windows_go_with_mosaic(tmp_path: Path) -> None:
    text = CONFIG.replace("selective_search, plan: fast", "windows").replace("mosaic: 0", "mosaic: 0.5")
    assert read_text(tmp_path, text).model["proposals"]["stride"] == 0.25


def test_a_dense_head_takes_no_proposals(tmp_path: Path) -> None:
    config = read_text(tmp_path, CONFIG)
    with pytest.raises(DetkitError, match=r"takes no proposals\n.*line 6, model.proposals"):
        build_detector(config, ["a"])


def test_a_head_of_regions_needs_proposals(tmp_path: Path) -> None:
    text = CONFIG.replace("  proposals: {name: selective_search, plan: fast, max: 50}\n", "")
    text = text.replace(CONFIG[CONFIG.index("{name: yolo") : CONFIG.index("augment:")], "{name: roi, layers: mlp}\n")
    text = text.replace("taps: [2, 3]", "taps: [3]")
    with pytest.raises(DetkitError, match="needs proposals"):
        build_detector(read_text(tmp_path, text), ["a"])
