"""Time and peak memory of detkit's COCO reader against ``json.load``, each in a process of its own.

Make a file with tools/make_coco_json.py first. The reader's time is everything: decoding, checks and flat arrays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

_SNIPPET = """
import json, resource, sys, time
{imports}
path = sys.argv[1]
start, cpu = time.perf_counter(), time.process_time()
{work}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
# ru_maxrss is in kB on Linux, in bytes on macOS; pages of the map count where they are resident.
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps(dict(seconds=seconds, cpu=cpu, peak=peak, boxes=boxes)))
"""
READERS = {
    "json.load": _SNIPPET.format(
        imports="", work="data = json.load(open(path, encoding='utf-8')); boxes = len(data['annotations'])"
    ),
    "detkit": _SNIPPET.format(
        imports="from detkit.data.dataset import read", work="data = read(path); boxes = len(data.labels)"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--runs", type=int, default=1, help="the median of so many processes")
    options = parser.parse_args()
    medians = {}
    for name, code in READERS.items():
        runs = [
            json.loads(
                subprocess.run([sys.executable, "-c", code, options.path], check=True, capture_output=True).stdout
            )
            for _ in range(options.runs)
        ]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        medians[name] = middle
        print(
            f"{name:10s} {middle['seconds']:6.2f} s wall {middle['cpu']:6.2f} s CPU,"
            f" peak {middle['peak'] / 1e9:.2f} GB, {middle['boxes']:.0f} boxes"
        )
    slow, fast = medians["json.load"], medians["detkit"]
    print(f"ratio {slow['seconds'] / fast['seconds']:.1f} wall, {slow['cpu'] / fast['cpu']:.1f} CPU")


if __name__ == "__main__":
    main()
