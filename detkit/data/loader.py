"""Samples to batches, in worker processes beside training.

What a batch holds is a function of (seed, epoch, position in the epoch) alone: the number of workers, the start
method, a resumed epoch and the number of processes change nothing.
"""

from __future__ import annotations

import ast
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset
from detkit.data.resize import Resize, moved_target
from detkit.data.sampler import EpochSampler, Slots, repeat_factors
from detkit.errors import DetkitError
from detkit.structures import Batch, Sample, Target

_ATTEMPTS = 10


def collate(samples: Sequence[Sample], resize: Resize) -> tuple[Batch, list[Target]]:
    """One batch of ``resize.input_size``, and its targets in input pixels (torch, CPU).

    ``Batch.pixels`` is (B, 3, H, W) uint8 in channels_last strides: each image is written once, straight into its
    place. Boxes are those of the samples, moved with their images; sizes are the contents' (height, width).

    Args:
        samples: Of any sizes.
        resize: The model's.
    """
    return _unpacked(*_packed(samples, resize))


def _packed(samples: Sequence[Sample], resize: Resize) -> tuple[Batch, list[Target]]:
    """A batch on its way out of a worker: only the pixels are a tensor, which travels as shared memory, the small
    arrays are copied."""
    pixels = torch.empty((len(samples), *resize.input_size, 3), dtype=torch.uint8)
    places = zip(samples, pixels.numpy(), strict=True)
    restore = tuple(resize(sample.image, out=place)[1] for sample, place in places)
    sizes: Any = np.array([resize.content(*s.image.shape[:2]) for s in samples], dtype=np.int64).reshape(-1, 2)
    proposals: Any = None
    if any(sample.proposals is not None for sample in samples):
        nothing = np.zeros((0, 4), np.float32)
        boxes = [nothing if sample.proposals is None else sample.proposals for sample in samples]
        proposals = [geometry.to_input(found) for geometry, found in zip(restore, boxes, strict=True)]
    ids, paths = tuple(s.image_id for s in samples), tuple(s.path for s in samples)
    targets = [moved_target(sample.target, geometry) for sample, geometry in zip(samples, restore, strict=True)]
    return Batch(pixels.permute(0, 3, 1, 2), sizes, restore, ids, paths, proposals), targets


def _unpacked(batch: Batch, targets: list[Target]) -> tuple[Batch, list[Target]]:
    return batch.to("cpu"), [target.to("cpu") for target in targets]


class _Task(NamedTuple):
    epoch: int
    mosaic: bool
    slots: Slots


@dataclass
class _Result:
    packed: tuple[Batch, list[Target]] | None = None
    failures: list[DetkitError] = field(default_factory=list)
    fatal: DetkitError | None = None

    def pin_memory(self) -> _Result:
        if self.packed is not None:
            batch, targets = self.packed
            self.packed = replace(batch, pixels=batch.pixels.pin_memory()), targets
        return self


@dataclass
class _Reader:
    """Turns a task into a packed batch; lives in the workers, so it holds nothing that changes."""

    dataset: Dataset
    resize: Resize
    augment: Augment | None
    seed: int
    training: bool

    def __getitem__(self, task: _Task) -> _Result:
        result = _Result()
        try:
            found = [self._sample(task, position, index, result.failures) for position, index in task.slots]
            samples = [sample for sample in found if sample is not None]
            result.packed = _packed(samples, self.resize) if samples else None
        except DetkitError as error:
            result.fatal = error
        except MemoryError:
            what = "there was not enough memory to load a batch"
            result.fatal = DetkitError(what, do="lower train.batch or train.workers", code=4)
        return result

    def _sample(self, task: _Task, position: int, index: int, failures: list[DetkitError]) -> Sample | None:
        rng = np.random.default_rng([self.seed, task.epoch, position])
        reduce_to = None if self.augment is None else self.augment.reduce_to(self.resize)

        def draw() -> Sample:
            for _ in range(_ATTEMPTS):
                sample = self._load(int(rng.integers(len(self.dataset))), reduce_to, failures)
                if sample is not None:
                    return sample
            last = failures[-1]
            raise DetkitError(f"{_ATTEMPTS} images in a row cannot be read: {last.what}", last.where, last.do)

        sample = self._load(index, reduce_to, failures)
        if sample is None and self.training:
            sample = draw()
        if sample is None or self.augment is None:
            return sample
        return self.augment(sample, rng, self.resize, draw if task.mosaic else None)

    def _load(self, index: int, reduce_to: int | None, failures: list[DetkitError]) -> Sample | None:
        try:
            return self.dataset.load(index, reduce_to=reduce_to)
        except DetkitError as error:
            if self.dataset.strict:
                raise
            failures.append(error)
            return None


class Loader(AbstractContextManager["Loader"]):
    """Batches of a data set, epoch by epoch, from worker processes that live until ``close``.

    Args:
        dataset: Whose samples.
        resize: The model's.
        augment: Changes the images; None: they stay as they are.
        batch: Images per batch.
        seed: Of the order and the changes.
        workers: Processes; 0: this one loads.
        shuffle: True is training: seeded order, full batches, an image that cannot be read is replaced by another.
            False is evaluation: order kept, last partial batch kept, an image that cannot be read is left out.
        rank: This process among those that train together, see ``EpochSampler``.
        world: How many these are.
        context: Start method of the workers; None: the system's own.
        balance: Threshold of ``repeat_factors``; 0: none.
        per_identity: Images of each class that a batch shows, see ``EpochSampler``; 0: none.
        pin: Page-locked memory, for CUDA.
        on_bad_image: Is told each image that cannot be read, once.

    Attributes:
        failures: Images that could not be read: where to what.

    Raises:
        DetkitError: No images; with code 4, while iterating: a worker died.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        resize: Resize,
        augment: Augment | None = None,
        batch: int,
        seed: int = 0,
        workers: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        context: Literal["fork", "spawn", "forkserver"] | None = None,
        balance: float = 0.0,
        per_identity: int = 0,
        pin: bool = False,
        on_bad_image: Callable[[DetkitError], None] | None = None,
    ) -> None:
        count = len(dataset)
        if not count:
            raise DetkitError("the data set holds no images", do="check the split and the path: detkit data stats")
        weights = None
        if balance and shuffle:
            weights = repeat_factors([dataset.labels_of(i) for i in range(count)], len(dataset.classes), balance)
        identities = None
        if per_identity and shuffle:
            identities = np.array([(*dataset.labels_of(i), -1)[0] for i in range(count)])
        self.sampler = EpochSampler(
            count,
            batch=batch,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world=world,
            weights=weights,
            identities=identities,
            per_identity=per_identity,
        )
        self.failures: dict[str, DetkitError] = {}
        self.workers = workers
        self._on_bad_image = on_bad_image
        if workers and (context or multiprocessing.get_start_method()) != "fork":
            _check_main_guard()
        self._tasks: Iterator[_Task] = iter(())
        if augment is not None:
            augment.prepare()
        self._loader: DataLoader[_Result] | None = DataLoader(
            _Reader(dataset, resize, augment, seed, shuffle),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self,  # type: ignore[arg-type]
            num_workers=workers,
            generator=torch.Generator(),  # else each epoch would draw from the model's random numbers
            pin_memory=pin,
            worker_init_fn=_start_worker,
            multiprocessing_context=context if workers else None,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[_Task]:
        """What torch's DataLoader asks of a sampler: the tasks of the epoch that is under way."""
        return self._tasks

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, mosaic: bool = True) -> Iterator[tuple[Batch, list[Target]]]:
        """The batches of one epoch, each with its targets.

        Args:
            epoch: Counted from 0.
            start: Number of the first batch.
            mosaic: False switches mosaic and mixup off.
        """
        if self._loader is None:
            raise ValueError("this loader is closed")
        self._tasks = (_Task(epoch, mosaic, slots) for slots in self.sampler.epoch(epoch, start))
        for result in self._results():
            for error in result.failures:
                if error.where not in self.failures and self._on_bad_image is not None:
                    self._on_bad_image(error)
                self.failures.setdefault(error.where, error)
            if result.fatal is not None:
                raise result.fatal
            if result.packed is not None:
                yield _unpacked(*result.packed)

    def _results(self) -> Iterator[_Result]:
        try:
            with _without_child_signals():
                iterator = iter(self._loader or ())
            yield from iterator
        except (RuntimeError, OSError, EOFError) as error:
            # A worker that is gone shows as torch's own error or as a broken line to it; what fails inside a worker
            # arrives as a value, or as torch's copy of an exception, whose text says so.
            if not self.workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            self._loader = None
            what = "a process that loads images was ended from outside, most likely for want of memory"
            where = f"with {self.workers} workers and batches of {self.sampler.batch}"
            do = "lower train.workers (0 loads in the main process) or train.batch"
            raise DetkitError(what, where, do, code=4) from error

    def close(self) -> None:
        """Ends the workers."""
        self._loader = None

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_main_guard() -> None:
    """Processes that are not forked import the script anew: it must not start them while it is imported."""
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
        if frame.f_back is None:
            return
        frame = frame.f_back
    file, line = Path(frame.f_code.co_filename), frame.f_lineno
    if not file.is_file():  # a prompt or a notebook, which nobody imports
        return
    top = [node for node in ast.parse(file.read_bytes()).body if node.lineno <= line <= (node.end_lineno or 0)]
    if not any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in top):
        what = "this script starts processes that load images, and each of them would run the script again"
        do = 'put what it does under if __name__ == "__main__":, or set train.workers=0'
        raise DetkitError(what, f"{file}, line {line}", do)


def _start_worker(_: int) -> None:
    import cv2

    # Ctrl-C in a terminal reaches every process of the group; the main one alone decides when loading ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread each: the processes are the parallelism, and waiting threads would take the cores from training.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@contextmanager
def _without_child_signals() -> Iterator[None]:
    """Keeps torch from raising a dead worker's error in the middle of whatever the main thread is doing.

    Without its handler the loss is noticed when the next batch is asked for, between two steps. Workers started in
    the block ignore Ctrl-C from their first moment, since they inherit that.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGCHLD: signal.getsignal(signal.SIGCHLD)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not set from Python
                signal.signal(number, handler)
