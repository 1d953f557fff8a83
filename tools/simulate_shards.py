"""A cluster on paper: shards, workers that are slow or die, a store that stalls; by the rule of ``detkit.sharding``.

    python tools/simulate_shards.py [--shards 1000] [--workers 100] [--seed 0] [--minutes 5]

A shard takes about ``--minutes``. A twentieth of the workers is six times as slow, from the start to the end; each
worker dies once in twenty hours on average, comes back after ten minutes, and what it had under way is made anew; for
half an hour the store is four times as slow for everyone. Three ways of handing out: fixed parts (``--part k/N``), a
queue (as Ray's), and the queue that makes a late shard a second time (``--workers N``). Nothing is detected.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from detkit.sharding import next_shard

SLOW_SHARE, SLOW_FACTOR = 0.05, 6.0
MEAN_LIFE, AWAY = 20 * 60.0, 10.0  # minutes
STALL, STALL_FACTOR = (20.0, 50.0), 4.0  # when, in minutes from the start, and how much slower


@dataclass(frozen=True)
class Outcome:
    """Of one simulated run.

    Attributes:
        minutes: Until the last shard was there.
        tail: Minutes of these in which nothing was left to hand out.
        deaths: Of workers.
        started: Shards that a worker began, again and again counted.
        under_way: Of these, how many were still being made at the end.
        finished: How often each shard was finished.
        usual: The median time of one.
    """

    minutes: float
    tail: float
    deaths: int
    started: int
    under_way: int
    finished: Counter[int]
    usual: float


def simulate(shards: int, workers: int, minutes: float, seed: int, policy: str) -> Outcome:
    """One run.

    Args:
        shards: How many.
        workers: How many.
        minutes: Median time of a shard.
        seed: Of speeds, times and deaths, the same for every policy.
        policy: ``parts``, ``queue`` or ``re-issue``.
    """
    rng = np.random.default_rng(seed)
    length = minutes * rng.lognormal(0.0, 0.2, shards)
    pace = np.where(rng.random(workers) < SLOW_SHARE, SLOW_FACTOR, 1.0)
    dies = [np.cumsum(rng.exponential(MEAN_LIFE, 50)) for _ in range(workers)]
    own = [deque(range(w, shards, workers)) if policy == "parts" else deque[int]() for w in range(workers)]
    queue = deque(range(shards) if policy != "parts" else ())
    busy: dict[int, tuple[None, int, float]] = {}
    times: list[float] = []
    made, deaths, started, now, empty = Counter[int](), 0, 0, 0.0, 0.0
    events = [(0.0, w, "free") for w in range(workers)]
    while len(made) < shards:
        now, worker, what = heapq.heappop(events)
        if what == "done":
            _, number, begun = busy.pop(worker)
            times.append(now - begun)
            made[number] += 1
        elif what == "dead":
            _, number, _ = busy.pop(worker)
            deaths += 1
            if number not in made and all(number != other for _, other, _ in busy.values()):
                (own[worker] if policy == "parts" else queue).append(number)
            heapq.heappush(events, (now + AWAY, worker, "free"))
            continue
        waiting = own[worker] if policy == "parts" else queue
        if policy == "re-issue":
            number = next_shard(waiting, {w: one for w, one in busy.items() if one[1] not in made}, times, now)
        else:
            number = waiting.popleft() if waiting else None
        if not queue and not any(own) and not empty:
            empty = now
        if number is None:  # looks again in half a minute
            heapq.heappush(events, (now + 0.5, worker, "free"))
            continue
        busy[worker] = (None, int(number), now)
        started += 1
        ends = _end(now, length[number] * pace[worker])
        death = next((when for when in dies[worker] if when > now), np.inf)
        heapq.heappush(events, (min(ends, death), worker, "done" if ends <= death else "dead"))
    return Outcome(now, now - empty, deaths, started, len(busy), made, float(np.median(times)))


def _end(begin: float, work: float) -> float:
    """When ``work`` minutes are done that begin then, the store being slow for a while."""
    first, last = STALL
    before = max(0.0, first - begin)
    if work <= before or begin >= last:
        return begin + work
    work, now = work - before, max(begin, first)
    slow = (last - now) / STALL_FACTOR
    return now + work * STALL_FACTOR if work <= slow else last + (work - slow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("policy     minutes  tail  deaths  started  shards there")
    for policy in ("parts", "queue", "re-issue"):
        one = simulate(given.shards, given.workers, given.minutes, given.seed, policy)
        figures = f"{one.minutes:7.1f} {one.tail:5.1f} {one.deaths:7d} {one.started:8d} {len(one.finished):13d}"
        print(f"{policy:<10} {figures}")


if __name__ == "__main__":
    main()
