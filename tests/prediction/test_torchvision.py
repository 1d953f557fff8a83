"""torchvision's detectors behind detkit's interface; torchvision's server is never asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model_builder, get_model_weights, list_models

import detkit
from detkit import zoo
from detkit.cli import main
from detkit.data.toy import toy_sample, write_toy_data
from detkit.errors import DetkitError
from detkit.io.images import write_image
from detkit.prediction.torchvision import TorchvisionDetector
from detkit.structures import Limits, Sample

NAME = "torchvision/ssdlite320_mobilenet_v3_large"
WEIGHTS: Any = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT
LOW = Limits(conf=0.001, iou=0.55, max_detections=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Torch hub's folder with an untrained ssdlite under the name of torchvision's own file."""
    home = tmp_path_factory.mktemp("torch")
    file = home / "hub" / "checkpoints" / WEIGHTS.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.manual_seed(3)
    torch.save(get_model_builder(NAME.split("/")[1])(weights=None, weights_backbone=None).state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield file


@pytest.fixture(scope="module")
def detector(cache: Path) -> Any:
    """With few candidates a class, for speed."""
    detector: Any = detkit.load(NAME, device="cpu")
    detector.model.topk_candidates = 30
    return detector


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""

    def offline(url: str, timeout: float) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    return tmp_path


def samples() -> list[Sample]:
    return [Sample(toy_sample(seed, size).image[:, :90]) for seed, size in ((1, 96), (2, 128))]


def test_every_name_of_torchvision_is_known() -> None:
    import torchvision

    assert {f"torchvision/{name}" for name in list_models(module=torchvision.models.detection)} == set(zoo.TORCHVISION)


def test_classes_are_cocos(detector: TorchvisionDetector) -> None:
    from detkit.data.names import COCO_CLASSES, COCO_IDS

    assert detector.classes == COCO_CLASSES
    assert detector.class_ids == tuple(COCO_IDS.values())


def test_boxes_are_torchvisions(detector: TorchvisionDetector) -> None:
    """As torchvision itself builds and runs the model from the same file, less what has no name."""
    model = get_model_builder(NAME.split("/")[1])(weights=WEIGHTS).eval()
    images = [torch.from_numpy(sample.image.copy()).permute(2, 0, 1) / 255 for sample in samples()]
    model.detections_per_img, model.topk_candidates = 100_000, 30
    with torch.inference_mode():
        wanted = model(images)
    names = WEIGHTS.meta["categories"]
    for found, want in zip(detector.predict_samples(samples(), LOW), wanted, strict=True):
        named = [i for i, label in enumerate(want["labels"]) if names[label] != "N/A"][:300]
        assert len(named) == 300
        assert found.names == [names[label] for label in want["labels"][named]]
        np.testing.assert_allclose(found.boxes, want["boxes"][named], atol=1e-3)
        np.testing.assert_allclose(found.scores, want["scores"][named], atol=1e-6)
        assert found.boxes.max() <= 128


def test_limits(detector: TorchvisionDetector) -> None:
    (free,) = detector.predict_samples(samples()[:1], LOW)
    chosen = int(free.labels[-1])
    (one,) = detector.predict_samples(samples()[:1], Limits(conf=0.001, iou=0.55, max_detections=3, classes=(chosen,)))
    assert set(one.labels.tolist()) == {chosen}
    assert len(one) <= 3
    middle = float(free.scores[100])
    (cut,) = detector.predict_samples(samples()[:1], Limits(conf=middle, iou=0.55, max_detections=300))
    assert cut.scores.min() == np.float32(middle)
    assert detector.predict_samples([], LOW) == []


def test_another_size_shares_the_weights(detector: TorchvisionDetector) -> None:
    larger = detector.rescaled(1.25)
    assert (larger.size, detector.size) == (400, 320)
    assert larger.model is detector.model
    first, other, again = (d.predict_samples(samples(), LOW)[0].boxes for d in (detector, larger, detector))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(DetkitError, match="fixed"):
        TorchvisionDetector("torchvision/ssd300_vgg16", detector.model, WEIGHTS.meta["categories"]).rescaled(2)


def test_key_points_come_out_and_a_line_of_pixels_is_nothing() -> None:
    builder = get_model_builder("keypointrcnn_resnet50_fpn")
    model = builder(weights=None, weights_backbone=None, min_size=64, max_size=96, rpn_post_nms_top_n_test=8)
    persons = TorchvisionDetector("torchvision/keypointrcnn_resnet50_fpn", model, ["no person", "person"])
    line = Sample(np.zeros((1, 500, 3), np.uint8))
    found, none = persons.predict_samples([samples()[0], line], Limits(conf=0.0, max_detections=5))
    assert (persons.classes, persons.class_ids) == (("person",), (1,))
    assert found.extra["points"].shape == (len(found), 17, 3)
    assert len(none) == 0


def test_command_line(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a.png", samples()[0].image)
    words = ["detect", str(tmp_path / "a.png"), "-m", NAME, "--conf", "0.011", "--device", "cpu", "--size", "160"]
    assert main([*words, "-o", str(tmp_path / "found.json")]) == 0
    assert main([*words, "--tta", "flip"]) == 0
    data = write_toy_data(tmp_path / "toy", train=1, val=1, size=64)
    capsys.readouterr()
    assert main(["evaluate", NAME, str(data), "--split", "val", "--device", "cpu"]) == 2
    assert "no class in common" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert NAME in capsys.readouterr().out


def test_offline_says_what_where_and_what_to_do(nowhere: Path) -> None:
    with pytest.raises(DetkitError) as caught:
        detkit.load(NAME)
    assert "Name or service not known" in caught.value.what
    assert WEIGHTS.url in caught.value.where
    assert str(nowhere / "hub" / "checkpoints") in caught.value.where
    assert "copy the file" in caught.value.do


@pytest.mark.parametrize(
    ("name", "near"),
    [("torchvision/ssdlite320", "ssdlite320_mobilenet_v3_large"), ("torchvision/zzz", "choose one of")],
)
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(DetkitError, match=near):
        detkit.load(name)


def test_the_prefix_is_reminded_of() -> None:
    with pytest.raises(DetkitError, match="did you mean torchvision/fcos_resnet50_fpn"):
        detkit.load("fcos_resnet50_fpn")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "needle"),
    [({"a": Evil()}, "not opened"), ({"a": torch.zeros(1)}, "not that of"), (b"half a file", "cannot be read")],
)
def test_bad_files(nowhere: Path, content: Any, needle: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = nowhere / "hub" / "checkpoints" / WEIGHTS.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(DetkitError, match=needle):
        detkit.load(NAME)
    assert "executed" not in capsys.readouterr().out
    assert "get_state_dict" not in vars(WEIGHTS)


def test_a_download_is_checked_and_kept(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.io.download._blocks", lambda url: iter([b"something else"]))
    with pytest.raises(DetkitError, match="SHA-256 differs"):
        detkit.load(NAME)
    assert not list(nowhere.rglob("*.pth"))
