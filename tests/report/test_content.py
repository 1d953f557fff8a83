"""What an evaluation says, against the metrics themselves and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detkit.metrics import evaluate_results
from detkit.report.content import Settings, build_report, latency
from detkit.tables import Results


def test_numbers(case) -> None:
    got = build_report(case.annotations, case.results, Settings(iou=0.6, bootstrap=5)).facts
    gt = case.annotations.ground_truth()
    expected = evaluate_results(gt, case.results, "coco", iou=0.6)
    assert got["metrics"] == expected.metrics
    assert got["protocols"]["voc2007"] == evaluate_results(gt, case.results, "voc2007", iou=0.6).metrics
    assert list(got["intervals"]) == ["AP", "AP50", "AP60"]
    assert got["counts"] == {"images": 3, "objects": 4, "ignored": 0, "detections": 7}
    assert {name: row["objects"] for name, row in got["by_size"].items()} == {"small": 1, "medium": 3, "large": 0}
    assert got["confusion"]["counts"][0][0] == 2
    assert got["errors"]["kinds"]["classification"]["count"] == 1
    assert got["settings"]["match_iou"] == 0.6
    assert list(got["curves"]["per_class"]) == ["cat", "dog"]
    json.dumps(got)


def test_worst_and_examples(case) -> None:
    got = build_report(case.annotations, case.results, Settings(bootstrap=0)).facts
    # In the first image the dog, the only one, is missed: half of AP. The cat taken for it costs something too.
    first, second = got["worst"]
    assert first["file"].endswith("a.jpg")
    assert [one["label"] for one in first["missed"]] == ["dog"]
    assert [(one["label"], one["kind"]) for one in first["false_positives"]] == [("cat", "classification")]
    assert first["false_positives"][0]["box"] == [60, 10, 100, 50]
    assert got["best_threshold"]["score"] == pytest.approx(0.65)
    assert first["cost"] == pytest.approx(0.5 + (2 / 6 + 3 / 12) / 3 / 2)
    assert second["missed"][0]["found_at"] == 0.1
    assert got["examples"]["cat"]["right"]["score"] == 0.9
    assert got["examples"]["dog"]["missed"]["found_at"] is None
    assert "cow & <calf>" not in got["examples"]


@pytest.mark.parametrize("protocol", ["coco", "voc2007", "voc2010"])
def test_protocols_and_nothing_found(case, protocol: str) -> None:
    none = Results(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    got = build_report(case.annotations, none, Settings(protocol, bootstrap=2)).facts
    assert got["metrics"]["AP"] == 0
    assert got["curves"]["overall"]["score"] == []
    assert got["errors"]["kinds"]["missed"]["count"] == 4
    assert len(got["worst"]) == 3


def test_another_limit(case) -> None:
    got = build_report(case.annotations, case.results, Settings(max_detections=1, bootstrap=0)).facts
    assert "AR1" in got["metrics"]
    assert "AR100" not in got["metrics"]
    assert "1 detections" in got["settings"]["rules"]["limit"]


def test_latency_by_hand() -> None:
    batches = [(2, 9.0, 9.0, 9.0), (2, 0.2, 0.4, 0.02), (1, 0.1, 0.3, 0.01)]
    got = latency({"images": 5, "data": 9.3, "compute": 18.73, "batches": batches})
    assert got["batch"] == 2
    assert got["split"] is True
    assert got["ms"]["data"]["median"] == pytest.approx(100)
    assert got["ms"]["model"] == pytest.approx({"median": 200, "p95": 290})
    assert got["ms"]["total"]["median"] == pytest.approx(310)
    assert latency({"images": 1, "data": 1.0}) == {"images": 1, "data": 1.0}
    assert latency({"batches": [(1, 0.1, 0.2, 0.0)]})["split"] is False
