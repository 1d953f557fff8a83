"""Checks detkit on a GPU against the CPU, in minutes: boxes and regions, and every family. Says so where there is none.

    python tools/check_cuda.py [--device cuda]

Of each family: losses equal to the CPU's; four images learned by heart; losses fall in bf16 and fp16, channels-last and
under ``torch.compile``; the file it saves loads on the CPU and finds the same. One line per check; the exit code is
their failures' number. ``--device cpu`` tries the checks themselves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detkit
from detkit.data.dataset import Dataset, read
from detkit.data.loader import collate
from detkit.data.toy import write_toy_data
from detkit.ops.roi import roi_align, roi_pool

ROOT = Path(__file__).resolve().parents[1]


def families() -> Any:
    """What the tests of the families are made of."""
    spec = spec_from_file_location("families", ROOT / "tests" / "test_families.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Checks:
    """Runs checks and counts those that fail."""

    def __init__(self) -> None:
        self.begun, self.failed = time.perf_counter(), 0

    def __call__(self, name: str, check: Callable[[], tuple[bool, object]]) -> None:
        """A check returns whether it holds, and what it measured."""
        try:
            holds, measured = check()
        except Exception:
            holds, measured = False, traceback.format_exc(limit=-3)
        self.failed += not holds
        print(
            f"{'ok' if holds else 'FAIL':<5}{name}: {measured} [{time.perf_counter() - self.begun:.0f} s]", flush=True
        )


def check_ops(check: Checks, device: str) -> None:
    """Functions on boxes and regions, against the CPU."""
    random = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2000, 2, generator=random) * 600, torch.rand(2000, 2, generator=random) * 99 + 1
    boxes, scores = torch.cat([corner, corner + side], 1), torch.rand(2000, generator=random)
    labels, maps = torch.randint(0, 20, (2000,), generator=random), torch.randn(2, 16, 38, 50, generator=random)
    rois = torch.cat([torch.randint(0, 2, (2000, 1), generator=random).float(), boxes], 1)[:200]
    calls: dict[str, Callable[[str], torch.Tensor]] = {
        "iou": lambda d: detkit.iou(boxes.to(d), boxes[:300].to(d)),
        "giou": lambda d: detkit.giou(boxes.to(d), boxes[:300].to(d)),
        "nms": lambda d: detkit.nms(boxes.to(d), scores.to(d), 0.5),
        "batched_nms": lambda d: detkit.batched_nms(boxes.to(d), scores.to(d), labels.to(d), 0.5),
        "roi_pool": lambda d: roi_pool(maps.to(d), rois.to(d), (7, 7), 1 / 16),
        "roi_align": lambda d: roi_align(maps.to(d), rois.to(d), (7, 7), 1 / 16),
    }

    def compared(call: Callable[[str], torch.Tensor]) -> tuple[bool, object]:
        here, there = call("cpu").double(), call(device)
        if here.shape != there.shape:
            return False, (here.shape, there.shape)
        return there.device.type == device and torch.allclose(here, there.cpu().double(), atol=1e-4), here.shape

    for name, call in calls.items():
        check(name, lambda call=call: compared(call))


def check_family(check: Checks, name: str, tests: Any, data: Dataset, folder: Path, device: str) -> None:
    """One family of detectors."""
    model = tests.make(name)
    seen = model.reads(data)
    batch, targets = collate([seen.load(i) for i in range(4)], model.resize)
    moved = batch.to(device), [target.to(device) for target in targets]

    def losses(one: Any, there: bool, dtype: torch.dtype | None = None) -> float:
        pair = moved if there else (batch, targets)
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            return float(tests.total(one(*pair)).detach())

    def equal() -> tuple[bool, object]:
        with torch.no_grad():
            here, there = losses(tests.make(name).eval(), False), losses(tests.make(name).to(device).eval(), True)
        return abs(here - there) <= 0.02 * abs(here), f"{here:.4f} and {there:.4f}"

    def learned() -> tuple[bool, object]:
        trained = model.to(device)
        before = losses(trained, True)
        tests.learn(trained, [moved], tests.STEPS[name])
        after = losses(trained, True)
        return after < 0.5 * before, f"{before:.3f} to {after:.3f}"

    def saved() -> tuple[bool, object]:
        model.eval().save(folder / f"{name}.safetensors")
        loaded, image = detkit.load(folder / f"{name}.safetensors", device="cpu"), data.load(0).image
        here, there = loaded.predict(image, conf=0.3), model.predict(image, conf=0.3)
        same = len(here) == len(there) and np.allclose(here.boxes, there.boxes, atol=0.5)
        return same, f"{len(here)} and {len(there)} boxes"

    def falls(dtype: torch.dtype | None, compiled: bool) -> tuple[bool, object]:
        one = tests.make(name).to(device).to(memory_format=torch.channels_last).train()
        call, optimizer = torch.compile(one) if compiled else one, torch.optim.AdamW(one.parameters(), 1e-3)
        found = []
        for _ in range(8):
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = tests.total(call(*moved))
            optimizer.zero_grad()
            (loss * (128 if dtype is torch.float16 else 1)).backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found[-1] < found[0], f"{found[0]:.3f} to {found[-1]:.3f}"

    check(f"{name}, losses", equal)
    check(f"{name}, learned by heart", learned)
    check(f"{name}, its file on the CPU", saved)
    for dtype in (torch.bfloat16, torch.float16):
        if device == "cuda":
            check(f"{name}, {dtype}", lambda dtype=dtype: falls(dtype, False))
    if device == "cuda" and name in ("yolo", "anchor-free"):
        check(f"{name}, compiled", lambda: falls(None, True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU is here, so nothing was checked")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    check, tests = Checks(), families()
    check_ops(check, device)
    with tempfile.TemporaryDirectory() as place:
        data = Dataset(read(write_toy_data(Path(place), train=8, val=4, size=96), split="train"))
        for name in tests.FAMILIES:
            check_family(check, name, tests, data, Path(place), device)
    print(f"{check.failed} failed")
    return check.failed


if __name__ == "__main__":
    sys.exit(main())
