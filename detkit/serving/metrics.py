"""Counters in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate

import psutil

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Metrics:
    """What has been answered since the start."""

    def __init__(self) -> None:
        self.codes: Counter[int] = Counter()
        self.images = self.detections = 0
        self.batches = self.batched = 0
        self._slower = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    def count(self, code: int, seconds: float) -> None:
        """One request: its HTTP status and how long it took."""
        self.codes[code] += 1
        self._slower[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def count_batch(self, images: int) -> None:
        """One batch of so many images."""
        self.batches += 1
        self.batched += images

    def text(self, waiting: int) -> str:
        """All as text, with the images that are waiting now."""
        requests = "detkit_request_seconds"
        series = {
            ("detkit_requests_total", "counter"): {f'{{code="{code}"}}': n for code, n in sorted(self.codes.items())},
            ("detkit_images_total", "counter"): {"": self.images},
            ("detkit_detections_total", "counter"): {"": self.detections},
            ("detkit_batches_total", "counter"): {"": self.batches},
            ("detkit_batched_images_total", "counter"): {"": self.batched},
            ("detkit_waiting_images", "gauge"): {"": waiting},
            ("process_resident_memory_bytes", "gauge"): {"": psutil.Process().memory_info().rss},
            (requests, "histogram"): {
                f'_bucket{{le="{edge}"}}': n
                for edge, n in zip((*_BUCKETS, "+Inf"), accumulate(self._slower), strict=True)
            }
            | {"_sum": round(self._seconds, 6), "_count": sum(self._slower)},
        }
        lines = []
        for (name, kind), values in series.items():
            lines += [f"# TYPE {name} {kind}", *(f"{name}{label} {value}" for label, value in values.items())]
        return "\n".join(lines) + "\n"
