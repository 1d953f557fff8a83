"""COCO's numbers against pycocotools and by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.metrics import coco
from detkit.metrics.matching import match, positives
from detkit.tables import GroundTruth, Results, rank_of

Make = Callable[..., Any]


def pycocotools(images: list[int], classes: list[int], annotations: list[dict], detections: list[dict]):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "images": [{"id": i} for i in images],
            "categories": [{"id": c, "name": str(c)} for c in classes],
            "annotations": annotations,
        }
        gt.createIndex()
        if detections:
            dt = gt.loadRes(detections)
        else:
            dt = COCO()
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        reference = COCOeval(gt, dt, "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    return reference


def as_records(ids: list[int], gt: GroundTruth, dt: Results) -> tuple[list[dict], list[dict]]:
    annotations = [
        {
            "id": int(gt.ids[n]),
            "image_id": ids[gt.image[n]],
            "category_id": int(gt.label[n]),
            "bbox": gt.xywh[n].tolist(),
            "area": float(gt.area[n]),
            "iscrowd": int(gt.crowd[n]),
        }
        for n in range(len(gt.image))
    ]
    detections = [
        {
            "image_id": ids[dt.image[n]],
            "category_id": int(dt.label[n]),
            "bbox": dt.xywh[n].tolist(),
            "score": float(dt.score[n]),
        }
        for n in range(len(dt))
    ]
    return annotations, detections


def random_case(seed: int) -> tuple[list[int], GroundTruth, Results]:
    """Shuffled image ids, tied scores, crowds, empty images and classes, areas exactly on the limits."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 12)), int(rng.integers(1, 4))
    n, m = int(rng.integers(0, 40)), int(rng.integers(0, 200)) * (20 if seed % 10 == 0 else 1)
    ids = [int(i) for i in rng.permutation(100)[:images]]
    sizes = [1, 16, 32, 96, 100, 33.3]
    xywh = np.column_stack([rng.integers(0, 100, (n, 2)), rng.choice(sizes, (n, 2))]).astype(float)
    area = np.where(rng.random(n) < 0.5, xywh[:, 2] * xywh[:, 3], rng.choice([1024.0, 9216.0, 1023.9, 5000, 0], n))
    gt = GroundTruth(
        images=images,
        image=rng.integers(0, images, n),
        label=rng.integers(0, classes, n),
        xywh=xywh,
        area=area,
        crowd=rng.random(n) < 0.15,
        difficult=np.zeros(n, bool),
        ids=np.arange(n) + 1,
        classes=tuple(map(str, range(classes))),
        rank=rank_of(ids),
    )
    boxes = np.column_stack([rng.integers(0, 100, (m, 2)), rng.choice(sizes, (m, 2))]).astype(float)
    image, label = rng.integers(0, images, m), rng.integers(0, classes, m)
    if n:
        near, copied = rng.integers(0, n, m), rng.random(m) < 0.8
        boxes[copied] = np.abs(xywh[near] + rng.normal(0, rng.choice([0, 1, 5]), (m, 4)))[copied]
        image[copied], label[copied] = gt.image[near][copied], gt.label[near][copied]
    return ids, gt, Results(image, label, boxes, rng.choice(np.linspace(0, 1, int(rng.choice([3, 1000]))), m))


@pytest.mark.parametrize("seed", range(60))
def test_random_tables_are_bit_equal_to_pycocotools(seed: int) -> None:
    ids, gt, dt = random_case(seed)
    reference = pycocotools(ids, list(range(len(gt.classes))), *as_records(ids, gt, dt))
    got = coco.Coco().evaluate(gt, dt)
    assert list(got.metrics.values()) == reference.stats.tolist()
    np.testing.assert_array_equal(got.precision, reference.eval["precision"][..., -1])
    areas = np.array(list(coco.AREAS.values()))
    matches = match(gt, dt, thresholds=coco.THRESHOLDS, areas=areas)
    counts = positives(gt, areas)
    for m, limit in enumerate(got.limits):
        np.testing.assert_array_equal(coco.accumulate(matches, counts, [limit])[0], reference.eval["precision"][..., m])
    np.testing.assert_array_equal(got.recall, reference.eval["recall"])


def test_more_detections_than_the_limit_in_one_image(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10]])
    dt = results([[50, 50, 10, 10]] * 100 + [[0, 0, 10, 10]], [0.9] * 100 + [0.8])
    assert coco.Coco().evaluate(gt, dt).metrics["AP50"] == 0.0
    assert coco.Coco().evaluate(gt, dt, max_detections=101).metrics["AR101"] == 1.0


@pytest.mark.parametrize("reverse", [False, True])
def test_equal_scores_in_two_images_follow_the_image_ids_not_the_file(
    reverse: bool, ground_truth: Make, results: Make
) -> None:
    gt = replace(ground_truth([[0, 0, 10, 10]], image=[0], images=2), rank=np.array([1, 0] if reverse else [0, 1]))
    dt = results([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.5], image=[0, 1])
    assert coco.Coco().evaluate(gt, dt).metrics["AP50"] == pytest.approx(0.5 if reverse else 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_classes_in_any_order_are_bit_equal_to_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = [7, 3, 5, 11, 2]
    n, m = 60, 150
    xywh = np.column_stack([rng.integers(0, 100, (n, 2)), rng.integers(5, 80, (n, 2))]).astype(float)
    image, label = rng.integers(0, 4, n), rng.integers(0, 5, n)
    none, area = np.zeros(n, bool), xywh[:, 2] * xywh[:, 3]
    columns = (image, label, xywh, area, none, none, np.arange(1, n + 1))
    gt = GroundTruth(4, *columns, tuple("abcde"), class_rank=rank_of(numbers))
    near = rng.integers(0, n, m)
    dt = Results(image[near], label[near], np.abs(xywh[near] + rng.normal(0, 4, (m, 4))), rng.random(m))
    annotations, detections = as_records([0, 1, 2, 3], gt, dt)
    for record in (*annotations, *detections):
        record["category_id"] = numbers[record["category_id"]]
    reference = pycocotools([0, 1, 2, 3], numbers, annotations, detections)
    metrics = coco.Coco().evaluate(gt, dt).metrics
    assert list(metrics.values()) == reference.stats.tolist()
    assert coco.pycocotools_metrics(gt, dt) == metrics
    assert coco.Coco().resampler(gt, dt, "AP")(np.ones(4, np.int64)) == metrics["AP"]


def test_ids_are_no_truth_values(ground_truth: Make, results: Make) -> None:
    """Perfect detections of two objects, the first with id 0: pycocotools takes it for missed."""
    gt = replace(ground_truth([[0, 0, 10, 10], [50, 0, 10, 10]]), ids=np.array([0, 1]))
    dt = results([[0, 0, 10, 10], [50, 0, 10, 10]], [0.9, 0.8])
    assert coco.Coco().evaluate(gt, dt).metrics["AP"] == pytest.approx(1.0)
    assert coco.pycocotools_metrics(gt, dt)["AP"] == pytest.approx(0.5 * 51 / 101)  # 0.2525


@pytest.mark.parametrize(
    ("crowd", "difficult", "expected", "why"),
    [
        (0, 1, 0.5, "a difficult object hides one detection, the second is false"),
        (1, 0, 1.0, "a crowd hides any number"),
        (1, 1, 1.0, "a difficult crowd is a crowd"),
        (0, 0, 0.5 * 2 / 3 + 0.5, "an ordinary object is found once"),
    ],
)
def test_ignored_objects(
    crowd: int, difficult: int, expected: float, why: str, ground_truth: Make, results: Make
) -> None:
    gt = ground_truth([[0, 0, 10, 10], [100, 0, 10, 10]], crowd=[0, crowd], difficult=[0, difficult])
    dt = results([[100, 0, 10, 10], [100, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8, 0.7])
    # by hand: with two objects the precisions are 1, 1/2, 2/3: 1 up to recall 0.5 (51 points), then 2/3 (50 points)
    expected = (51 + 50 * 2 / 3) / 101 if not crowd and not difficult else expected
    assert coco.Coco().evaluate(gt, dt).metrics["AP50"] == pytest.approx(expected), why


def test_a_difficult_object_is_hidden_by_iou_and_a_crowd_by_the_share_of_the_detection(
    ground_truth: Make, results: Make
) -> None:
    inside = results([[0, 0, 10, 10], [200, 0, 10, 10]], [0.9, 0.8])  # a tenth of the region
    boxes = [[0, 0, 100, 10], [200, 0, 10, 10]]
    assert coco.Coco().evaluate(ground_truth(boxes, crowd=[1, 0]), inside).metrics["AP50"] == pytest.approx(1.0)
    assert coco.Coco().evaluate(ground_truth(boxes, difficult=[1, 0]), inside).metrics["AP50"] == pytest.approx(0.5)


def test_per_class_and_nothing_to_find(ground_truth: Make, results: Make) -> None:
    gt = ground_truth([[0, 0, 10, 10], [0, 0, 200, 200]], label=[0, 2], classes=("cat", "dog", "cow"))
    got = coco.Coco().evaluate(gt, results([[0, 0, 10, 10], [0, 0, 9, 9]], [0.5, 0.4], label=[0, 1]))
    assert got.per_class["cat"]["AP"] == pytest.approx(1.0)
    assert got.per_class["cow"]["AP"] == 0.0
    assert np.isnan(got.per_class["dog"]["AP"])
    assert np.isnan(got.per_class["cat"]["APl"])
    assert [row["objects"] for row in got.per_class.values()] == [1, 0, 1]
    assert got.metrics["AP"] == pytest.approx(0.5)
    assert got.metrics["APm"] == -1.0


def test_nothing_at_all(ground_truth: Make, results: Make) -> None:
    got = coco.Coco().evaluate(ground_truth([], images=0, classes=()), results([], []))
    assert set(got.metrics.values()) == {-1.0}
    assert got.per_class == {}


def test_ap_at_any_iou_leaves_the_other_numbers_alone() -> None:
    _, gt, dt = random_case(3)
    plain = coco.Coco().evaluate(gt, dt)
    for iou, like in ((0.5, "AP50"), (0.75, "AP75")):
        assert coco.Coco().evaluate(gt, dt, iou=iou).metrics == {
            **plain.metrics,
            coco.iou_name(iou): plain.metrics[like],
        }
    more = coco.Coco().evaluate(gt, dt, iou=0.6)
    assert {name: more.metrics[name] for name in plain.metrics} == plain.metrics
    assert more.metrics["AP60"] == pytest.approx(np.mean(plain.precision[2, :, :, 0]))
    assert "AP12.5" in coco.Coco().evaluate(gt, dt, iou=0.125).metrics


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image": np.array([1])}, "image"),
        ({"label": np.array([-1])}, "label"),
        ({"score": np.array([np.nan])}, "finite"),
        ({"score": np.array([0.1, 0.2])}, "length"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes: dict, word: str, ground_truth: Make, results: Make) -> None:
    dt = replace(results([[0, 0, 10, 10]], [0.5]), **changes)
    with pytest.raises(ValueError, match=word):
        coco.Coco().evaluate(ground_truth([[0, 0, 10, 10]]), dt)


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.1], np.linspace(0.1, 1, 65)])
def test_thresholds_that_make_no_sense_are_refused(thresholds: list[float], ground_truth: Make, results: Make) -> None:
    with pytest.raises(ValueError, match="threshold"):
        match(ground_truth([[0, 0, 10, 10]]), results([[0, 0, 10, 10]], [0.5]), thresholds=np.array(thresholds))


def test_tables_are_not_changed() -> None:
    _, gt, dt = random_case(8)
    before = [column.copy() for column in (gt.xywh, gt.image, gt.area, dt.xywh, dt.score, dt.image)]
    coco.Coco().evaluate(gt, dt)
    for old, new in zip(before, (gt.xywh, gt.image, gt.area, dt.xywh, dt.score, dt.image), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.shared_data
def test_real_annotations_through_the_reader_are_equal_to_pycocotools(shared_data: Path, tmp_path: Path) -> None:
    from detkit.data.dataset import read
    from detkit.io.detections import read_detections

    path = shared_data / "coco/annotations/instances_train2017.json"
    data = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    detections = []
    for record in data["annotations"]:
        box = np.array(record["bbox"])
        for _ in range(int(rng.integers(0, 4))):
            moved = np.abs(box + rng.normal(0, 0.08, 4) * box[[2, 3, 2, 3]]).round(2).tolist()
            entry = {"image_id": record["image_id"], "category_id": record["category_id"], "bbox": moved}
            detections.append({**entry, "score": round(float(rng.random()), 2)})
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(detections))
    annotations = read(path)
    found, notes = read_detections(file, annotations)
    got = coco.Coco().evaluate(annotations.ground_truth(), found)
    reference = pycocotools(
        [image["id"] for image in data["images"]],
        [category["id"] for category in data["categories"]],
        data["annotations"],
        detections,
    )
    assert all("have no detection" in note for note in notes)
    np.testing.assert_allclose(list(got.metrics.values()), reference.stats, rtol=0, atol=1e-9)
