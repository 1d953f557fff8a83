"""Labels by models beside those by people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit import api
from detkit.cli import main
from detkit.data.annotations import Annotations
from detkit.data.dataset import Dataset, read
from detkit.errors import DetkitError
from detkit.io.images import write_image
from detkit.labelling import Rules, label
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample


class Finds(Predictor):
    """The same boxes in each image."""

    classes, class_ids = ("person", "airplane", "cat"), (1, 5, 17)

    def __init__(self, *rows: tuple[list[float], float, int]) -> None:
        self.rows, self.asked = rows, list[Limits]()

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.asked.append(limits)
        boxes, scores, labels = zip(*self.rows, strict=True)
        found = Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels), self.classes)
        return [found.filter(limits.conf)] * len(samples)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two photos of 100 x 80: an aeroplane, a crowd and a chair; nothing."""
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        write_image(tmp_path / name, np.full((80, 100, 3), 90, np.uint8))
    images = [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in ((7, "a/1.png"), (9, "b/2.png"))]
    names = ((3, "aeroplane"), (4, "person"), (5, "chair"))
    boxes = (
        {"category_id": 3, "bbox": [10, 10, 20, 20]},
        {"category_id": 4, "bbox": [60, 0, 40, 80], "iscrowd": 1},
        {"category_id": 5, "bbox": [0, 50, 30, 30], "difficult": 1, "weight": 0.5},
    )
    annotations = [{"id": i, "image_id": 7, "area": 1, "iscrowd": 0, **one} for i, one in enumerate(boxes, 1)]
    whole = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": n} for i, n in names]}
    (tmp_path / "data.json").write_text(json.dumps(whole))
    return tmp_path / "data.json"


def made(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["annotations"]


def test_peoples_boxes_come_first_and_each_box_says_its_source(data: Path, tmp_path: Path) -> None:
    model = Finds(
        ([12, 10, 30, 30], 0.9, 1), ([40, 40, 60, 70], 0.8, 2), ([5, 5, 15, 15], 0.2, 0), ([70, 5, 80, 40], 0.9, 0)
    )
    model.iou = 0.6
    said: list[str] = []
    result = label(model, str(data), tmp_path / "out" / "all.json", tell=said.append)
    assert model.asked[0] == Limits(0.15, 0.6, 100)
    assert "polygons" in said[0]
    records = made(tmp_path / "out" / "all.json")
    first = [r for r in records if r["image_id"] == 7]
    assert [(r["source"], r["category_id"]) for r in first] == [
        ("person", 5),
        ("person", 1),
        ("person", 2),
        ("model", 17),
        ("model", 1),
    ]
    assert [r.get("weight") for r in first] == [1.0, 1.0, 0.5, 0.8, None]
    assert [r.get("difficult", 0) for r in first] == [0, 0, 1, 0, 1]
    assert (first[1]["iscrowd"], first[4]["ignore"], first[4]["score"]) == (1, 1, 0.2)
    assert first[3]["bbox"] == [40, 40, 20, 30]
    # Where nothing is labelled, all that is found: the plane, the cat and both persons.
    assert [r["category_id"] for r in records if r["image_id"] == 9] == [5, 1, 17, 1]
    assert {k: result.facts[k] for k in ("images", "people", "added", "ignored")} == {
        "images": 2, "people": 3, "added": 4, "ignored": 2,
    }  # fmt: skip
    assert result.facts["per_class"]["person"] == {"people": 1, "added": 1, "ignored": 2}
    assert result.lines()[0].split() == ["people", "added", "ignored"]
    again = read(tmp_path / "out" / "all.json")
    assert again.classes == ("person", "airplane", "cat", "chair")
    assert again.class_ids == (1, 5, 17, 2)
    target = Dataset(again).load(0).target
    assert target is not None
    np.testing.assert_allclose(sorted(target.weight), [0.5, 0.8, 1, 1, 1])
    with pytest.raises(DetkitError, match="exists"):
        label(model, str(data), tmp_path / "out" / "all.json")


@pytest.mark.parametrize(
    ("known", "wanted"), [((), {5, 17, 1}), (("all",), {17}), (("aeroplane",), {17, 1}), (("cat", "person"), {5})]
)
def test_of_classes_that_people_labelled_completely_nothing_is_added(
    data: Path, tmp_path: Path, known: tuple[str, ...], wanted: set[int]
) -> None:
    model = Finds(([40, 10, 60, 30], 0.9, 1), ([40, 40, 60, 70], 0.8, 2), ([5, 5, 15, 15], 0.2, 0))
    label(model, str(data), tmp_path / "all.json", rules=Rules(known=known))
    assert {r["category_id"] for r in made(tmp_path / "all.json") if r["source"] == "model"} == wanted
    with pytest.raises(DetkitError, match="no class 'plane' in the data"):
        label(model, str(data), tmp_path / "x.json", rules=Rules(known=("plane",)))
    assert not (tmp_path / "x.json").exists()
    assert len(model.asked) == 1  # before anything was looked at


CAR = [10.0, 10, 50, 50]


@pytest.mark.parametrize(
    ("box", "score", "kind", "wanted"),
    [
        ([12, 12, 52, 50], 0.9, 0, None),  # IoU 0.82 with the car
        ([10, 20, 50, 80], 0.9, 0, [False]),  # 0.43: another car
        ([20, 20, 40, 40], 0.9, 0, [True]),  # a part of it
        ([5, 5, 80, 75], 0.9, 0, [True]),  # a group around it
        ([12, 12, 52, 50], 0.9, 1, None),  # it is a car, not that
        ([20, 20, 40, 40], 0.9, 1, [False]),  # something else in it
        ([60, 60, 90, 75], 0.34, 0, [True]),
        ([60, 60, 90, 75], 0.14, 0, None),
        ([0, 0, 100, 76], 0.24, 1, None),  # unsure, and all of the image
        ([0, 0, 100, 76], 0.26, 1, [True]),
        ([60, 60, 61, 75], 0.9, 0, None),  # a sliver
    ],
)
def test_rules_of_one_box(box: list[float], score: float, kind: int, wanted: list[bool] | None) -> None:
    rows, doubtful = Rules().new(*columns((box, score, kind)), people(CAR), np.array([80.0, 100.0]))
    assert (doubtful or None) == wanted
    assert rows == ([0] if wanted else [])


def test_rules_among_boxes_and_crowds() -> None:
    boxes = columns(
        ([0, 0, 20, 20], 0.5, 0), ([1, 0, 20, 20], 0.9, 0), ([0, 0, 20, 19], 0.6, 1), ([50, 0, 70, 20], 0.9, 0)
    )
    rows, doubtful = Rules().new(*boxes, people([45.0, 0, 100, 80], crowd=True), np.array([80.0, 100.0]))
    # One box a place and class, a second opinion is doubtful, and in a crowd of its class there is nothing to add.
    assert (rows, doubtful) == ([1, 2], [False, True])


def columns(*rows: tuple[list[float], float, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, scores, labels = zip(*rows, strict=True)
    return np.array(boxes, np.float64), np.array(labels), np.array(scores)


def people(box: list[float], crowd: bool = False) -> Annotations:
    x1, y1, x2, y2 = box
    size, offsets = np.array([[80, 100]]), np.array([0, 1])
    one, no = np.zeros(1, np.int64), np.zeros(1, bool)
    return Annotations(
        [1], ["x"], size, offsets, np.array([[x1, y1, x2 - x1, y2 - y1]]), one, no | crowd, no,
        np.ones(1), one, ("car", "dog"), (1, 2), one, one,
    )  # fmt: skip


def test_photos_without_labels_and_files_of_detections(data: Path, tmp_path: Path, capsys: Any) -> None:
    photos = tmp_path / "a"
    rows = [{"image_id": 1, "category_id": 17, "bbox": [10, 10, 30, 40], "score": score} for score in (0.9, 0.3)]
    for name, row in zip("pq", rows, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    words = ["label", str(photos), "-o", str(tmp_path / "one.json"), "--predictions", str(tmp_path / "p.json")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 1
    assert made(tmp_path / "one.json")[0]["category_id"] == 17  # COCO's cat
    both = [*words, "--predictions", str(tmp_path / "q.json"), "--overwrite"]
    assert main(both) == 0
    (record,) = made(tmp_path / "one.json")
    assert (record["score"], record["weight"]) == (0.6, 0.6)
    assert main([*both, "--keep", "0.61"]) == 0
    assert made(tmp_path / "one.json")[0]["ignore"] == 1
    assert read(tmp_path / "one.json").files == [str(photos / "1.png")]
    for extra, said in ((["-m", "x"], "not both"), (["--keep", "0.1"], "0 < ignore <= keep")):
        assert main([*both, *extra]) == 2
        assert said in capsys.readouterr().err


def test_models_together_need_no_word_more(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(api, "load", lambda names, **how: asked.append(names) or Finds(([0, 0, 9, 9], 0.5, 0)))
    assert main(["label", str(data), "-m", "one", "-m", "two", "-o", str(tmp_path / "o.json")]) == 0
    assert asked == [["one", "two"]]
