"""The types check what they hold once, index as one, and never change."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.io.images import read_image
from detkit.structures import Batch, Detections, Limits, Sample, Target

BOXES = np.array([[0, 0, 10, 20], [5, 5, 8, 9], [1, 2, 3, 4]], np.float32)


def _target() -> Target:
    return Target(BOXES, [0, 1, 2], crowd=[True, False, False], difficult=[False, False, True], area=[100, 12, 4])


@pytest.mark.parametrize(
    ("boxes", "labels", "why"),
    [
        (np.zeros((2, 5)), [0, 0], "five columns"),
        (np.zeros((4,)), [0], "a bare box"),
        (np.zeros((2, 4)), [0], "fewer labels than boxes"),
        (np.zeros((2, 4)), [[0, 0]], "labels of two dimensions"),
    ],
)
def test_wrong_shapes_are_refused(boxes: np.ndarray, labels: list[int], why: str) -> None:
    with pytest.raises(ValueError, match="Target"):
        Target(boxes, labels)
    with pytest.raises(ValueError, match="Detections"):
        Detections(boxes, np.zeros(len(labels)), labels)


def test_kinds_are_not_mixed() -> None:
    with pytest.raises(TypeError, match="never both"):
        Target(torch.zeros(1, 4), np.zeros(1, np.int64))
    with pytest.raises(TypeError, match="never both"):
        Detections(np.zeros((1, 4)), torch.zeros(1), np.zeros(1))


def test_defaults_and_ignore() -> None:
    target = Target(BOXES, [0, 1, 2])
    assert target.area.tolist() == [200, 12, 4]
    assert target.weight.tolist() == [1, 1, 1]
    assert _target().ignore.tolist() == [True, False, True]
    assert len(Target.empty()) == 0
    assert Target([], []).boxes.shape == (0, 4)


@pytest.mark.parametrize("torch_kind", [False, True])
@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
    ],
)
def test_indexing_takes_every_column(index: object, rows: list[int], torch_kind: bool) -> None:
    target = _target().to("cpu") if torch_kind else _target()
    part = target[index].numpy()
    assert np.array_equal(part.boxes, BOXES[rows])
    assert part.labels.tolist() == rows
    assert part.area.tolist() == [[100, 12, 4][r] for r in rows]
    assert part.crowd.tolist() == [r == 0 for r in rows]


def test_iteration_ends() -> None:
    assert [int(t.labels[0]) for t in _target()] == [0, 1, 2]
    with pytest.raises(IndexError):
        _target()[3]


def test_extra_follows_the_boxes() -> None:
    found = Detections(BOXES, [0.9, 0.8, 0.3], [0, 1, 1], ("cat", "dog"), {"id": np.array([7, 8, 9])})
    assert found.filter(0.5, classes=("dog",)).extra["id"].tolist() == [8]
    assert found.to("cpu").filter(classes=(1,)).numpy().extra["id"].tolist() == [8, 9]
    assert [d.names for d in found] == [["cat"], ["dog"], ["dog"]]
    with pytest.raises(ValueError, match="no class 'cow'"):
        found.filter(classes=("cow",))
    with pytest.raises(ValueError, match="3 rows"):
        Detections(BOXES, [0.9, 0.8, 0.3], [0, 1, 1], extra={"id": np.zeros(2)})


@pytest.mark.parametrize("torch_kind", [False, True])
def test_sizes_merging_and_suppression(torch_kind: bool) -> None:
    names = ("cat", "dog")
    one = Detections([[0, 0, 10, 20], [0, 0, 10, 10]], [0.5, 0.9], [0, 1], names, {"id": np.array([1, 2])})
    other = Detections([[0, 0, 10, 19], [50, 0, 60, 10]], [0.7, 0.9], [0, 1], names, {"id": np.array([3, 4])})
    if torch_kind:
        one, other = one.to("cpu"), other.to("cpu")
    assert one.area.tolist() == [200, 100]
    assert other.xywh.tolist() == [[0, 0, 10, 19], [50, 0, 10, 10]]
    both = Detections.merge([one, Detections.empty().to("cpu") if torch_kind else Detections.empty(), other])
    assert both.extra["id"].tolist() == [2, 4, 3, 1]  # best first, equal scores as they came
    assert both.scores.tolist() == pytest.approx([0.9, 0.9, 0.7, 0.5])
    assert both.with_nms(0.5).extra["id"].tolist() == [2, 4, 3]
    assert both.with_nms(0.5, class_agnostic=True).extra["id"].tolist() == [2, 4, 1]  # IoU 0.526 and 0.5
    assert both.with_nms(0.96).extra["id"].tolist() == [2, 4, 3, 1]
    assert both.filter(classes="dog").extra["id"].tolist() == both.filter(classes=1).extra["id"].tolist() == [2, 4]


def test_only_what_is_alike_is_merged() -> None:
    one = Detections(BOXES[:1], [0.5], [0], ("cat",))
    assert len(Detections.merge([])) == 0
    assert Detections.merge([Detections.empty(("cat",))]).classes == ("cat",)
    for other in (
        Detections(BOXES[:1], [0.5], [0], ("dog",)),
        Detections(BOXES[:1], [0.5], [0], ("cat",), {"id": [1]}),
    ):
        with pytest.raises(ValueError, match="can be merged"):
            Detections.merge([one, other])
    with pytest.raises(TypeError, match="never both"):
        Detections.merge([one, one.to("cpu")])


def test_records_have_the_command_lines_form() -> None:
    found = Detections([[1.234, 2, 3, 4]], [0.123456], [1], ("cat", "dog"))
    assert found.to_records() == [{"label": "dog", "label_id": 1, "score": 0.12346, "box": [1.23, 2.0, 3.0, 4.0]}]
    assert "dog 0.12" in repr(found)
    assert "<td>dog</td>" in found._repr_html_()
    assert repr(Detections.empty()) == "Detections(none)"


def test_nothing_can_be_changed() -> None:
    with pytest.raises(AttributeError):
        _target().boxes = BOXES  # type: ignore[misc]


def test_torchvision_counts_background_as_zero() -> None:
    there = _target().to_torchvision()
    assert there["labels"].tolist() == [1, 2, 3]
    assert there["iscrowd"].tolist() == [1, 0, 0]


def test_geometry_round_trip_and_clip() -> None:
    geometry = Geometry(width=200, height=100, scale_x=1.6, scale_y=1.6, left=0, top=80)
    there = geometry.to_input(BOXES)
    assert there[0].tolist() == pytest.approx([0, 80, 16, 112])
    assert np.allclose(geometry.to_original(there), BOXES, atol=1e-5)
    outside = np.array([[-50, 0, 500, 500]], np.float32)
    assert geometry.to_original(outside).tolist() == [[0, 0, 200, 100]]
    assert geometry.to_original(torch.from_numpy(outside)).tolist() == [[0, 0, 200, 100]]


def test_sample_wants_rgb_bytes() -> None:
    assert Sample(np.zeros((4, 5, 3), np.uint8)).replace(path="a").path == "a"
    for wrong in (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            Sample(wrong)


def test_batch_moves_as_one() -> None:
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    batch = Batch(pixels, torch.tensor([[8, 8]]), (Geometry(8, 8),), proposals=[torch.zeros(2, 4)])
    assert len(batch.to("cpu")) == 1
    assert batch.to("meta").pixels.device.type == "meta"


@pytest.mark.parametrize("wrong", [{"conf": -0.1}, {"iou": 1.5}, {"max_detections": 0}])
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(DetkitError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
    assert Limits.evaluation().conf == 0.001


def test_error_keeps_its_lines_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DetkitError("what", "where", "do", code=4)))
    assert (error.what, error.where, error.do, error.code) == ("what", "where", "do", 4)
    assert str(error) == "what\nwhere\ndo"


def test_drawing_is_saved_once(tmp_path: Path) -> None:
    image = np.full((40, 60, 3), 128, np.uint8)
    found = Detections([[10, 10, 30, 30]], [0.9], [0], ("cat",))
    found.save(tmp_path / "a.png", image)
    assert (found.draw(image) != image).any()
    assert (image == 128).all()
    with pytest.raises(DetkitError, match="exists"):
        found.save(tmp_path / "a.png", image)
    found.save(tmp_path / "a.png", image, overwrite=True)


def test_detections_with_their_image_in_a_notebook() -> None:
    image = np.full((20, 30, 3), 90, np.uint8)
    found = Detections(np.array([[2, 3, 20, 15.0]]), np.array([0.5]), np.array([0]), ("dog",))
    shown = found.show(image)
    assert shown._repr_html_().startswith('<img alt="detections" src="data:image/jpeg;base64,/9j/')
    assert shown._repr_html_().endswith(found._repr_html_())
    assert read_image(shown.jpeg).shape == image.shape
