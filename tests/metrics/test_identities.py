"""Identification and verification by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.metrics.identities import roc, threshold_at, verification
from detkit.tables import Results, truth_of

LABELS = [0, 0, 1, 1, 2]
TRUTH = truth_of([{"boxes": np.array([[0, 0, 9, 9]]), "labels": np.array([k])} for k in LABELS], ("ann", "bob", "cy"))


def results(degrees: list[float]) -> Results:
    angle = np.deg2rad(degrees)
    n, table = len(degrees), np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Results(np.arange(n), np.zeros(n, int), np.zeros((n, 4)), np.ones(n), embedding=table)


def test_the_nearest_other_image() -> None:
    found = evaluate_results(TRUTH, results([0, 10, 40, 15, 80]), "match")
    assert found.metrics["rank1"] == pytest.approx(2 / 4)  # 10 is nearer to 15, and 15 to 10
    assert found.per_class["ann"] == {"rank1": 0.5, "objects": 2}
    assert np.isnan(found.per_class["cy"]["rank1"])


def test_verification_by_hand() -> None:
    same, different = np.array([0.9, 0.8, 0.3]), np.array([0.7, 0.4, 0.1, 0.0])
    found = verification(same, different, false_accepts=0.25)
    assert found["AUC"] == pytest.approx(10 / 12)  # 0.3 below 0.7 and 0.4
    assert found["TAR"] == pytest.approx(2 / 3)
    assert found["threshold"] == np.nextafter(0.4, 1)  # one of four is above it
    accepted, refused, threshold = roc(same, different)
    at = list(threshold).index(0.7)
    assert (accepted[at], refused[at]) == (0.25, pytest.approx(1 / 3))
    assert 0.25 <= found["EER"] <= 1 / 3
    assert all(np.isnan(value) for value in verification(same, np.zeros(0)).values())


def test_what_the_threshold_accepts_is_what_the_rates_count() -> None:
    """``detkit match`` accepts a likeness of the threshold or more."""
    different = np.array([0.7, 0.7, 0.4, 0.1])
    for share, accepted in ((0.0, 0), (0.25, 0), (0.5, 2), (0.74, 2), (0.75, 3)):  # of the two at 0.7 both or none
        assert (different >= threshold_at(different, share)).sum() == accepted
    same = np.array([0.9, 0.7, 0.5, 0.4])
    for share, rate in ((0.25, 0.25), (0.5, 0.75), (0.75, 1.0)):
        found = verification(same, different, share)
        assert found["TAR"] == (same >= found["threshold"]).mean() == rate
    ranked = np.arange(64) / 64
    assert [(ranked >= threshold_at(ranked, k / 64)).sum() for k in range(64)] == list(range(64))


def test_other_measures_take_their_own() -> None:
    table = results([0, 10, 40, 50, 80])
    for name in ("match_absolute", "match_chi_square"):
        assert evaluate_results(TRUTH, table, name).metrics["rank1"] == 1
    alone = Results(table.image, table.label, table.xywh, table.score)
    with pytest.raises(DetkitError, match="no vectors"):
        evaluate_results(TRUTH, alone, "match")
