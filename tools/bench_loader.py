"""What loading costs: CPU milliseconds a photo with augmentation, and how close an epoch comes to the bare step rate.

    python tools/bench_loader.py DATA                    CPU ms a photo at 320 px, in one process, without any cache
    python tools/bench_loader.py DATA --train            also the step rate on one batch in memory, and with the loader
    python tools/bench_loader.py DATA --decoded          CPU ms a photo by epoch, with and without train.cache_images
    python tools/bench_loader.py DATA --epoch            one epoch: photos per second and memory in each fifth of it

DATA is a COCO json, a VOC folder or a YOLO data.yaml. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import psutil
import torch

from detkit.config.anchors import anchors_for
from detkit.config.build import build_detector
from detkit.config.experiment import read_config, shipped
from detkit.data.augment import Augment
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader
from detkit.data.resize import Resize
from detkit.engine.options import TrainOptions
from detkit.io.decoded import DecodedImages

FULL: dict[str, Any] = {"rotate": 10, "shear": 5, "warp": 0.1, "crop": 0.3, "noise": 15, "blur": 1, "grey": 0.05}


def cpu_per_photo(dataset: Dataset, augment: Augment, size: int, photos: int) -> float:
    """CPU milliseconds a photo of a batch, decoding, augmentation and collation counted."""
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)  # as in a worker
    torch.set_num_threads(1)
    with Loader(dataset, resize=Resize(size), augment=augment, batch=16, shuffle=True) as loader:
        batches = endless(loader)
        next(batches)
        start, seen = time.process_time(), 0
        while seen < photos:
            seen += len(next(batches)[0])
        spent = (time.process_time() - start) / seen
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])
    return spent * 1e3


def endless(loader: Loader) -> Iterator[Any]:
    """Batches epoch after epoch."""
    return itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())


def whole_epoch(dataset: Dataset, augment: Augment, size: int, batch: int, workers: int) -> None:
    """Prints, for each fifth of an epoch, photos per second and the memory of this process and of its workers."""
    this, parts = psutil.Process(), 5
    with Loader(dataset, resize=Resize(size), augment=augment, batch=batch, workers=workers, shuffle=True) as loader:
        begun = time.perf_counter()
        for number, _ in enumerate(loader.epoch(0), 1):
            if number % max(len(loader) // parts, 1) == 0 or number == 1:
                held = [process.memory_info().rss / 2**20 for process in (this, *this.children())]
                text = f"{held[0]:5.0f} MB here, workers {', '.join(f'{one:.0f}' for one in held[1:]) or 'none'}"
                rate = number * batch / (time.perf_counter() - begun)
                print(f"{number * batch:>8} photos {rate:8.1f} per second so far, {text}", flush=True)


def decoded_epochs(dataset: Dataset, size: int) -> None:
    """Prints CPU milliseconds a photo of three epochs, of images that are decoded each time and of kept ones."""
    with TemporaryDirectory() as folder:
        os.environ["DETKIT_CACHE"] = folder
        for name, data in (("decoded", dataset), ("kept", replace(dataset, decoded=DecodedImages(100, 1)))):
            with Loader(data, resize=Resize(size), augment=Augment(), batch=8, shuffle=True) as loader:
                next(loader.epoch(9))
                for epoch in range(3):
                    start = time.process_time()
                    seen = sum(len(batch) for batch, _ in loader.epoch(epoch))
                    spent = (time.process_time() - start) / seen * 1e3
                    print(f"{name:<8} epoch {epoch + 1} {spent:6.2f} ms of CPU a photo", flush=True)


def stepper(dataset: Dataset, config_name: str, size: int) -> tuple[Any, Any]:
    """A function that trains on one (batch, targets), and the configuration's augmentation."""
    from detkit.engine.trainer import Trainer

    config = read_config(shipped(config_name), [f"model.size={size}"], train_schema=TrainOptions)
    detector = build_detector(config, dataset.classes, anchors=anchors_for(config, dataset))
    trainer = Trainer(detector, dataset, None, config.train, run=Path("none"))
    trainer.build()
    device = trainer.runtime.device

    def train(batch: Any, targets: Any) -> None:
        trainer.step([(batch.to(device), [t.to(device) for t in targets])], 0)

    return train, Augment(**config.augment)


def photos_per_second(train: Any, batches: Iterable[Any], steps: int) -> float:
    """Photos a second over ``steps`` steps, after two that are not counted."""
    batches = iter(batches)
    for _ in range(2):
        train(*next(batches))
    start, seen = time.perf_counter(), 0
    for batch, targets in itertools.islice(batches, steps):
        train(batch, targets)
        seen += len(batch)
    return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--split", default="train", help="of DATA; empty: all of it")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--photos", type=int, default=320, help="photos for the loader's cost")
    parser.add_argument("--train", action="store_true", help="also measure steps")
    parser.add_argument("--epoch", action="store_true", help="only an epoch of the loader, with its memory")
    parser.add_argument("--decoded", action="store_true", help="only what keeping decoded images spares")
    parser.add_argument("--plain", action="store_true", help="with --epoch: no augmentation")
    parser.add_argument("--config", default="yolo", help="shipped configuration to train")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    dataset = Dataset(read(options.data, split=options.split or None))
    if options.decoded:
        return decoded_epochs(dataset.subset(range(min(options.photos, len(dataset)))), options.size)
    if options.epoch:
        return whole_epoch(
            dataset, Augment.off() if options.plain else Augment(), options.size, options.batch, options.workers
        )
    for name, augment in {
        "default augmentation": Augment(),
        "everything on, always a mosaic": Augment(**FULL, mosaic=1.0),
        "no augmentation": Augment.off(),
    }.items():
        augment.prepare()
        spent = cpu_per_photo(dataset, augment, options.size, options.photos)
        print(f"{name:<32} {spent:6.1f} ms of CPU a photo", flush=True)
    if not options.train:
        return
    train, augment = stepper(dataset, options.config, options.size)
    with Loader(
        dataset,
        resize=Resize(options.size),
        augment=augment,
        batch=options.batch,
        workers=options.workers,
        shuffle=True,
    ) as loader:
        batches = endless(loader)
        first = next(batches)
        loaded = photos_per_second(train, batches, options.steps)
    bare = photos_per_second(train, itertools.repeat(first), options.steps)
    print(f"{'bare step, data in memory':<32} {bare:6.1f} photos/s")
    print(f"{'epoch with the loader':<32} {loaded:6.1f} photos/s = {loaded / bare:.0%} of the bare rate")


if __name__ == "__main__":
    main()
