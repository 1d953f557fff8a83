"""Lists of arrays are judged as files are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.errors import DetkitError
from detkit.structures import Detections, Target

THERE: list[Any] = [
    Target([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 1]),
    Target.empty(),
    {"boxes": [[0, 0, 8, 8.5]], "labels": [0]},
]
FOUND = [
    Detections([[0, 0, 10, 10], [20, 20, 40, 30]], [0.9, 0.8], [0, 1], ("cat", "dog")),
    Detections([[0, 0, 3, 3]], [0.1], [1], ("cat", "dog")),
    Detections([[0, 0, 8, 8.5]], [0.7], [0], ("cat", "dog")),
]


def as_mappings(items: list[Any], make: Any) -> list[dict[str, Any]]:
    names = ("boxes", "labels", "scores")
    found = [item if isinstance(item, dict) else {name: getattr(item, name, None) for name in names} for item in items]
    return [{name: make(value) for name, value in item.items() if value is not None} for item in found]


@pytest.mark.parametrize("make", [None, torch.tensor, np.asarray, lambda value: np.asarray(value).tolist()])
def test_lists_of_arrays_are_judged(make: Any) -> None:
    """Of the dog IoU is 0.5: found at the first of COCO's ten thresholds only."""
    found, there = (FOUND, THERE) if make is None else (as_mappings(FOUND, make), as_mappings(THERE, make))
    judged = detkit.evaluate(found, there)
    cat, dog = ("cat", "dog") if make is None else ("0", "1")
    assert judged.per_class[cat]["AP"] == pytest.approx(1)
    assert judged.per_class[dog]["AP"] == pytest.approx(0.1)
    assert judged.metrics["AP"] == pytest.approx(0.55)
    assert judged.metrics["AP50"] == pytest.approx(1)
    assert detkit.evaluate(found, there, protocol="voc2010").metrics["AP"] == pytest.approx(1)


def test_a_result_prints_its_numbers_and_classes() -> None:
    box = np.array([[0, 0, 40, 40.0]])
    found = [{"boxes": box, "scores": [0.9], "labels": [0]}]
    lines = str(detkit.evaluate(found, [{"boxes": np.concatenate((box, box + 90)), "labels": [0, 1]}])).splitlines()
    assert lines[0].split() == ["AP", "0.5000"]
    assert lines[3].split() == ["APs", "-"]
    assert [line.split()[:3] for line in lines[-2:]] == [["0", "1", "1.000"], ["1", "1", "0.000"]]


def test_crowds_and_difficult_objects_are_not_asked_for() -> None:
    boxes, labels = [[0, 0, 10, 10], [30, 30, 40, 40]], [0, 0]
    found = [{"boxes": boxes[:1], "scores": [0.5], "labels": labels[:1]}]
    assert detkit.evaluate(found, [{"boxes": boxes, "labels": labels}]).metrics["AP50"] == pytest.approx(51 / 101)
    for name in ("crowd", "iscrowd", "difficult"):
        there = [{"boxes": boxes, "labels": labels, name: [0, 1]}]
        assert detkit.evaluate(found, there).metrics["AP50"] == pytest.approx(1)
    assert detkit.evaluate([], []).metrics["AP"] == -1


def test_doubles_stay_doubles() -> None:
    """10 of 20 rows overlap by 0.5 exactly; in float32 the sum would fall below."""
    base = 2.0**24 + 1
    there = [{"boxes": np.array([[base, 0, base + 1, 20]]), "labels": [0]}]
    found = [{"boxes": np.array([[base, 0, base + 1, 10]]), "labels": [0], "scores": [1.0]}]
    assert detkit.evaluate(found, there).metrics["AP50"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "there", "reason"),
    [
        (FOUND, THERE[:2], "3 images, and 2"),
        (FOUND, "toy", "compared with a list of what is there"),
        ("detkit-nano", THERE, "compared with a list of what was found"),
        ([{"boxes": [[0, 0, 1, 1]], "scores": [1], "labels": [-1]}], THERE[:1], "got -1"),
        (FOUND[:1], [Target([[0, 0, 1, 1]], [2])], "2 classes are known, got 2"),
    ],
)
def test_what_does_not_go_together(found: Any, there: Any, reason: str) -> None:
    with pytest.raises(DetkitError, match=reason):
        detkit.evaluate(found, there)


@pytest.mark.parametrize(
    ("item", "error", "reason"),
    [
        ({"boxes": [[0, 0, 1]], "scores": [1], "labels": [0]}, ValueError, r"boxes must have shape \(N, 4\)"),
        ({"boxes": [[0, 0, 1, 1]], "scores": [1, 2], "labels": [0]}, ValueError, r"scores must have shape \(1,\)"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [0]}, ValueError, "needs scores, got dict without"),
        ({"boxes": [[0, 0, 1, 1]], "scores": [1], "labels": [0.5]}, TypeError, "labels must be integers"),
    ],
)
def test_wrong_arrays(item: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        detkit.evaluate([item], THERE[:1])
