"""What is said of data that was read: counts, what was dropped, and what is left to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detkit.data.annotations import Finding
from detkit.data.dataset import read
from detkit.data.summary import DataSummary, refuse_nothing, summarise, unlike_pycocotools
from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.tables import Results

FLAT = [100, 100, 0, 30]
BOXES = [[0, 0, 20, 20], [40, 0, 20, 20], [0, 40, 20, 20]]


def coco(folder: Path, boxes: list[list[float]], ids: list[int] | None = None, **more: object) -> Path:
    """A json of one 200 x 200 image (and an empty one) with boxes of one class."""
    numbers = ids or list(range(1, len(boxes) + 1))
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **more}
            for n, box in zip(numbers, boxes, strict=True)
        ],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(data))
    return path


def perfect(boxes: list[list[float]]) -> Results:
    none = np.zeros(len(boxes), np.int64)
    return Results(none, none, np.array(boxes, float), np.linspace(0.9, 0.8, len(boxes)))


def test_counts_and_what_was_dropped(tmp_path: Path) -> None:
    summary = summarise({"train": read(coco(tmp_path, [*BOXES, FLAT]))}, missing=True)
    assert summary.to_dict()["parts"] == {
        "train": {
            "images": 2,
            "images_without_boxes": 1,
            "boxes": 3,
            "crowd": 0,
            "difficult": 0,
            "classes": {"cat": 3},
        }
    }
    flat, gone = (f"{tmp_path}/labels.json: annotation 4 (image 1)", f"{tmp_path}/1.jpg")
    assert summary.lines() == [
        "train: 2 images (1 without boxes), 3 boxes of 1 class",
        "  class  train",
        "  cat        3",
        f"  1 x box of zero size (dropped): {flat}",
        f"  2 x image that is not there (left out): {gone}",
    ]
    with pytest.raises(DetkitError, match="3 labels or images are left out: 1 x box of zero size") as error:
        summary.refuse_drops()
    assert flat in error.value.where
    assert json.loads(json.dumps(summary.to_dict()))["findings"][0]["count"] == 1


def test_a_finding_without_an_example_is_its_name_alone() -> None:
    assert DataSummary({}, (Finding("box of a class that is not trained (left out): boat", 3),)).lines(table=False) == [
        "  3 x box of a class that is not trained (left out): boat"
    ]


def test_parts_of_one_set_share_its_findings(tmp_path: Path) -> None:
    whole = read(coco(tmp_path, [*BOXES, FLAT]))
    assert [one.count for one in summarise({"train": whole.subset([0]), "val": whole.subset([1])}).findings] == [1]


def test_many_classes_are_cut_to_the_most_and_the_least_frequent(tmp_path: Path) -> None:
    path = coco(tmp_path, BOXES)
    data = json.loads(path.read_text())
    data["categories"] = [{"id": k, "name": f"c{k}"} for k in range(1, 81)]
    data["annotations"] = [
        {"id": 100 * k + n, "image_id": 1, "category_id": k, "bbox": [n, k, 9, 9]}
        for k in range(1, 81)
        for n in range(k)
    ]
    path.write_text(json.dumps(data))
    lines = summarise({"train": read(path)}).lines()
    assert [line.split() for line in lines[2:4]] == [["c80", "80"], ["c79", "79"]]
    assert lines[10].split() == ["(65", "others)", str(sum(range(8, 73)))]
    assert len(lines) == 18
    assert lines[-1].split() == ["c1", "1"]


@pytest.mark.parametrize(
    ("boxes", "more", "words"),
    [
        ([], {}, "2 images without a label"),
        ([FLAT, FLAT], {}, "2 x box of zero size (dropped)"),
        (BOXES, {"iscrowd": 1}, "2 images, and each box is crowd or difficult"),
    ],
)
def test_nothing_left_to_learn_from(tmp_path: Path, boxes: list, more: dict, words: str) -> None:
    with pytest.raises(DetkitError) as error:
        refuse_nothing(read(coco(tmp_path, boxes, **more)))
    assert error.value.what == f"no box is left to learn from: {words}"
    assert "labels.json" in error.value.where
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 2, 3], ""),
        ([0, 1, 2], "has the id 0, which pycocotools takes for not found whatever is found; its AP would be 0.4422"),
        ([5, 5, 7], "used again: all boxes count here, pycocotools keeps the last of each id; its AP would be 0.4422"),
    ],
)
def test_where_pycocotools_goes_by_ids_its_number_is_said(tmp_path: Path, ids: list[int], said: str) -> None:
    annotations, results = read(coco(tmp_path, BOXES, ids)), perfect(BOXES)
    assert evaluate_results(annotations.ground_truth(), results).metrics["AP"] == pytest.approx(1.0)
    notes = unlike_pycocotools(annotations, results)
    assert notes == [] if not said else said in notes[0]


def test_ground_truth_without_area_is_kept_on_request(tmp_path: Path) -> None:
    path, results = coco(tmp_path, [*BOXES, FLAT]), perfect(BOXES)
    usual, kept = read(path), read(path, keep_degenerate=True)
    assert "1 box without area or outside left out; pycocotools counts them" in unlike_pycocotools(usual, results)[0]
    assert evaluate_results(usual.ground_truth(), results).metrics["AP"] == pytest.approx(1.0)
    assert evaluate_results(kept.ground_truth(), results).metrics["AP"] == pytest.approx(76 / 101)  # 3 of 4 found
    assert unlike_pycocotools(kept, results) == []
    with pytest.raises(DetkitError, match="only COCO's json has boxes without area"):
        read(tmp_path, format="yolo", keep_degenerate=True)
