"""R-CNN's later stages: the SVM's optimum, mining, labels, probabilities and ridge regression, on made features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from detkit.heads import rcnn_svm
from detkit.heads.rcnn_svm import Embedded, FittedStages, LaterStages, fit_stages
from detkit.heads.roi import RoIHead
from detkit.ops.coder import encode_deltas
from detkit.ops.svm_kernels import descend
from detkit.structures import Limits, Target

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def svm(x: np.ndarray, signs: np.ndarray, cost: float) -> tuple[np.ndarray, np.ndarray]:
    alpha, weight = np.zeros(len(x), np.float32), np.zeros(x.shape[1], np.float32)
    limits = np.full(len(x), cost, np.float32)
    descend(x.astype(np.float32), signs.astype(np.float32), limits, alpha, weight, 0, 1e-4, 10_000)
    return alpha, weight


def test_two_points_have_a_margin_of_one() -> None:
    alpha, weight = svm(np.array([[2.0], [-2.0]]), np.array([1, -1]), 10)
    assert weight == pytest.approx([0.5])
    assert alpha.sum() * 2 == pytest.approx(0.5)


@pytest.mark.parametrize("cost", [0.01, 1.0])
def test_the_duality_gap_is_closed(cost: float) -> None:
    """Primal and dual objective meet at the optimum only."""
    rng = np.random.default_rng(0)
    x, signs = rng.normal(size=(200, 6)), np.where(rng.random(200) < 0.3, 1, -1)
    x[signs > 0] += 0.7
    alpha, weight = svm(x, signs, cost)
    assert ((alpha >= 0) & (alpha <= cost * (1 + 1e-6))).all()
    assert weight == pytest.approx((alpha * signs) @ x, rel=1e-3, abs=1e-4)
    primal = weight @ weight / 2 + cost * np.maximum(0, 1 - signs * (x @ weight)).sum()
    dual = alpha.sum() - weight @ weight / 2
    assert primal == pytest.approx(dual, rel=1e-3)


OBJECTS = {0: (10.0, 10.0, 30.0, 30.0), 1: (40.0, 40.0, 60.0, 60.0)}


def image(seed: int, labels: tuple[int, ...] = (0, 1), background: int = 30, **kind: Any) -> Embedded:
    """Objects of the classes ``labels``, a near and a half overlapping region each, and background; the first
    features tell the class, the others are noise."""
    rng = np.random.default_rng(seed)
    boxes, shown = [OBJECTS[k] for k in labels], list(labels)
    for k in labels:
        x1, y1, x2, y2 = OBJECTS[k]
        boxes += [(x1 + 1, y1 - 1, x2 + 1, y2), (x1, y1, x2, y2 - 9)]
        shown += [k, k]
    corners = rng.uniform(65, 90, (background, 2))
    boxes += [(x, y, x + 8, y + 8) for x, y in corners]
    features = 0.1 * rng.normal(size=(len(boxes), 6))
    features[:, 5] = 1
    features[np.arange(len(shown)), shown] += 2
    target = Target(torch.tensor(boxes[: len(labels)]).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), **kind)
    return Embedded(features.astype(np.float16), torch.tensor(boxes), target)


def fit(data: list[Embedded], classes: int = 3, **changes: Any) -> FittedStages:
    options = LaterStages(classifier="svm", svm_cost=0.01, ridge=changes.get("ridge", 1.0))
    return fit_stages(data, classes, options, 0.5, WEIGHTS)


def probabilities(found: FittedStages, item: Embedded) -> np.ndarray:
    logits = item.features.astype(np.float32) @ found.svm.T + found.svm_bias
    return 1 / (1 + np.exp(-logits))


def test_classes_are_told_apart_and_margins_become_probabilities() -> None:
    found, item = fit([image(seed) for seed in range(8)]), image(99)
    p = probabilities(found, item)
    for label in (0, 1):
        shown = np.flatnonzero(item.features[:, label] > 1)
        others = np.setdiff1d(np.arange(len(p)), shown)
        assert p[shown, label].min() > 0.5 > p[others, label].max()
    assert p[:, 2].max() < 1e-6  # a class without objects
    assert found.rounds.tolist() == [1, 1, 0]
    assert found.regressed.tolist() == [True, True, False]


def test_probabilities_are_the_shares_of_regions_that_show_the_class() -> None:
    """Features that say nothing: every region's probability is the share of regions that overlap an object."""
    data = [image(seed, labels=(0,)) for seed in range(20)]
    data = [item._replace(features=np.ones_like(item.features)) for item in data]
    p = probabilities(fit(data, 1), data[0])[:, 0]
    assert p == pytest.approx(np.full(33, 3 / 33), abs=0.02)


def test_negatives_overlap_no_object_of_their_class_by_0_3(monkeypatch: pytest.MonkeyPatch) -> None:
    item, taken, train = image(0, labels=(0,)), set[int](), rcnn_svm._Fit.train
    item.boxes[3:5] = torch.tensor([[10.0, 10, 30, 18], [10, 10, 30, 15]])  # IoU 0.4 and 0.25

    def noted(self: Any, label: int, cost: float) -> None:
        taken.update(self.classes[label].negative[:, 1].tolist())
        train(self, label, cost)

    monkeypatch.setattr(rcnn_svm._Fit, "train", noted)
    fit([item], 1)
    assert taken == set(range(4, 33))


def test_negatives_are_mined_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [image(seed) for seed in range(12)]
    every = fit(data)
    monkeypatch.setattr(rcnn_svm, "RETRAIN", 60)
    mined = fit(data)
    assert mined.rounds[0] > 1
    for item in data:
        assert probabilities(mined, item) == pytest.approx(probabilities(every, item), abs=0.1)


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_what_is_aside_is_no_example(kind: str) -> None:
    aside = {kind: torch.tensor([True])}
    found = fit([image(seed, labels=(0,), **aside) for seed in range(4)], 1)
    assert found.rounds.tolist() == [0]
    assert not found.regressed.any()
    seen = [image(seed, labels=(0,)) for seed in range(8)]
    mixed = fit([*seen, *(image(seed, labels=(0,), **aside) for seed in range(8, 16))], 1)
    assert probabilities(mixed, seen[0])[0, 0] > 0.5  # those aside did not become negatives


def test_the_box_regression_is_ridge_regression() -> None:
    data = [image(seed, labels=(0,)) for seed in range(6)]
    near, deltas = [], []
    for item in data:
        near.append(item.features[:2].astype(np.float64))  # the object and the region of IoU 0.86
        deltas.append(encode_deltas(item.boxes[:1].expand(2, 4), item.boxes[:2], WEIGHTS).numpy())
    x, y = np.concatenate(near), np.concatenate(deltas)
    scale = rcnn_svm.NORM / np.mean([np.linalg.norm(i.features.astype(np.float32), axis=1).mean() for i in data])
    found = fit(data, 1, ridge=2.0)
    centred = (x - x.mean(0)) * scale
    wanted = np.linalg.solve(centred.T @ centred + 2 * np.eye(6), centred.T @ (y - y.mean(0))).T * scale
    assert found.boxes[0] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert found.boxes_bias[0] == pytest.approx(y.mean(0) - wanted @ x.mean(0), rel=1e-3, abs=1e-3)


def test_no_images_is_an_error_and_empty_ones_are_not() -> None:
    with pytest.raises(ValueError, match="images"):
        fit([])
    empty = Embedded(np.zeros((0, 6), np.float16), torch.zeros(0, 4), Target(torch.zeros(0, 4), torch.zeros(0).long()))
    assert fit([empty]).rounds.tolist() == [0, 0, 0]
    assert fit([empty, *(image(seed) for seed in range(3))]).rounds.tolist() == [1, 1, 0]


def test_the_head_answers_with_its_svms_once_fitted() -> None:
    torch.manual_seed(0)
    head = RoIHead([2], [8], 3, layers="mlp", width=6, size=2, classifier="svm", svm_cost=0.01, ridge=1.0).eval()
    features, rois = [torch.rand(1, 2, 8, 8)], [torch.tensor([[0.0, 0, 30, 30], [20, 20, 60, 60]])]
    before = head.raw(features, rois)
    assert "margins" not in before
    assert head.needs_fit
    head.fit([image(seed) for seed in range(4)])
    after = head.raw(features, rois)
    assert torch.equal(before["classes"], after["classes"])
    assert not torch.equal(before["boxes"][:, 0], after["boxes"][:, 0])
    assert torch.equal(before["boxes"][:, 2], after["boxes"][:, 2])  # nothing to learn it from
    (found,) = head.predict(after, torch.tensor([[64, 64]]), Limits(conf=0.0))
    assert after["margins"].sigmoid().max() == found.scores[0]
    with pytest.raises(ValueError, match="svm_cost"):
        RoIHead([2], [8], 3, layers="mlp", classifier="svm", svm_cost=0)
