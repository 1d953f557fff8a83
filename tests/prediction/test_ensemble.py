"""Several views and several models fused: views come back to their place, scores stay comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detkit
from detkit import api
from detkit.cli import main
from detkit.config.build import build_detector
from detkit.config.experiment import read_config
from detkit.data.toy import toy_sample
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.prediction.ensemble import SCALES, Ensemble
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

BRIGHT = np.array([[20, 10, 50, 40]], np.float32)


def bright_box() -> Sample:
    """60 x 100 pixels with a bright box left of the middle; proposals are that box."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[10:40, 20:50] = 255
    return Sample(image, proposals=BRIGHT)


class Sees(Predictor):
    """Finds the bright box with a score of its own, and notes what it was asked."""

    def __init__(self, score: float = 0.8, classes: tuple[str, ...] = ("cat", "dog"), label: int = 0, **extra: Any):
        self.score, self.classes, self.class_ids, self.label = score, classes, tuple(range(len(classes))), label
        self.threshold, self.extra, self.asked = score / 2, extra, list[tuple[Sample, Limits]]()

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.asked += [(sample, limits) for sample in samples]
        found = []
        for sample in samples:
            y, x = np.nonzero(sample.image[..., 0])
            box = [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
            one = Detections(np.array(box), np.array([self.score]), np.array([self.label]), self.classes, self.extra)
            found.append(one.filter(limits.conf, limits.classes))
        return found


class Resizable(Sees):
    """The same at any size, less sure the smaller it is."""

    def rescaled(self, factor: float) -> Predictor:
        return Sees(self.score * min(factor, 1), self.classes, self.label)


def test_a_mirrored_view_is_put_back() -> None:
    model = Sees()
    both = Ensemble([model], ["flip"])
    (found,) = both.predict_samples([bright_box()], Limits())
    np.testing.assert_allclose(found.boxes, BRIGHT, atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-6)
    assert len(both) == 2
    mirrored = model.asked[1][0]
    np.testing.assert_array_equal(mirrored.image[:, ::-1], bright_box().image)
    assert mirrored.proposals is not None
    np.testing.assert_array_equal(mirrored.proposals, [[50, 10, 80, 40]])


def test_scores_are_means_over_all_views_and_conf_is_asked_of_the_mean() -> None:
    strong, weak = Sees(0.9), Sees(0.1)
    both = Ensemble([strong, weak])
    (found,) = both.predict_samples([bright_box()], Limits(conf=0.4))
    np.testing.assert_allclose(found.scores, [0.5], rtol=1e-6)
    assert {limits.conf for _, limits in weak.asked} == {0.001}
    (found,) = both.predict_samples([bright_box()], Limits(conf=0.6))
    assert len(found) == 0
    # Two models that do not agree on the class halve both.
    (found,) = Ensemble([strong, Sees(0.7, label=1)]).predict_samples([bright_box()], Limits())
    assert found.names == ["cat", "dog"]
    np.testing.assert_allclose(found.scores, [0.45, 0.35], rtol=1e-6)
    assert both.threshold == pytest.approx((0.45 + 0.05) / 2)


def test_views_are_every_pair_of_size_and_side() -> None:
    views = Ensemble([Resizable(0.9)], ["scales", "flip"])
    assert len(views) == 2 * (1 + len(SCALES))
    (found,) = views.predict_samples([bright_box()], Limits())
    expected = np.mean([0.9, *(0.9 * min(scale, 1) for scale in SCALES)])
    np.testing.assert_allclose(found.scores, [expected], rtol=1e-6)


def test_models_are_matched_by_class_name() -> None:
    """In another order, and by another spelling."""
    first, other = Sees(classes=("cat", "sofa"), label=1), Sees(classes=("couch", "cat"), label=0)
    both = Ensemble([first, other])
    (found,) = both.predict_samples([bright_box()], both.limits(classes=["sofa"]))
    assert found.names == ["sofa"]
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-6)
    assert other.asked[0][1].classes == (0,)
    assert both.predict(bright_box().image, classes=["cat"]).names == []


def test_models_of_other_classes_are_refused() -> None:
    with pytest.raises(DetkitError, match="does not know dog and also knows cow"):
        Ensemble([Sees(), Sees(classes=("cat", "cow"))])


def test_models_that_answer_otherwise_are_refused() -> None:
    """A classifier's box is the whole image: with a detector's it would come to nonsense, quietly."""
    with pytest.raises(DetkitError, match="must answer alike") as told:
        Ensemble([Sees(classes=Names.classes), Names()])
    assert told.value.where == "they give, in this order: boxes, classes of whole images"


def test_masks_are_refused() -> None:
    with pytest.raises(DetkitError, match="masks of several views cannot be fused"):
        Ensemble([Sees(masks=np.zeros((1, 3, 3)))], ["flip"]).predict_samples([bright_box()], Limits())


class Names(Predictor):
    """A classifier that calls an image bright by the mean of its pixels."""

    classes, class_ids, threshold, protocol = ("bright", "dark"), (0, 1), 0.5, "classify"

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        found = []
        for sample in samples:
            height, width = sample.image.shape[:2]
            mean = sample.image.mean() / 255
            whole = np.array([[0, 0, width, height]] * 2, np.float32)
            found.append(Detections(whole, np.array([mean, 1 - mean]), np.arange(2), self.classes))
        return found


def test_a_classifier_is_shown_corners_and_centre() -> None:
    image = np.zeros((64, 80, 3), np.uint8)
    image[:8, :10] = 255  # the upper left crop has all of it, the centre a quarter
    views = Ensemble([Names()], ["crops", "flip"])
    assert len(views) == 12
    (found,) = views.predict_samples([Sample(image)], Limits(conf=0))
    assert found.names == ["dark", "bright"]
    np.testing.assert_array_equal(found.boxes, [[0, 0, 80, 64]] * 2)
    assert found.scores[1] == pytest.approx((80 / (64 * 80) + (80 + 4 * 5) / (56 * 70)) / 6)


def test_wrong_views() -> None:
    with pytest.raises(DetkitError, match="no test-time augmentation 'flipp'"):
        Ensemble([Sees()], ["flipp"])
    with pytest.raises(DetkitError, match="input size is fixed"):
        Ensemble([Sees()], ["scales"])
    with pytest.raises(DetkitError, match="crops are for classifiers"):
        Ensemble([Sees()], ["crops"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector's file."""
    overrides = ["model.size=[64,96]", "model.head.anchors=[[16,16],[32,32]]"]
    config = read_config("toy", overrides, train_schema=TrainOptions)
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    build_detector(config, ("circle", "square", "triangle")).save(path)
    return path


def test_a_detectors_views_share_its_weights(weights: Path) -> None:
    detector = api.load(weights, device="cpu")
    assert isinstance(detector, Detector)
    view = detector.rescaled(1.5)
    assert (view.resize.size, detector.resize.size) == ((96, 144), (64, 96))
    assert view.resize.mode == detector.resize.mode
    assert next(view.parameters()) is next(detector.parameters())


def test_fused_equals_by_hand(weights: Path) -> None:
    """The mirrored view of a real detector, put back by hand, goes into the fusion."""
    sample = Sample(toy_sample(7, 96).image)
    mirrored = Sample(np.ascontiguousarray(sample.image[:, ::-1]))
    both = api.load(weights, device="cpu", tta=["flip"])
    detector = api.load(weights, device="cpu")
    plain, other = (detector.predict_samples([s], Limits.evaluation())[0] for s in (sample, mirrored))
    back = other.boxes.copy()
    back[:, [0, 2]] = 96 - back[:, [2, 0]]
    boxes, scores, _ = detkit.weighted_boxes_fusion(
        [plain.boxes, back], [plain.scores, other.scores], [plain.labels, other.labels], threshold=0.6
    )
    (found,) = both.predict_samples([sample], Limits.evaluation())
    np.testing.assert_allclose(found.boxes, boxes[:100], atol=1e-4)
    np.testing.assert_allclose(found.scores, scores[:100], rtol=1e-6)


def test_command_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detkit.io.images import write_image

    write_image(tmp_path / "a.png", toy_sample(3, 96).image)
    one = ["detect", str(tmp_path / "a.png"), "-m", str(weights), "--conf", "0.001", "--json", "--device", "cpu"]
    said = []
    for more in ([], ["--tta", "flip,scales"], ["-m", str(weights), "--ensemble"]):
        assert main([*one, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]
    for more, needle in (
        (["-m", str(weights)], "without --ensemble"),
        (["--ensemble"], "two or more models"),
        (["--tta", "flip,up"], "'up'"),
        (["--tta", ""], "--tta"),
    ):
        assert main([*one, *more]) == 2
        assert needle in capsys.readouterr().err
