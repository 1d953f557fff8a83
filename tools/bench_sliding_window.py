"""A classifier slid over a picture as a convolution against cropping every window; and what windows cost and reach.

    python tools/bench_sliding_window.py [DATA --split val] [--rounds 3] [--crops 64]

First VGG16 on a picture of 608 x 800, windows of 224 pixels at its stride of 32: one pass of the convolutionalized
network against the classifier on crops. ``--crops`` crops are measured, in turns with the pass, and extrapolated to all
windows. The network pads, so its scores on crops and in the picture differ at the crops' borders; that they are equal
without padding is what the tests show. Then, with DATA (a labelled set), for several window sizes and strides:
windows a picture, the seconds that cropping them would take at the measured rate, the recall of the labelled objects.
Set OMP_NUM_THREADS for the number of threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detkit.backbones.vgg import vgg16
from detkit.data.dataset import Dataset, read
from detkit.engine.runtime import keep_freed_memory
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
    """Prints how much faster the one pass is; returns the seconds of a crop."""
    torch.manual_seed(0)
    classifier = vgg16(1000).eval()
    sliding = convolutionalize(classifier)
    picture = torch.randn(1, 3, HEIGHT, WIDTH)
    windows = picture[0].unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE).permute(1, 2, 0, 3, 4)
    count = windows.shape[0] * windows.shape[1]
    chosen = windows.flatten(0, 1)[:crops].contiguous()
    scores = sliding(picture)
    assert scores.shape[-2:] == windows.shape[:2]

    def crop() -> list[Tensor]:
        return [classifier(part) for part in chosen.split(batch)]

    times: dict[str, list[tuple[float, float]]] = {"pass": [], "crops": []}
    classifier(chosen[:batch])  # warms up
    for _ in range(rounds):
        times["pass"].append(timed(lambda: sliding(picture)))
        times["crops"].append(timed(crop))
    wall, cpu = (
        {name: statistics.median(pair[k] for pair in pairs) for name, pairs in times.items()} for k in range(2)
    )
    each = wall["crops"] / len(chosen)
    ratios = [seconds["crops"] / len(chosen) * count / seconds["pass"] for seconds in (wall, cpu)]
    print(f"VGG16 on {HEIGHT} x {WIDTH}: {count} windows of {WINDOW} pixels, stride {STRIDE}")
    print(f"  one pass            {wall['pass']:8.2f} s")
    rest = f"from {len(chosen)} crops in batches of {batch}, {each:.3f} s each"
    print(f"  all windows cropped {each * count:8.2f} s, {rest}")
    print(f"  the pass is {ratios[0]:.1f} times as fast (by CPU time {ratios[1]:.1f})", flush=True)
    return each


def trade_off(data: Dataset, each: float) -> None:
    """Prints windows, seconds and recall for ``SIZES``, ``ASPECTS`` and ``STRIDES``."""
    print(f"\n{len(data)} pictures; seconds if each window were cropped for VGG16 ({each:.3f} s)")
    print(
        f"{'sides':>16}  {'aspects':>10}  {'stride':>6}  {'windows':>8}  {'seconds':>8}  recall 0.5  mean best overlap"
    )
    for sides in SIZES:
        for aspects in ASPECTS:
            for stride in STRIDES:
                meter = RecallMeter((10**9,), (0.5,))
                for i in range(len(data)):
                    image = data.load(i)
                    wanted = image.target[~image.target.ignore]
                    size = image.image.shape[:2]
                    meter.add(
                        wanted.boxes,
                        wanted.labels,
                        sliding_windows(size, windows=sides, aspects=aspects, stride=stride),
                    )
                (found,) = meter.results()
                names = " ".join(map(str, sides)), " ".join(f"{aspect:g}" for aspect in aspects)
                print(
                    f"{names[0]:>16}  {names[1]:>10}  {stride:6.3f}  {found.proposals:8.0f}  "
                    f"{found.proposals * each:8.1f}  {found.recall[0.5]:10.3f}  {found.mabo:17.3f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="a labelled set for the table")
    parser.add_argument("--split")
    parser.add_argument("--pictures", type=int, default=100)
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
        trade_off(data.subset(range(min(options.pictures, len(data)))), each)


if __name__ == "__main__":
    main()
