"""detkit's tracker against roboflow/trackers on the same detections: HOTA, IDF1, switches, and its speed.

    python tools/track_gain.py --peer-python PEER/bin/python [GT.txt ...]      # PEER holds: pip install trackers
    python tools/track_gain.py --peer-python PEER/bin/python --crowds 10 --first 100    # mild ones of 20, one by one

Detections are made of ground truth (MOT txt at 25 frames a second, and crowds of people who walk about and hide each
other): boxes jittered, hidden ones weak or missing, some missed for no reason, false boxes, all seeded. A peer runs
with its own thresholds and with detkit's; the better HOTA of the two counts. Times are of the CPU. Exit code 1 where
detkit's mean HOTA or IDF1 is below a peer's, or it is less than WANTED times as fast as ByteTrack.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WANTED = 5.0  # times ByteTrack's speed, with 50 objects
HIGH, LOST = 0.5, 2.0  # of detkit: score from which tracks begin; seconds that a track outlives its last detection
PEERS = {"ByteTrack": "ByteTrackTracker", "OC-SORT": "OCSORTTracker"}
Rows = np.ndarray  # (N, 7): frame from 1, track (or -1), left, top, width, height, score
LEVELS = {
    "mild": {"jitter": 0.03, "missed": 0.05, "false": 0.5},
    "rough": {"jitter": 0.08, "missed": 0.2, "false": 3.0},
}


def crowd(people: int, frames: int, seed: int) -> Rows:
    """People who wander through 1280 x 720 pixels, the lower the larger and the nearer."""
    rng = np.random.default_rng(seed)
    feet, speed = rng.uniform([0, 200], [1280, 720], (people, 2)), rng.normal(0, 3, (people, 2)) * [1, 0.3]
    rows = []
    for frame in range(1, frames + 1):
        speed = 0.98 * speed + rng.normal(0, 0.5, speed.shape) * [1, 0.3]
        feet = feet + speed
        outside = (feet < [0, 200]) | (feet > [1280, 720])
        speed[outside] *= -1
        feet = np.clip(feet, [0, 200], [1280, 720])
        height = feet[:, 1] / 4
        boxes = np.stack([feet[:, 0] - 0.2 * height, feet[:, 1] - height, 0.4 * height, height], 1)
        rows.append(np.column_stack([np.full(people, frame), np.arange(people), boxes, np.ones(people)]))
    return np.concatenate(rows)


def hidden(boxes: np.ndarray) -> np.ndarray:
    """The largest part of each box (left, top, width, height) that one standing nearer covers."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    part = sides.clip(0).prod(2) / boxes[:, 2:].prod(1)[:, None]
    return np.where(high[:, 1] > high[:, None, 1], part, 0).max(1)


def detections(truth: Rows, seed: int, *, jitter: float, missed: float, false: float) -> Rows:
    """What a detector might say: ``jitter`` of a box's size, ``missed`` of the objects, ``false`` boxes a frame."""
    rng = np.random.default_rng(seed)
    found = []
    for frame in np.unique(truth[:, 0]):
        rows = truth[truth[:, 0] == frame].copy()
        covered = hidden(rows[:, 2:6])
        rows[:, 2:6] += rng.normal(0, jitter, (len(rows), 4)) * rows[:, [4, 5, 4, 5]]
        rows[:, 1], rows[:, 6] = -1, rng.normal(0.8, 0.1, len(rows)).clip(0.3, 0.99) * (1 - 0.7 * covered)
        rows = rows[(rng.random(len(rows)) >= missed) & (covered < 0.7)]
        ghosts = truth[rng.integers(0, len(truth), rng.poisson(false))].copy()
        ghosts[:, 0], ghosts[:, 1], ghosts[:, 6] = frame, -1, rng.uniform(0.1, 0.7, len(ghosts))
        ghosts[:, 2:4] += rng.normal(0, 1, (len(ghosts), 2)) * ghosts[:, 4:6]
        found.append(np.concatenate([rows, ghosts]))
    rows = np.concatenate(found)
    return rows[(rows[:, 4:6] > 1).all(1)]


def by_frame(found: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number, corners of the boxes, scores of each frame, also of those without a box."""
    for frame in range(1, int(found[:, 0].max()) + 1):
        rows = found[found[:, 0] == frame]
        yield frame, np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], 1), rows[:, 6]


def rows_of(frame: int, ids: np.ndarray, corners: np.ndarray) -> Rows:
    """The rows of one frame's tracks."""
    sizes = corners[:, 2:] - corners[:, :2]
    return np.column_stack([np.full(len(ids), frame), ids, corners[:, :2], sizes, np.ones(len(ids))])


def ours(found: list[Rows], fps: list[float]) -> tuple[list[Rows], list[float]]:
    """detkit's tracks of each set of detections, and the seconds that it took."""
    from detkit import Detections, Tracker

    tracks, seconds = [], []
    for rows, rate in zip(found, fps, strict=True):
        given = [
            Detections(corners.astype(np.float32), scores.astype(np.float32), np.zeros(len(scores), np.int64))
            for _, corners, scores in by_frame(rows)
        ]
        tracker, start = Tracker(fps=rate, high=HIGH, lost=LOST), time.process_time()
        tracked = [tracker.update(one) for one in given]
        seconds.append(time.process_time() - start)
        parts = [rows_of(i + 1, one.extra["track_id"], one.boxes.astype(float)) for i, one in enumerate(tracked)]
        tracks.append(np.concatenate(parts))
    return tracks, seconds


def theirs(python: str, name: str, own: bool, found: list[Rows], fps: list[float]) -> tuple[list[Rows], list[float]]:
    """A peer's, in its environment, with its own thresholds or detkit's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npz")
        np.savez(path, fps=fps, **{f"{i}": rows for i, rows in enumerate(found)})
        subprocess.run([python, __file__, "--peer", name, *(["--own"] if own else []), str(path)], check=True)
        with np.load(path) as answers:
            return [answers[f"{i}"] for i in range(len(found))], answers["seconds"].tolist()


def peer(name: str, own: bool, path: Path) -> None:
    """Runs in the peer's environment: replaces detections by tracks."""
    import supervision
    import trackers

    usual = {"lost_track_buffer": round(LOST * 30), "high_conf_det_threshold": HIGH}
    if name == "ByteTrack":
        usual["track_activation_threshold"] = HIGH
    answers, seconds = {}, []
    with np.load(path) as asked:
        for i, fps in enumerate(asked["fps"]):
            tracker = getattr(trackers, PEERS[name])(frame_rate=float(fps), **({} if own else usual))
            given = [
                supervision.Detections(corners, confidence=scores, class_id=np.zeros(len(scores), int))
                for _, corners, scores in by_frame(asked[f"{i}"])
            ]
            start = time.process_time()
            tracked = [tracker.update(one) for one in given]
            seconds.append(time.process_time() - start)
            parts = [rows_of(k + 1, one.tracker_id, one.xyxy)[one.tracker_id >= 0] for k, one in enumerate(tracked)]
            answers[f"{i}"] = np.concatenate(parts)
    np.savez(path, seconds=seconds, **answers)


def scores(truth: Rows, tracks: Rows) -> dict[str, float]:
    """HOTA, IDF1 and switches."""
    from detkit.io.detections.mot import MotTable
    from detkit.metrics.tracks import track_scores, track_sums

    tables = [MotTable(r[:, 0].astype(int), r[:, 1].astype(int), r[:, 2:6], r[:, 6]) for r in (truth, tracks)]
    got = track_scores(track_sums(*tables))
    return {name: got[name] for name in ("HOTA", "IDF1", "IDSW")}


def compare(python: str, files: list[Path], seeds: int) -> bool:
    """Prints the table; True if detkit's means over all of it are not below a peer's."""
    from detkit.io.detections.mot import read_tracks

    scenes: list[tuple[str, Rows, float]] = []
    for file in files:
        table, _ = read_tracks(file, labelled=True)
        rows = np.column_stack([table.frame, table.id, table.xywh, table.score])
        scenes.append((f"{file.parent.name}/{file.name}", rows, 25.0))
    scenes += [(f"crowd of {n}", crowd(n, 300, n), 30.0) for n in (10, 30)]
    cases = [(scene, level, seed) for scene in scenes for level in LEVELS for seed in range(seeds)]
    found = [detections(truth, seed, **LEVELS[level]) for (_, truth, _), level, seed in cases]
    rates = [fps for (_, _, fps), _, _ in cases]
    tracks = {"detkit": [ours(found, rates)[0]]}
    tracks |= {name: [theirs(python, name, own, found, rates)[0] for own in (True, False)] for name in PEERS}
    total: dict[str, list[float]] = {who: [0.0, 0.0] for who in tracks}
    for first in range(0, len(cases), seeds):
        (name, truth, _), level, _ = cases[first]
        means = {}
        for who, settings in tracks.items():
            each = [[scores(truth, one) for one in runs[first : first + seeds]] for runs in settings]
            sums = [{key: statistics.mean(one[key] for one in runs) for key in runs[0]} for runs in each]
            means[who] = max(sums, key=lambda one: one["HOTA"])
        text = "; ".join(f"{who} {m['HOTA']:.3f} {m['IDF1']:.3f} {m['IDSW']:.1f}" for who, m in means.items())
        print(f"{name}, {level}: HOTA IDF1 IDSW: {text}", flush=True)
        for who, m in means.items():
            total[who] = [total[who][0] + m["HOTA"] / len(LEVELS), total[who][1] + m["IDF1"] / len(LEVELS)]
    print("means: " + "; ".join(f"{who} {h / len(scenes):.3f} {f / len(scenes):.3f}" for who, (h, f) in total.items()))
    return all(total["detkit"][k] >= total[who][k] for who in PEERS for k in range(2))


def crowds(python: str, count: int, first: int) -> None:
    """Prints how detkit differs from ByteTrack on mild crowds of 20, and the mean with its interval of 95 %."""
    from scipy.stats import t as student

    seeds = range(first, first + count)
    truths = [crowd(20, 300, seed) for seed in seeds]
    found = [detections(truth, seed, **LEVELS["mild"]) for truth, seed in zip(truths, seeds, strict=True)]
    rates = [30.0] * count
    runs = [ours(found, rates)[0], *(theirs(python, "ByteTrack", own, found, rates)[0] for own in (True, False))]
    detkit, *peer = [[scores(*pair) for pair in zip(truths, tracks, strict=True)] for tracks in runs]
    bytetrack = max(peer, key=lambda run: statistics.mean(one["HOTA"] for one in run))
    for key in ("HOTA", "IDF1", "IDSW"):
        here, there = (np.array([one[key] for one in run]) for run in (detkit, bytetrack))
        apart, spread = here - there, student.ppf(0.975, count - 1) * (here - there).std(ddof=1) / np.sqrt(count)
        means = f"detkit {here.mean():.3f}, ByteTrack {there.mean():.3f}"
        print(f"{key}: {means}, apart {apart.mean():+.3f} ± {spread:.3f}, {apart.min():+.3f} to {apart.max():+.3f}")


def speed(python: str) -> bool:
    """Prints the time of a frame with 50 objects, taking turns; True if detkit is fast enough."""
    found, fps = [detections(crowd(50, 300, 0), 0, **LEVELS["mild"])], [30.0]
    times: dict[str, list[float]] = {}
    for _ in range(5):
        times.setdefault("detkit", []).append(ours(found, fps)[1][0])
        for name in PEERS:
            times.setdefault(name, []).append(theirs(python, name, False, found, fps)[1][0])
    each = {name: 1000 * statistics.median(seconds) / 300 for name, seconds in times.items()}
    print("ms per frame with 50 objects: " + ", ".join(f"{name} {ms:.2f}" for name, ms in each.items()))
    return each["ByteTrack"] >= WANTED * each["detkit"]


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--crowds", type=int, help="so many crowds of 20 instead of all that")
    parser.add_argument("--first", type=int, default=100, help="seed of the first crowd")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        peer(given.peer, given.own, given.files[0])
        return 0
    if given.crowds:
        crowds(given.peer_python, given.crowds, given.first)
        return 0
    fast, good = speed(given.peer_python), compare(given.peer_python, given.files, given.seeds)
    return int(not (fast and good))


if __name__ == "__main__":
    sys.exit(main())
