"""Samples to batches, in worker processes beside training.

What a batch holds is a function of (seed, epoch, position in the epoch) alone: the number of workers, the start
method, a resumed epoch and the number of processes change nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from detkit.data.resize import Resize, moved_target
from detkit.data.sampler import Sampler, Slots, repeat_factors
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.structures import Batch, Sample, Target

_ATTEMPTS = 10


class Source(Protocol):
    """What a loader needs of a data set."""

    def __len__(self) -> int: ...

    def load(self, i: int, reduce_to: int | None = None) -> Sample:
        """Image ``i``; its longer side may be reduced to no fewer than ``reduce_to`` pixels, boxes with it."""
        ...


class Augmenter(Protocol):
    """What a loader needs of an augmentation."""

    def __call__(
        self, sample: Sample, rng: np.random.Generator, resize: Resize, more: Callable[[], Sample] | None = None
    ) -> Sample: ...

    def reduce_to(self, resize: Resize) -> int | None:
        """Pixels of an image's longer side beyond which nothing is gained."""
        ...

    dropped: int  # boxes left out so far because nothing of them lies in the image

    def prepare(self) -> None:
        """Imports and builds what is needed, once, before workers are forked."""
        ...


class _Packed(NamedTuple):
    """A batch on its way out of a worker: only the pixels travel as shared memory, the small arrays are copied."""

    pixels: torch.Tensor
    sizes: np.ndarray
    restore: tuple[Geometry, ...]
    image_ids: tuple[int | str, ...]
    paths: tuple[str, ...]
    proposals: list[np.ndarray] | None
    targets: list[Target]

    def unpack(self) -> tuple[Batch, list[Target]]:
        proposals = None if self.proposals is None else [torch.from_numpy(p) for p in self.proposals]
        pixels, sizes = self.pixels.permute(0, 3, 1, 2), torch.from_numpy(self.sizes)
        batch = Batch(pixels, sizes, self.restore, self.image_ids, self.paths, proposals)
        return batch, [target.to("cpu") for target in self.targets]


def collate(samples: Sequence[Sample], resize: Resize) -> tuple[Batch, list[Target]]:
    """Samples (any sizes) as one Batch of ``resize.input_size`` and their targets in input pixels (torch, CPU).

    ``Batch.pixels`` is (B, 3, H, W) uint8 in channels_last strides: each image is written once, straight into its
    place. Boxes are those of the samples, moved with their images; sizes are the contents' (height, width).
    """
    return _pack(samples, resize).unpack()


def _pack(samples: Sequence[Sample], resize: Resize) -> _Packed:
    pixels = torch.empty((len(samples), *resize.input_size, 3), dtype=torch.uint8)
    places = pixels.numpy()
    restore = tuple(resize(sample.image, out=places[i])[1] for i, sample in enumerate(samples))
    sizes = np.array([resize.content(*s.image.shape[:2]) for s in samples], dtype=np.int64).reshape(-1, 2)
    proposals = None
    if any(sample.proposals is not None for sample in samples):
        nothing = np.zeros((0, 4), np.float32)
        proposals = [
            g.to_input(nothing if s.proposals is None else s.proposals) for s, g in zip(samples, restore, strict=True)
        ]
    return _Packed(
        pixels,
        sizes,
        restore,
        tuple(s.image_id for s in samples),
        tuple(s.path for s in samples),
        proposals,
        [moved_target(s.target, g) for s, g in zip(samples, restore, strict=True)],
    )


class _Task(NamedTuple):
    epoch: int
    mosaic: bool
    slots: Slots


@dataclass
class _Result:
    packed: _Packed | None = None
    failures: list[DetkitError] = field(default_factory=list)
    dropped: int = 0
    fatal: DetkitError | None = None

    def pin_memory(self) -> _Result:
        if self.packed is not None:
            self.packed = self.packed._replace(pixels=self.packed.pixels.pin_memory())
        return self


@dataclass
class _Reader:
    """Turns a task into a packed batch; lives in the workers, so it holds nothing that changes."""

    dataset: Source
    resize: Resize
    augment: Augmenter | None
    seed: int
    training: bool

    def __getitem__(self, task: _Task) -> _Result:
        result = _Result()
        dropped = self.augment.dropped if self.augment else 0
        try:
            samples = [
                sample
                for position, index in zip(*task.slots, strict=True)
                if (sample := self._sample(task, int(position), int(index), result.failures)) is not None
            ]
            if samples:
                result.packed = _pack(samples, self.resize)
            result.dropped = self.augment.dropped - dropped if self.augment else 0
        except DetkitError as error:
            result.fatal = error
        except MemoryError:
            result.fatal = DetkitError(
                "there was not enough memory to load a batch", do="lower train.batch or train.workers", code=4
            )
        return result

    def _sample(self, task: _Task, position: int, index: int, failures: list[DetkitError]) -> Sample | None:
        if not self.training and self.augment is None:
            return self._load(index, None, failures)
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
            failures.append(error)
            return None


class Loader:
    """Batches of a data set, epoch by epoch, from ``workers`` processes that live until ``close``.

    shuffle=True is training: seeded order, full batches, an image that cannot be read is replaced by another.
    shuffle=False is evaluation: order kept, last partial batch kept, an image that cannot be read is left out. Either
    way it is entered in ``failures`` (where -> error) and told once to ``on_bad_image``, and ``augment``, if given,
    changes the images. ``dropped`` counts the boxes that it left out because nothing of them lies in their image.

    rank, world: this process's share (see Sampler). context: start method of the workers (None: the system's own).
    balance: threshold of ``repeat_factors``, 0 for none (the data set needs ``classes`` and ``labels_of(i)``).
    pin: page-locked memory, for CUDA. Iterating raises DetkitError (code 4) when a worker dies.
    """

    def __init__(
        self,
        dataset: Source,
        *,
        resize: Resize,
        augment: Augmenter | None = None,
        batch: int,
        seed: int = 0,
        workers: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        context: Literal["fork", "spawn", "forkserver"] | None = None,
        balance: float = 0.0,
        pin: bool = False,
        on_bad_image: Callable[[DetkitError], None] | None = None,
    ) -> None:
        if not len(dataset):
            raise DetkitError("the data set holds no images", do="check the split and the path: detkit data stats")
        weights = None
        if balance and shuffle:
            data: Any = dataset
            weights = repeat_factors([data.labels_of(i) for i in range(len(data))], len(data.classes), balance)
        self.sampler = Sampler(
            len(dataset), batch=batch, seed=seed, shuffle=shuffle, rank=rank, world=world, weights=weights
        )
        self.failures: dict[str, DetkitError] = {}
        self.dropped = 0
        self.workers = workers
        self._on_bad_image = on_bad_image
        self._tasks: Iterator[_Task] = iter(())
        if augment is not None:
            augment.prepare()
        self._loader: DataLoader | None = DataLoader(
            _Reader(dataset, resize, augment, seed, shuffle),  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Now(self),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin,
            worker_init_fn=_start_worker,
            multiprocessing_context=context if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each epoch would draw from the model's random numbers
        )

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, mosaic: bool = True) -> Iterator[tuple[Batch, list[Target]]]:
        """The batches of one epoch from number ``start`` on; mosaic=False switches mosaic and mixup off."""
        if self._loader is None:
            raise ValueError("this loader is closed")
        self._tasks = (_Task(epoch, mosaic, slots) for slots in self.sampler.epoch(epoch, start))
        results = self._results()
        while (result := next(results, None)) is not None:
            for error in result.failures:
                self._note(error)
            self.dropped += result.dropped
            if result.fatal is not None:
                raise result.fatal
            if result.packed is not None:
                yield result.packed.unpack()

    def _results(self) -> Iterator[_Result]:
        try:
            with _without_child_signals():
                iterator = iter(self._loader)  # type: ignore[arg-type]
            yield from iterator
        except (RuntimeError, OSError, EOFError) as error:
            # A worker that is gone shows as torch's own error or as a broken line to it; what fails inside a worker
            # arrives as a value, or as torch's copy of an exception, whose text says so.
            if not self.workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            self._loader = None
            raise DetkitError(
                "a process that loads images was ended from outside, most likely for want of memory",
                f"with {self.workers} workers and batches of {self.sampler.batch}",
                "lower train.workers (0 loads in the main process) or train.batch",
                code=4,
            ) from error

    def _note(self, error: DetkitError) -> None:
        if error.where not in self.failures:
            self.failures[error.where] = error
            if self._on_bad_image is not None:
                self._on_bad_image(error)

    def close(self) -> None:
        """Ends the workers."""
        self._loader = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Now:
    """The sampler that torch's DataLoader sees: the tasks of the epoch that is under way."""

    loader: Loader

    def __iter__(self) -> Iterator[_Task]:
        return self.loader._tasks

    def __len__(self) -> int:
        return len(self.loader)


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(_: int) -> None:
    # One thread each: the processes are the parallelism, and waiting threads would take the cores from training.
    import cv2

    # Ctrl-C in a terminal reaches every process of the group; the main one alone decides when loading ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class _without_child_signals:
    """Keeps torch from raising a dead worker's error in the middle of whatever the main thread is doing.

    Without its handler the loss is noticed when the next batch is asked for, between two steps. Workers started in
    the block ignore Ctrl-C from their first moment, since they inherit that.
    """

    def __enter__(self) -> None:
        self._before: dict[int, Any] = {}
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            self._before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # not set from Python
                signal.signal(number, handler)
