"""HOTA, MOTA, IDF1 and switches: worked by hand, as TrackEval and py-motmetrics give them; what must always hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from detkit.errors import DetkitError
from detkit.evaluating import track_report
from detkit.io.detections.mot import MotTable, read_tracks
from detkit.metrics.tracks import track_scores, track_sums

NAMES = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1", "IDSW", "FP", "FN")
# Of TrackEval 1.3.0 and motmetrics 1.4.0: the first four of the former, the rest of the latter.
REAL = {
    "TUD-Campus": (
        0.391397437845,
        0.418047030143,
        0.369120681208,
        0.770052227022,
        0.526462395543,
        0.557659208262,
        7,
        13,
        150,
    ),
    "TUD-Stadtmitte": (
        0.397849016993,
        0.392267572369,
        0.408840751811,
        0.737521177178,
        0.564013840830,
        0.644619422572,
        7,
        45,
        452,
    ),
    "all": (
        0.399957091288,
        0.397683291242,
        0.412449529845,
        0.732480258066,
        0.555115511551,
        0.624296057924,
        14,
        58,
        602,
    ),
}
RANDOM = {
    0: (
        0.312889313620,
        0.459797625772,
        0.214018727309,
        0.762843562942,
        0.423728813559,
        0.363315696649,
        21,
        63,
        86,
    ),
    1: (
        0.307009691599,
        0.449998805711,
        0.210891618585,
        0.758385331237,
        0.422680412371,
        0.393559928444,
        15,
        65,
        88,
    ),
    2: (
        0.282621382213,
        0.430240564420,
        0.187054005204,
        0.753424481484,
        0.370242214533,
        0.366197183099,
        20,
        76,
        86,
    ),
}


def table(*rows: tuple[float, ...]) -> MotTable:
    """Of rows frame, track, left, top, width, height."""
    values = np.array(rows, float).reshape(-1, 6)
    return MotTable(values[:, 0].astype(int), values[:, 1].astype(int), values[:, 2:], np.ones(len(values)))


def scores(truth: MotTable, found: MotTable) -> dict[str, float]:
    return track_scores(track_sums(truth, found))


def wandering(seed: int) -> tuple[MotTable, MotTable]:
    """Eight objects that cross, a tenth unlabelled, and a tracker that mixes them up, misses and invents."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    x, ids = rng.uniform(0, 300, (8, 2)), np.arange(8)
    for f in range(1, 41):
        x = x + rng.normal(0, 6, x.shape)
        if f % 9 == 0:
            ids[rng.choice(8, 3, False)] = rng.permutation(ids)[:3]
        ids = np.array([i if (ids == i).sum() == 1 else 100 + f * 10 + k for k, i in enumerate(ids)])
        for k in range(8):
            if rng.random() < 0.9:
                truth.append((f, k, *x[k], 50, 80))
            if rng.random() < 0.8:
                found.append((f, ids[k], *(x[k] + rng.normal(0, 8, 2)), 50, 80))
        if rng.random() < 0.5:
            found.append((f, 1000 + f, *rng.uniform(0, 300, 2), 50, 80))
    return table(*truth), table(*found)


STANDING = [(f, 7, 0, 0, 10, 10) for f in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("truth", "found", "wanted"),
    [
        pytest.param(STANDING, STANDING, (1, 1, 1, 1, 1, 1, 0, 0, 0), id="perfect"),
        # Half the track's boxes have its number: each of 4 matches has 2 of 4 in common.
        pytest.param(
            STANDING,
            [(f, 1 + (f > 2), 0, 0, 10, 10) for f in (1, 2, 3, 4)],
            (0.5**0.5, 1, 0.5, 1, 0.75, 0.5, 1, 0, 0),
            id="a switch",
        ),
        pytest.param(
            STANDING,
            [(1, 1, 0, 0, 10, 10), (2, 1, 0, 0, 10, 10), (2, 2, 50, 0, 10, 10)],
            (0.2**0.5, 0.4, 0.5, 1, 0.25, 4 / 7, 0, 1, 2),
            id="two misses and a false box",
        ),
        # IoU 0.5 is a match at ten of the nineteen thresholds, and one for MOTA and IDF1.
        pytest.param(
            STANDING,
            [(f, 7, 0, 0, 5, 10) for f in (1, 2, 3, 4)],
            (10 / 19, 10 / 19, 10 / 19, 14 / 19, 1, 1, 0, 0, 0),
            id="half boxes",
        ),
        pytest.param(
            STANDING[:2],
            [(1, 1, 0, 0, 10, 10), (2, 1, 0, 0, 6, 10), (2, 2, 0, 0, 10, 10)],
            (None, None, None, None, 0.5, 0.8, 0, 1, 0),
            id="a pair goes on though another overlaps more",
        ),
        pytest.param(STANDING, [], (0, 0, 0, 1, 0, 0, 0, 0, 4), id="nothing found"),
        pytest.param(STANDING[:1], [(2, 1, 0, 0, 9, 9)], (0, 0, 0, 1, -1, 0, 0, 1, 1), id="in another frame"),
    ],
)
def test_by_hand(truth: list, found: list, wanted: tuple) -> None:
    got = scores(table(*truth), table(*found))
    assert tuple(got) == NAMES
    for name, value in zip(NAMES, wanted, strict=True):
        assert value is None or got[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", RANDOM)
def test_equal_to_the_peers_on_random_tracks(seed: int) -> None:
    assert list(scores(*wandering(seed)).values()) == pytest.approx(RANDOM[seed], abs=1e-9)


@pytest.mark.shared_data
def test_equal_to_the_peers_on_pedestrians(shared_data: Path, tmp_path: Path) -> None:
    tracks = shared_data / "around/tracks"
    for name in ("TUD-Campus", "TUD-Stadtmitte"):
        (tmp_path / f"{name}.txt").write_bytes((tracks / name / "test.txt").read_bytes())
    told: list[str] = []
    facts = track_report(tmp_path, tracks, tell=told.append).facts
    for name, wanted in REAL.items():
        got = facts["metrics"] if name == "all" else facts["per_sequence"][name]
        assert list(got.values()) == pytest.approx(wanted, abs=1e-9), name
    assert told == []


@settings(max_examples=25)
@given(st.integers(100, 10**6))
def test_what_always_holds(seed: int) -> None:
    truth, found = wandering(seed)
    got, perfect = scores(truth, found), scores(truth, truth)
    assert [perfect[name] for name in NAMES] == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert all(0 <= got[name] <= 1 for name in ("HOTA", "DetA", "AssA", "LocA", "IDF1"))
    assert got["FN"] <= len(truth.id)
    # Names of tracks, order of rows, numbers of frames and the place in the image say nothing.
    order = np.random.default_rng(seed).permutation(len(found.id))
    other = MotTable(found.frame[order] * 3 + 5, 5000 - found.id[order], found.xywh[order] * 2, found.score[order])
    moved = MotTable(truth.frame * 3 + 5, truth.id + 9, truth.xywh * 2, truth.score)
    assert scores(moved, other) == pytest.approx(got, abs=1e-9)


def test_sums_of_sequences_are_those_of_one_after_the_other() -> None:
    pairs = [wandering(seed) for seed in (3, 4)]

    def joined(tables: list[MotTable]) -> MotTable:
        a, b = tables
        both = [np.concatenate(two) for two in ((a.frame, b.frame + 99), (a.id, b.id + 9999), (a.xywh, b.xywh))]
        return MotTable(*both, np.concatenate([a.score, b.score]))

    each = [track_sums(*pair) for pair in pairs]
    whole = scores(joined([truth for truth, _ in pairs]), joined([found for _, found in pairs]))
    assert track_scores({name: each[0][name] + each[1][name] for name in each[0]}) == pytest.approx(whole, abs=1e-12)


def test_what_is_not_asked_for_and_what_comes_too_late_is_said(tmp_path: Path) -> None:
    truth, found = tmp_path / "gt.txt", tmp_path / "tracks.txt"
    truth.write_text("1,1,0,0,9,9,1,1,1\n1,2,50,0,9,9,0,7,1\n2,1,0,0,9,9,1,1,1\n")
    found.write_text("1,4,0,0,9,9\n2,4,0,0,9,9\n3,4,0,0,9,9\n")
    told: list[str] = []
    report = track_report(found, truth, tell=told.append)
    assert told == [
        f"{truth}: 1 box with confidence 0 left out, of 3",
        f"{found}: 1 box after frame 2, the last labelled one, counted as wrong",
    ]
    assert report.facts["metrics"]["MOTA"] == 0.5
    assert [line.split()[0] for line in report.lines()] == ["HOTA", "all"]


@pytest.mark.parametrize(
    ("rows", "what", "where"),
    [
        ("1,2,0,0,9,9\n1,2,5,0,9,9\n", "more than one box", "frame 1, track 2"),
        ("1,-1,0,0,9,9\n", "no track", "frame 1, track -1"),
        ("3,2,0,0,9,0\n", "no area", "frame 3, track 2"),
        ("1,2,0,0,9\n", "not a row of MOT's", "line 1"),
        ("1,2.5,0,0,9,9\n", "not a row of MOT's", "line 1"),
        ("\n0,2,0,0,9,9\n", "not a row of MOT's", "line 2"),
        ('{"source": "a"}\n', "not a row of MOT's", "line 1"),
        ("1,2,0,0,9,9,0\n", "no track is labelled", "tracks.txt"),
        ("", "no track is labelled", "tracks.txt"),
    ],
)
def test_files_that_hold_no_tracks(tmp_path: Path, rows: str, what: str, where: str) -> None:
    (tmp_path / "tracks.txt").write_text(rows)
    with pytest.raises(DetkitError) as caught:
        read_tracks(tmp_path / "tracks.txt", labelled=True)
    assert what in caught.value.what
    assert where in caught.value.where
    assert caught.value.do
    assert caught.value.number
