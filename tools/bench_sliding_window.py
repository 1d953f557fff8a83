"""A classifier slid over an image as a convolution against cropping every window; and what windows cost and reach.

    python tools/bench_sliding_window.py [DATA --split val] [--rounds 3] [--crops 64]

First VGG16 on an image of 608 x 800, windows of 224 pixels at its stride of 32: one pass of the convolutionalized
network against the classifier on crops. ``--crops`` crops are measured, in turns with the pass, and extrapolated to all
windows. The network pads, so its scores on crops and in the image differ at the crops' borders; that they are equal
without padding is what the tests show. Then, with DATA (a labelled set), for several window sizes and strides:
windows an image, the seconds that cropping them would take at the measured rate, the recall of the labelled objects.
Set OMP_NUM_THREADS for the number of threads.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

import torch

from detkit.backbones.torchvision import vgg16
from detkit.data.dataset import Dataset, read
from detkit.devices import keep_freed_memory
from detkit.heads.sliding_window import convolutionalize
from detkit.metrics.proposals import RecallMeter
from detkit.proposals.windows import sliding_windows

HEIGHT, WIDTH, WINDOW, STRIDE = 608, 800, 224, 32
SIZES = ((128,), (64, 128, 256), (48, 96, 192, 384))
ASPECTS = ((1.0,), (0.5, 1.0, 2.0))
STRIDES = (0.5, 0.25, 0.125)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def speed(rounds: int, crops: int, batch: int) -> float:
    """Prints how much faster the one pass is, each side in its faster memory layout; returns the seconds of a crop."""
    torch.manual_seed(0)
    picture = torch.randn(1, 3, HEIGHT, WIDTH)
    windows = picture[0].unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE).permute(1, 2, 0, 3, 4)
    count = windows.shape[0] * windows.shape[1]
    chosen = windows.flatten(0, 1)[:crops]
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    classifier = vgg16(1000).eval()
    for layout in (torch.contiguous_format, torch.channels_last):
        net = copy.deepcopy(classifier).to(memory_format=layout)
        sliding = convolutionalize(net).to(memory_format=layout)
        whole, parts = (x.contiguous(memory_format=layout) for x in (picture, chosen))
        assert sliding(whole).shape[-2:] == windows.shape[:2]  # and warms up
        net(parts[:batch])
        name = str(layout).removeprefix("torch.")
        calls["pass", name] = lambda sliding=sliding, whole=whole: sliding(whole)
        calls["crops", name] = lambda net=net, parts=parts: [net(part) for part in parts.split(batch)]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(timed(call))
    best: list[dict[str, float]] = []
    for k in range(2):
        median = {key: statistics.median(pair[k] for pair in pairs) for key, pairs in times.items()}
        best.append({side: min(v for (name, _), v in median.items() if name == side) for side in ("pass", "crops")})
    each = best[0]["crops"] / len(chosen)
    ratios = [seconds["crops"] / len(chosen) * count / seconds["pass"] for seconds in best]
    rest = f"from {len(chosen)} crops in batches of {batch}, {each:.3f} s each"
    print(f"VGG16 on {HEIGHT} x {WIDTH}: {count} windows of {WINDOW} pixels, stride {STRIDE}")
    print(f"  one pass            {best[0]['pass']:8.2f} s")
    print(f"  all windows cropped {each * count:8.2f} s, {rest}")
    print(f"  the pass is {ratios[0]:.1f} times as fast (by CPU time {ratios[1]:.1f})", flush=True)
    return each


def trade_off(data: Dataset, each: float) -> None:
    """Prints windows, seconds and recall for ``SIZES``, ``ASPECTS`` and ``STRIDES``."""
    print(f"\n{len(data)} images; seconds if each window were cropped for VGG16 ({each:.3f} s)")
    print(
        f"{'sides':>16}  {'aspects':>10}  {'stride':>6}  {'windows':>8}  {'seconds':>8}  recall 0.5  mean best overlap"
    )
    samples = [data.load(i) for i in range(len(data))]
    images = [(sample.image.shape[:2], sample.target[~sample.target.ignore]) for sample in samples]
    for sides in SIZES:
        for aspects in ASPECTS:
            for stride in STRIDES:
                meter = RecallMeter((10**9,), (0.5,))
                for size, wanted in images:
                    windows = sliding_windows(size, windows=sides, aspects=aspects, stride=stride)
                    meter.add(wanted.boxes, wanted.labels, windows)
                (found,) = meter.results()
                names = " ".join(map(str, sides)), " ".join(f"{aspect:g}" for aspect in aspects)
                print(
                    f"{names[0]:>16}  {names[1]:>10}  {stride:6.3f}  {found['proposals']:8.0f}  "
                    f"{found['proposals'] * each:8.1f}  {found['recall@0.5']:10.3f}  {found['mabo']:17.3f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="a labelled set for the table")
    parser.add_argument("--split")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    keep_freed_memory()  # for both
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    each = speed(options.rounds, options.crops, options.batch)
    if options.data:
        data = Dataset(read(options.data, split=options.split))
        trade_off(data.subset(range(min(options.images, len(data)))), each)


if __name__ == "__main__":
    main()
