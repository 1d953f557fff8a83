"""Runs side by side: numbers, which differences count, the table and the image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.report.comparison import Candidate, Comparison, compare_results, draw_runs
from detkit.tables import GroundTruth, Results

N = 60


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """Three detectors on 60 images of one object: one finds all, two find different halves."""
    image, no = np.arange(N), np.zeros(N, bool)
    boxes = np.tile([0.0, 0.0, 50.0, 50.0], (N, 1))
    gt = GroundTruth(N, image, image * 0, boxes, boxes[:, 2] ** 2, no, no, image + 1, ("a",))

    def found(rows: np.ndarray) -> Results:
        return Results(image[rows], image[rows] * 0, boxes[rows], np.linspace(1, 0.5, len(rows)))

    candidates = [
        Candidate("even", found(image[::2]), [0.1, 0.2, 0.3], 2.5, {"parameters": 1_500_000, "multiply_adds": 10**9}),
        Candidate("odd", found(image[1::2]), [0.2]),
        Candidate("all", found(image), [1.0], 30.0),
    ]
    got = compare_results(gt, candidates, samples=100)
    assert got.runs[0]["AP50"] == evaluate_results(gt, candidates[0].results).metrics["AP50"]
    return got


def test_numbers(compared: Comparison) -> None:
    even, odd, whole = compared.runs
    assert even["seconds"] == pytest.approx({"median": 0.2, "p95": 0.29})
    assert whole["AP50"] == pytest.approx(1.0)
    low, high = odd["intervals"]["AP50"]
    assert low < odd["AP50"] < high
    assert odd["minutes"] is None


def test_differences(compared: Comparison) -> None:
    verdicts = {
        (one["first"], one["second"]): one["significant"] for one in compared.differences if one["metric"] == "AP50"
    }
    assert verdicts == {("even", "odd"): False, ("even", "all"): True, ("odd", "all"): True}


def test_table(compared: Comparison) -> None:
    lines = compared.lines()
    assert lines[0].startswith("run ")
    assert len({len(line) for line in lines[:4]}) == 1
    assert "1.50 M" in lines[1]
    assert "1.00 G" in lines[1]
    assert lines[2].split()[-1] == "-"
    assert any(line.startswith("all against even: AP50 +0.4") and line.endswith("more than noise") for line in lines)
    assert sum(line.endswith("may be noise") for line in lines) == 1


def test_image(compared: Comparison, tmp_path: Path) -> None:
    compared.draw(tmp_path / "c.png")
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.std() > 5
    with pytest.raises(DetkitError, match="exists"):
        compared.draw(tmp_path / "c.png")
    with pytest.raises(DetkitError):
        compared.draw(tmp_path / "c.txt")


def test_a_panel_for_what_is_known(compared: Comparison) -> None:
    from matplotlib.figure import Figure

    untimed = [{**run, "minutes": None} for run in compared.runs]
    for runs, count in ((compared.runs, 2), (untimed, 1)):
        figure = Figure()
        draw_runs(figure, runs)
        assert len(figure.axes) == count
