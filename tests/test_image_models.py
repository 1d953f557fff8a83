"""Models that answer once for an image, from data to detections: classifiers, localizers, landmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.cli import main
from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model, read_config
from detkit.config.schema import Place
from detkit.data.crops import write_crops
from detkit.data.dataset import read
from detkit.data.loader import collate
from detkit.data.toy import CLASSES, toy_sample, write_toy_data
from detkit.detector import Detector
from detkit.engine.events import EpochDone, Event, Notice
from detkit.engine.optim import parameter_groups
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.prediction.ensemble import Ensemble
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample, Target

LENET = {"name": "lenet_textbook", "taps": [2]}


def model(classes: tuple[str, ...], **parts: Any) -> Detector:
    values = {"size": 64, "resize": "stretch", "backbone": LENET, **parts}
    torch.manual_seed(0)
    config = Config({}, check_model(values, Place("test.yaml")), {}, TrainOptions(), EvaluateOptions())
    return build_detector(config, classes)


def corners(sample: Sample) -> Sample:
    """With four points an object: upper left, upper right, lower left, lower right."""
    x1, y1, x2, y2 = sample.target.boxes.T
    points = np.stack([np.stack(p, axis=1) for p in ((x1, y1), (x2, y1), (x1, y2), (x2, y2))], axis=1)
    points = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2).astype(np.float32)
    return sample.replace(target=Target(sample.target.boxes, sample.target.labels, points=points))


@pytest.mark.parametrize("points", [0, 4])
def test_one_object_a_image_can_be_learned_by_heart(points: int) -> None:
    samples = [toy_sample(seed, 64, most=1) for seed in range(3)]
    samples = [corners(s) if points else s for s in samples]
    samples.append(Sample(toy_sample(9, 64, most=1).image[:20, :20].repeat(3, 0).repeat(3, 1)))
    head = {"name": "localize", "cells": 3, "hidden": [64], "points": points}
    detector = model(CLASSES, head=head).train()
    batch, targets = collate(samples, detector.resize)
    optimizer = torch.optim.Adam(detector.parameters(), lr=2e-3)
    for _ in range(150):
        losses = detector(batch, targets)
        total = sum(term.sum / term.count.clamp(min=1) for term in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for sample, found in zip(samples, detector.predict_samples(samples, Limits(conf=0.5)), strict=True):
        assert found.labels.tolist() == sample.target.labels.tolist()
        if len(found):
            assert np.abs(found.boxes - sample.target.boxes).max() < 6
        if len(found) and points:
            assert np.abs(found.extra["points"] - sample.target.points[..., :2]).max() < 6
            assert len(found.to_records()[0]["points"]) == 4
            assert (found.draw(sample.image) != sample.image).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained for a moment on objects cut out of toy images; its data lies beside it."""
    folder = tmp_path_factory.mktemp("classifier")
    toys = write_toy_data(folder / "toys", train=24, val=8, size=96)
    parts = {name: read(toys, split=name) for name in ("train", "val")}
    write_crops(parts, folder / "crops", min_size=16, background=4)
    overrides = [
        *(f"data.{part}={json.dumps({'path': str(folder / 'crops'), 'split': part})}" for part in ("train", "val")),
        f"model.backbone={json.dumps(LENET)}",
        "model.size=32",
        "model.head={name: classify, hidden: [32]}",
        "augment={mosaic: 0, brightness: 0, contrast: 0, saturation: 0, hue: 0}",
        "train.epochs=8",
        "train.batch=8",
        "train.lr=3e-3",
        "train.backbone_lr=null",
        "train.ema=0.9",
        "train.workers=0",
        "train.device=cpu",
    ]
    detkit.train("classify", overrides=overrides, out=folder / "run")
    return folder


def test_a_classifier_from_crops_to_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = (run / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"top1", "top5", "val_loss_classes"} <= set(header)
    detector = load_detector(run / "run")
    assert detector.classes == ("background", *sorted(CLASSES))
    assert detector.scores["top1"] >= 0.4  # by chance it would be a quarter
    data = str(run / "crops")
    assert main(["evaluate", str(run / "run"), data, "--split", "val", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"] == "classify"
    assert report["metrics"]["top1"] == pytest.approx(detector.scores["top1"])
    assert report["metrics"]["top5"] == 1.0  # of four classes
    assert main(["evaluate", str(run / "run"), data, "--split", "val", "--bootstrap", "20", "--device", "cpu"]) == 0
    assert "top1" in capsys.readouterr().out
    assert main(["evaluate", str(run / "run"), data, "--split", "val", "--match-iou", "0.6"]) == 2
    assert main(["evaluate", str(run / "run"), str(run / "toys"), "--split", "val", "--device", "cpu"]) == 2
    assert "do not have exactly one label" in capsys.readouterr().err


SIDES = {"name": "googlenet", "side_branches": True, "taps": [4]}


@pytest.mark.parametrize("head", [{"layers": "pool"}, {"layers": "backbone", "smoothing": 0.1}])
def test_googlenets_side_branches_teach_its_middle_and_change_no_answer(head: dict[str, Any], tmp_path: Path) -> None:
    detector = model(("a", "b"), backbone=SIDES, head={"name": "classify", **head}).train()
    samples = [toy_sample(seed, 48, most=1) for seed in range(2)]
    targets = [Target(s.target.boxes, s.target.labels, image_label=k) for k, s in enumerate(samples)]
    samples = [s.replace(target=t) for s, t in zip(samples, targets, strict=True)]
    batch, targets = collate(samples, detector.resize)
    losses = detector(batch, targets)
    assert list(losses) == ["classes", "side1", "side2"]
    blocks = detector.backbone.stages[3]
    for name, reached in (("side1", [True, False, False]), ("side2", [True, True, False])):
        detector.zero_grad()
        losses[name].sum.backward(retain_graph=True)
        side = detector.head.sides[int(name[-1]) - 1]
        assert all(p.grad is not None and p.grad.any() for p in side[-1].parameters())
        got = [any(p.grad is not None and bool(p.grad.any()) for p in blocks[k].parameters()) for k in (1, 4, 5)]
        assert got == reached
    detector.save(tmp_path / "sides.safetensors")
    again = load_detector(tmp_path / "sides.safetensors")
    assert torch.equal(again.head.sides[1][-1].weight, detector.head.sides[1][-1].weight)
    plain = model(("a", "b"), backbone={**SIDES, "side_branches": False}, head={"name": "classify", **head})
    assert not any("sides" in name for name in plain.state_dict())
    plain.load_state_dict({k: v for k, v in again.state_dict().items() if "sides" not in k})
    answers = [m.eval().predict_samples(samples, Limits(conf=0.0)) for m in (detector, again, plain)]
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(one.scores, two.scores)
    with torch.no_grad():
        losses, found = again(batch, targets, detections=True)
    assert list(losses) == ["classes"]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("parts", "words", "where"),
    [
        ({"head": {"name": "localize"}}, "head.name classify alone, not with localize", "side_branches"),
        ({"head": {"name": "yolo", "anchors": [[9, 9]]}}, "not with yolo", "side_branches"),
        ({"neck": "fpn"}, "neck.name identity", "side_branches"),
        ({"backbone": {**SIDES, "scales": [1.0, 0.5]}}, "scales", "side_branches"),
        ({"backbone": {**SIDES, "frozen": 4}}, "frozen must be at most 3, got 4", "frozen"),
        ({"backbone": {**SIDES, "frozen": "all"}}, "frozen must be at most 3", "frozen"),
        ({"backbone": {**SIDES, "taps": [2]}}, "taps must reach it", "taps"),
    ],
)
def test_side_branches_that_nothing_would_learn_from_are_refused(parts: dict[str, Any], words: str, where: str) -> None:
    with torch.device("meta"), pytest.raises(DetkitError, match=words) as caught:
        model(("a", "b"), **{"backbone": SIDES, "head": {"name": "classify"}, **parts})
    assert caught.value.where.endswith(f"model.backbone.{where}")


def test_a_run_with_side_branches_stops_and_goes_on(run: Path, tmp_path: Path) -> None:
    overrides = [
        *(f"data.{part}={json.dumps({'path': str(run / 'crops'), 'split': part})}" for part in ("train", "val")),
        f"model.backbone={json.dumps({**SIDES, 'frozen': 3})}",
        "model.size=32",
        "model.head={name: classify}",
        "augment={mosaic: 0}",
        "train.batch=16",
        "train.epochs=2",
        "train.cache_features=true",
        "train.cache_views=1",
        "train.workers=0",
        "train.device=cpu",
    ]

    def stop(event: Event) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detkit.train("classify", overrides=overrides, out=tmp_path / "run", on_event=stop)
    detkit.train(resume=tmp_path / "run")
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines())
    assert len(rows) == 2
    assert {"loss_side1", "loss_side2", "val_loss_classes"} <= set(header)
    assert "val_loss_side1" not in header
    assert all(float(row[header.index(f"loss_side{k}")]) > 0 for row in rows for k in (1, 2))


@pytest.mark.parametrize("taps", [[0], [1], [2]])
@pytest.mark.parametrize("head", ["classify", "localize"])
def test_the_rest_of_lenet_from_any_stage(taps: list[int], head: str) -> None:
    backbone = {"name": "lenet5", "taps": taps}
    detector = model(("a", "b"), size=32, backbone=backbone, head={"name": head, "layers": "backbone", "hidden": []})
    assert detector.head.last.in_features == 84
    assert detector.raw(torch.rand(2, 3, 32, 32))["classes"].shape == (2, 2)


def test_views_of_a_classifier_are_averaged(run: Path) -> None:
    detector = load_detector(run / "run")
    sample = toy_sample(5, 48, most=1)
    both = Ensemble([detector], ["flip"]).predict_samples([sample], Limits(conf=0.0))[0]
    turned = sample.replace(image=np.ascontiguousarray(sample.image[:, ::-1]))
    looks = detector.predict_samples([sample, turned], Limits(conf=0.0))
    mean = {k: np.mean([look.scores[look.labels == k][0] for look in looks]) for k in range(4)}
    assert both.scores.tolist() == pytest.approx([mean[int(k)] for k in both.labels], abs=1e-6)


def test_a_classifier_says_what_it_sees(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next((run / "crops" / "val" / "circle").iterdir())
    assert main(["detect", str(picture), "-m", str(run / "run"), "--json", "--conf", "0", "--device", "cpu"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert len(line["detections"]) == 4
    assert {tuple(d["box"]) for d in line["detections"]} == {(0, 0, line["width"], line["height"])}
    assert sum(d["score"] for d in line["detections"]) == pytest.approx(1, abs=1e-4)


def test_a_detector_starts_from_a_classifier_and_says_so(run: Path, tmp_path: Path) -> None:
    said: list[Event] = []
    weights, toys = json.dumps(str(run / "run" / "best.safetensors")), json.dumps(str(run / "toys"))
    overrides = [
        f"data.train={{path: {toys}, split: train}}",
        f"data.val={{path: {toys}, split: val}}",
        f"model.weights={weights}",
        f"model.backbone={json.dumps(LENET)}",
        "model.neck=identity",
        "model.size=32",
        "model.head.anchors=[[8, 8], [16, 16]]",
        "train.workers=0",
        "train.device=cpu",
    ]
    detkit.train("toy", overrides=overrides, out=tmp_path / "run", dry_run=True, on_event=said.append)
    notes = [str(event) for event in said if isinstance(event, Notice)]
    assert any(note.startswith("weights from best.safetensors: ") and "start anew" in note for note in notes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["augment.mosaic=0.5"], "mosaic joins images"),
        (["augment.mixup=0.5"], "mixup joins images"),
        (["train.best_by=AP"], "not measured by AP"),
        (["data.train={path: TOYS, split: train}", "data.val={path: TOYS, split: val}"], "detkit data crops"),
        (["train.stage_lr=[0.1, 0.2, 0.3, 1]"], "the backbone has 3 name 3 at most"),
        (["model.head={name: localize, points: 2}", "train.best_by=null"], "no points to learn"),
        (["train.unfreeze=[1]"], "the backbone has 0 frozen"),
        (["train.unfreeze=[3, 2]"], "unfreeze must be"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    run: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    changed = [f"train.workers={0}", *(o.replace("TOYS", str(run / "toys")) for o in overrides)]
    with pytest.raises(DetkitError) as error:
        detkit.train(run / "run" / "config.yaml", overrides=changed, out=tmp_path / "new")
    assert words in f"{error.value.what} {error.value.do}"


def test_one_that_looks_for_boxes_in_class_folders_is_told(run: Path, tmp_path: Path) -> None:
    said: list[Event] = []
    overrides = ["model.head={name: localize, cells: 1}", "train.best_by=null", "train.workers=0"]
    config = run / "run" / "config.yaml"
    detkit.train(config, overrides=overrides, out=tmp_path / "new", dry_run=True, on_event=said.append)
    assert any("to name images, train classify" in str(event) for event in said)


@pytest.mark.parametrize("name", ["classify", "localize"])
def test_the_shipped_configs_are_complete(name: str) -> None:
    assert read_config(name, train_schema=TrainOptions).model["head"]["name"] == name


# ---------------------------------------------------------------- thawing and rates


def test_stages_thaw_in_their_epochs_and_learn_at_their_rates() -> None:
    backbone: dict[str, Any] = {**LENET, "frozen": 2}
    detector: Detector = model(CLASSES, backbone=backbone, head={"name": "classify"})
    options = TrainOptions(lr=1e-2, backbone_lr=1e-3, stage_lr=(0.1, 0.5), unfreeze=(2, 4))
    rates = {id(p): g["base_lr"] for g in parameter_groups(detector, options) for p in g["params"]}
    stages = detector.backbone.stages
    found = [{round(rates[id(p)], 9) for p in stage.parameters()} for stage in stages]
    assert found == [{1e-4}, {5e-4}, {5e-4}]
    assert {rates[id(p)] for p in detector.head.parameters()} == {1e-2}

    def trained() -> list[bool]:
        return [all(p.requires_grad for p in stage.parameters()) for stage in stages]

    assert trained() == [False, False, True]
    detector.backbone.freeze(1)
    assert trained() == [False, True, True]
    assert [stage.training for stage in detector.backbone.train().stages] == [False, True, True]
    detector.backbone.freeze(2)
    assert trained() == [False, False, True]


def test_a_stage_moves_from_its_epoch_on(run: Path, tmp_path: Path) -> None:
    changes = ["model.backbone.frozen=3", "train.unfreeze=[2]", "train.epochs=1", "train.ema=0", "train.warmup_steps=0"]
    moved = []
    for epochs in (1, 2):
        overrides = [*changes, f"train.epochs={epochs}"]
        said: list[Event] = []
        detkit.train(run / "run" / "config.yaml", overrides=overrides, out=tmp_path / str(epochs), on_event=said.append)
        assert any("the run ends before epoch 2" in str(event) for event in said) == (epochs == 1)
        after = load_detector(tmp_path / str(epochs) / "last.safetensors").backbone.stages
        checked = read_config(run / "run" / "config.yaml", overrides, train_schema=TrainOptions)
        torch.manual_seed(checked.train.seed)
        before = build_detector(checked, read_dataset(run).classes).backbone.stages
        moved.append(
            [any(not torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
             for x, y in zip(before, after, strict=True)]
        )  # fmt: skip
    assert moved == [[False, False, False], [False, False, True]]


def read_dataset(run: Path) -> Any:
    from detkit.data.dataset import Dataset

    return Dataset(read(run / "crops", split="train"))


# ---------------------------------------------------------------- points and mirrors


class Pointer(Predictor):
    """Points at the bright box's left and right edge, a pixel too far to the right."""

    classes, class_ids, threshold, flip_pairs, protocol = ("box",), (0,), 0.5, ((0, 1),), "points"

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        found = []
        for sample in samples:
            y, x = np.nonzero(sample.image[..., 0])
            box = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float32)
            points = np.array([[[x.min() + 1, y.min()], [x.max() + 2, y.max() + 1]]], np.float32)
            found.append(Detections(box, np.array([0.8]), np.array([0]), self.classes, {"points": points}))
        return found


def test_mirrored_views_put_points_back_and_swap_the_pairs() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[10:40, 20:50] = 255
    (found,) = Ensemble([Pointer()], ["flip"]).predict_samples([Sample(image)], Limits())
    # In the mirrored view the errors point the other way, and left is right again.
    np.testing.assert_allclose(found.extra["points"][0, :, 0], [20, 50])
    np.testing.assert_allclose(found.boxes, [[20, 10, 50, 40]])
    assert found.scores.tolist() == pytest.approx([0.8])
