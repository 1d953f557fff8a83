"""Worker processes run the kernels after the parent used threads. Imports stay few: a spawned worker repeats them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue

import numpy as np
import pytest

from detkit.ops import batched_nms, boxes, compiled, iou, kmeans_anchors, nms

SIDE = 2100  # SIDE x SIDE entries are more than the number from which IoU uses threads


def results() -> tuple[float, int, int, float]:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 640, (SIDE, 2))
    a = np.concatenate([corners, corners + rng.uniform(5, 100, (SIDE, 2))], 1).astype(np.float32)
    scores, labels = rng.random(SIDE).astype(np.float32), rng.integers(0, 5, SIDE)
    anchors = kmeans_anchors(a[:, 2:] - a[:, :2], 3, restarts=1)
    kept, per_class = nms(a, scores, 0.5), batched_nms(a, scores, labels, 0.5)
    return float(iou(a, a).sum(dtype=np.float64)), int(kept.sum()), int(per_class.sum()), float(anchors.sum())


def work(queue: Queue) -> None:
    queue.put((results(), compiled.thread_count()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_worker_processes_after_a_threaded_call(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with monkeypatch.context() as patch:
        patch.setattr(boxes, "thread_count", lambda: 2)
        expected = results()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    assert queue.get(timeout=600) == (expected, 1)
    worker.join(timeout=600)
    assert worker.exitcode == 0
