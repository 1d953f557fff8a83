"""RoI align and RoI pooling against torchvision: features 1 x 512 x 38 x 50, 2000 regions, 7 x 7, float32 on the CPU.

Both sides are timed as operators through autograd, in turns; ours reads and writes channels_last strides, torchvision's
gets the layout it is faster with. The rows "converted" start from and end in contiguous NCHW tensors, so they pay both
conversions; the last row is a whole RoIHead (pooling, two fully connected layers of 1024, scores and boxes) with ours
and with torchvision's operator in its place.

    python tools/bench_roi.py [--rounds 5] [--regions 2000]     set OMP_NUM_THREADS for the number of threads
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from detkit.devices import keep_freed_memory
from detkit.heads import pooling
from detkit.heads.roi import RoIHead
from detkit.ops.roi import roi_align, roi_pool

Op = Callable[[Tensor], Tensor]


def boxes_of(count: int) -> Tensor:
    """(count, 5) regions of an image of 600 x 800: log-normal sides around 110 pixels."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([800.0, 600.0])
    sides = torch.exp(4.7 + 0.7 * torch.randn(count, 2, generator=generator))
    corners = torch.cat((centre - sides / 2, centre + sides / 2), dim=1)
    corners = corners.clamp(min=0).minimum(torch.tensor([799.0, 599.0, 799.0, 599.0]))
    return torch.cat((torch.zeros(count, 1), corners), dim=1)


def forward(op: Op, x: Tensor) -> Callable[[], object]:
    with_gradient = x.clone(memory_format=torch.preserve_format).requires_grad_()
    return lambda: op(with_gradient)


def both(op: Op, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    with_gradient = x.clone(memory_format=torch.preserve_format).requires_grad_()

    def call() -> None:
        with_gradient.grad = None
        op(with_gradient).backward(gradient)

    return call


def compare(title: str, theirs: dict[str, Callable[[], object]], ours: Callable[[], object], rounds: int) -> None:
    """Prints medians and the ratio to the fastest of ``theirs``, of wall time and of CPU time."""
    candidates = {**theirs, "detkit": ours}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_of, cpu_of = ({n: statistics.median(t[k] for t in ts) for n, ts in times.items()} for k in range(2))
    best = min(theirs, key=lambda name: cpu_of[name])
    print(
        f"{title:34} torchvision {wall_of[best] * 1e3:8.0f} ms ({best:13})  detkit {wall_of['detkit'] * 1e3:7.0f} ms"
        f"  {wall_of[best] / wall_of['detkit']:5.1f} x as fast  (CPU time {cpu_of[best] / cpu_of['detkit']:5.1f} x)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--regions", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    keep_freed_memory()  # as training does, for both
    rois, scale = boxes_of(options.regions), 1 / 16
    torch.manual_seed(0)
    x = {"contiguous": torch.randn(1, 512, 38, 50)}
    x["channels_last"] = x["contiguous"].contiguous(memory_format=torch.channels_last)
    gradient = {"contiguous": torch.randn(options.regions, 512, 7, 7)}
    gradient["channels_last"] = gradient["contiguous"].contiguous(memory_format=torch.channels_last)
    tv = torchvision.ops
    pairs: dict[str, tuple[Op, Op]] = {
        "roi_align, sampling 2": (
            lambda f: tv.roi_align(f, rois, 7, scale, 2, True),
            lambda f: roi_align(f, rois, 7, scale, 2),
        ),
        "roi_align, adaptive": (
            lambda f: tv.roi_align(f, rois, 7, scale, -1, True),
            lambda f: roi_align(f, rois, 7, scale, 0),
        ),
        "roi_pool": (lambda f: tv.roi_pool(f, rois, 7, scale), lambda f: roi_pool(f, rois, 7, scale)),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, torchvision {torchvision.__version__}")
    for name, (theirs, ours) in pairs.items():
        error = (theirs(x["contiguous"]) - ours(x["contiguous"])).abs().max().item()
        last = "channels_last"
        compare(
            f"{name}, forward",
            {layout: forward(theirs, f) for layout, f in x.items()},
            forward(ours, x[last]),
            options.rounds,
        )
        compare(
            f"{name}, forward + backward",
            {layout: both(theirs, f, gradient[layout]) for layout, f in x.items()},
            both(ours, x[last], gradient[last]),
            options.rounds,
        )

        def converted(f: Tensor, ours: Op = ours) -> Tensor:
            return ours(f.contiguous(memory_format=torch.channels_last)).contiguous()

        compare(
            "  the same, converted",
            {"contiguous": both(theirs, x["contiguous"], gradient["contiguous"])},
            both(converted, x["contiguous"], gradient["contiguous"]),
            options.rounds,
        )
        print(f"  largest difference {error:.1e}")
    whole_head(x, rois, scale, options.rounds)


def whole_head(x: dict[str, Tensor], rois: Tensor, scale: float, rounds: int) -> None:
    """A whole head in training, its pooling replaced by torchvision's for the comparison."""
    head = RoIHead([512], [16], 20, layers="mlp", chunk=len(rois))

    def step(op: Callable[..., Tensor], f: Tensor) -> Callable[[], object]:
        with_gradient = f.clone(memory_format=torch.preserve_format).requires_grad_()

        def call() -> None:
            pooling.roi_align = op  # type: ignore[assignment]
            raw = head.raw([with_gradient], [rois[:, 1:]])
            (raw["classes"].sum() + raw["boxes"].sum()).backward()
            pooling.roi_align = roi_align

        return call

    def theirs(f: Tensor, boxes: Tensor, size: int, scale: float, sampling: int, aligned: bool) -> Tensor:
        return torchvision.ops.roi_align(f, boxes, size, scale, sampling or -1, aligned)

    candidates = {layout: step(theirs, f) for layout, f in x.items()}
    compare("RoIHead, forward + backward", candidates, step(roi_align, x["channels_last"]), rounds)


if __name__ == "__main__":
    main()
