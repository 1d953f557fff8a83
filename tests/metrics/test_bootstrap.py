"""A weight is a copy: resampled metrics against data that holds the copies; intervals and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detkit.metrics import coco, evaluate_results, find_metric
from detkit.metrics.bootstrap import Draws, draws
from detkit.tables import GroundTruth, Results

Make = Callable[..., Any]


def scene(ground_truth: Make, results: Make, seed: int, images: int = 12) -> tuple[GroundTruth, Results]:
    rng = np.random.default_rng(seed)
    n = images * 4
    boxes = np.column_stack([rng.integers(0, 200, (n, 2)), rng.choice([16, 40, 120], (n, 2))])
    image, label = np.sort(rng.integers(0, images, n)), rng.integers(0, 2, n)
    gt = ground_truth(
        boxes.tolist(),
        image.tolist(),
        label.tolist(),
        images=images,
        classes=("a", "b"),
        difficult=(rng.random(n) < 0.1).tolist(),
    )
    near = rng.integers(0, n, 3 * n)
    found = np.abs(boxes[near] + rng.normal(0, 6, (3 * n, 4)))
    score = rng.permutation(3 * n) / (3 * n)
    return gt, results(found.tolist(), score.tolist(), image[near].tolist(), label[near].tolist())


def copies(gt: GroundTruth, dt: Results, weights: np.ndarray) -> tuple[GroundTruth, Results]:
    """The tables of a data set that holds image i weights[i] times."""
    source = np.repeat(np.arange(gt.images), weights)
    objects = [np.flatnonzero(gt.image == i) for i in source]
    found = [np.flatnonzero(dt.image == i) for i in source]
    g, d = np.concatenate(objects), np.concatenate(found)
    columns = {name: getattr(gt, name)[g] for name in ("label", "xywh", "area", "crowd", "difficult")}
    index = np.arange(len(source))
    more = replace(
        gt,
        images=len(source),
        image=np.repeat(index, [len(o) for o in objects]),
        ids=np.arange(1, len(g) + 1),
        **columns,
    )
    return more, Results(np.repeat(index, [len(f) for f in found]), dt.label[d], dt.xywh[d], dt.score[d])


@pytest.mark.parametrize("metric", list(coco.metric_table()))
def test_coco_weights_are_copies(ground_truth: Make, results: Make, metric: str) -> None:
    gt, dt = scene(ground_truth, results, 0)
    value = coco.Coco().resampler(gt, dt, metric)
    assert value(np.ones(gt.images, np.int64)) == pytest.approx(coco.Coco().evaluate(gt, dt).metrics[metric], abs=1e-12)
    for seed in range(3):
        weights = np.random.default_rng(seed).integers(0, 4, gt.images)
        expected = coco.Coco().evaluate(*copies(gt, dt, weights)).metrics[metric]
        assert value(weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("year", ["2007", "2010"])
def test_voc_weights_are_copies(ground_truth: Make, results: Make, year: str) -> None:
    gt, dt = scene(ground_truth, results, 1)
    value = find_metric(f"voc{year}").resampler(gt, dt, "AP")
    assert value(np.ones(gt.images, np.int64)) == pytest.approx(evaluate_results(gt, dt, f"voc{year}").metrics["AP"])
    weights = np.random.default_rng(0).integers(0, 4, gt.images)
    expected = evaluate_results(*copies(gt, dt, weights), f"voc{year}").metrics["AP"]
    assert value(weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("protocol", "metric", "iou"),
    [("coco", "AP50", None), ("coco", "AP60", 0.6), ("voc2007", "AP", None), ("voc2010", "AP70", 0.7)],
)
def test_the_interval_holds_the_value_and_depends_on_the_seed_alone(
    ground_truth: Make, results: Make, protocol: str, metric: str, iou: float | None
) -> None:
    gt, dt = scene(ground_truth, results, 2, images=30)
    low, high = draws(gt, dt, metric, samples=60, seed=1, protocol=protocol, iou=iou).interval()
    assert low < evaluate_results(gt, dt, protocol, iou=iou).metrics[metric] < high
    assert (low, high) == draws(gt, dt, metric, samples=60, seed=1, protocol=protocol, iou=iou).interval()
    assert (low, high) != draws(gt, dt, metric, samples=60, seed=2, protocol=protocol, iou=iou).interval()
    narrow = draws(gt, dt, metric, samples=60, seed=1, protocol=protocol, iou=iou).interval(0.5)
    assert narrow[1] - narrow[0] < high - low


def test_a_metric_of_identical_images_is_certain(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10]] * 5, image=list(range(5)), images=5)
    dt = results([[0, 0, 10, 10]] * 5, [0.5] * 5, image=list(range(5)))
    assert draws(gt, dt, samples=20).interval() == pytest.approx((1.0, 1.0))


def test_paired_differences(ground_truth: Make, results: Make) -> None:
    gt, dt = scene(ground_truth, results, 3, images=30)
    same = draws(gt, dt, samples=20).minus(draws(gt, dt, samples=20))
    assert (same.value, same.low, same.high, same.significant) == (0, 0, 0, False)
    exact = Results(gt.image, gt.label, gt.xywh, np.full(len(gt.image), 0.9))
    first, second = (draws(gt, one, samples=50) for one in (dt, exact))
    better = second.minus(first)
    assert better.significant
    assert better.value == pytest.approx(1 - coco.Coco().evaluate(gt, dt).metrics["AP50"])
    assert first.minus(second).high < 0


def test_nothing_to_find_is_nan_and_mistakes_are_refused(ground_truth: Make, results: Make) -> None:
    empty, none = ground_truth([], images=3), results([], [])
    assert np.isnan(draws(empty, none, samples=3).interval()).all()
    for change, word in (({"metric": "AP5"}, "AP50"), ({"samples": 0}, "samples")):
        with pytest.raises(ValueError, match=word):
            draws(empty, none, **{"samples": 3, **change})
    with pytest.raises(ValueError, match="PASCAL"):
        draws(empty, none, "AP75", protocol="voc2010")


def test_no_interval_goes_beyond_what_a_metric_can_be():
    drawn = np.array([0.0, 0.0, 0.0, 1.0])
    assert Draws(0.1, drawn).interval() == (0.0, pytest.approx(0.775))  # -0.15 without the limit
    assert Draws(0.9, 1 - drawn).interval() == (pytest.approx(0.225), 1.0)
    with pytest.raises(ValueError, match="level"):
        Draws(0.1, drawn).interval(1.0)
    assert Draws(0.1, drawn).minus(Draws(0.9, 1 - drawn)).low == -1.0
