"""Detection of very many images, shard by shard, by any number of processes: what ``detkit detect --shards`` does.

A shard is done when its file is there; nothing else is remembered, so whatever is killed, the same command goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from detkit.errors import DetkitError
from detkit.io.files import reading
from detkit.io.images import as_rgb
from detkit.io.remote import read_address
from detkit.io.shards import Shards
from detkit.io.sources import Failure, Frame, image_files
from detkit.predictor import Predictor
from detkit.printed import Printed, counted
from detkit.structures import Detections

_AHEAD = 8  # images that are read while others are looked at
_ATTEMPTS = 3  # of a shard whose process ends
_SLOW = 3.0  # times the usual time, after which an idle process makes the same shard


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told.

    Attributes:
        out: The folder of the shards.
        load: Makes the detector; it must be possible to pickle.
        limits: Arguments of ``Predictor.limits``.
        batch: Images at a time.
        folder: Where relative names of images begin.
    """

    out: str
    load: Callable[[], Predictor]
    limits: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    folder: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class Made:
    """What a shard holds: images, how many of them could not be read, detections, notes on inputs and how often."""

    number: int
    images: int
    failed: int
    detections: int
    notes: Counter[str]


class ShardWorker:
    """Makes shards; the one function that a single process, several and Ray's actors run.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._shards = job, Shards(job.out)
        self._predictor = job.load()
        self._limits = self._predictor.limits(**job.limits)

    def __call__(self, number: int) -> Made:
        """Makes a shard; the same rows whoever does it."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            frames = _ahead(self._read, self._shards.files(number))
            rows = [_row(*seen) for seen in self._predictor.detect_frames(frames, self._limits, self._job.batch)]
        self._shards.write(number, rows)
        failed = sum(row["error"] is not None for row in rows)
        return Made(number, len(rows), failed, sum(len(row["detections"]) for row in rows), _counted(said))

    def _read(self, name: str, size: int | None) -> Frame | Failure:
        try:
            if "://" in name:
                data = read_address(name)
            else:
                path = Path(self._job.folder, name)
                with reading(name):
                    data = path.read_bytes()
            if size is not None and len(data) != size:
                what = f"the file has changed since the manifest was made ({size} bytes then, {len(data)} now)"
                raise DetkitError(what, name)
            return Frame(as_rgb(data), name)
        except DetkitError as error:
            if error.code == 4:  # the store, not this image
                raise
            return Failure(name, error.what, error.do)


def detect_shards(
    sources: Iterable[str],
    job: Job,
    *,
    names: Sequence[str],
    settings: Mapping[str, object],
    size: int = 5000,
    part: tuple[int, int] = (1, 1),
    workers: int | str = 1,
    devices: float = 0,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Printed:
    """Makes the shards of ``job.out`` that are not there yet.

    Args:
        sources: Files, folders, patterns, addresses; read only where there is no manifest.
        job: What every worker is told.
        names: What the sources are called, to know them again.
        settings: Of the detector, to refuse another one's shards.
        size: Images per shard.
        part: (k, n): only every n-th shard, from the k-th on.
        workers: Processes on this machine; ``ray`` or ``ray://HOST:PORT``: Ray Data's actors.
        devices: GPUs that each of Ray's actors needs.
        tell: Told what a person should know.
        on_progress: Called with shards done and in all.

    Returns:
        As facts: out, shards (in all, made now, left to other parts), images, failed, detections, seconds.

    Raises:
        DetkitError: Other sources or settings than those of the folder, another run at work in it, a store that
            cannot be reached, a full disk, a shard that ends its process each time.
    """
    shards, begun = Shards(job.out), time.perf_counter()
    with _alone(shards.folder, part):
        shards.sweep(part)
        if shards.exists():
            shards.check(names, settings)
            if (first := shards.manifest.counts[:1]) and len(shards.manifest.counts) > 1 and first[0] != size:
                tell(f"{job.out}: shards of {first[0]} images, as they were begun")
        else:
            shards.begin((file for source in sources for file in image_files(source)), size, names, settings)
        missing = shards.missing(tell)
        mine = [number for number in missing if number % part[1] == part[0] - 1]
        made: list[Made] = []
        on_progress(0, len(mine))
        for one in _engine(job, mine, workers, devices):
            made.append(one)
            on_progress(len(made), len(mine))
    notes = sum((one.notes for one in made), Counter[str]())
    for text, count in notes.items():
        tell(f"{counted(count, 'file')}: {text}")
    seconds, left = time.perf_counter() - begun, len(missing) - len(made)
    facts = {"out": job.out, "shards": len(shards.manifest.counts), "made": len(made), "left": left}
    sums = {key: sum(getattr(one, key) for one in made) for key in ("images", "failed", "detections")}
    text = "{made} of {shards} shards made now, {left} left to other parts: {out}".format(**facts)
    images, boxes = counted(sums["images"], "image"), counted(sums["detections"], "detection")
    found = f"{images}, {sums['failed']} of them could not be read, {boxes}"
    return Printed({**facts, **sums, "seconds": round(seconds, 3)}, [text, f"{found}, {seconds:.1f} s"])


def _row(seen: Frame | Failure, found: Detections) -> dict[str, Any]:
    if isinstance(seen, Failure):
        return {"source": seen.source, "width": None, "height": None, "detections": [], "error": seen.what}
    size = {"width": seen.width, "height": seen.height}
    return {"source": seen.source, **size, "detections": found.to_records(), "error": None}


def _counted(said: Sequence[warnings.WarningMessage]) -> Counter[str]:
    return Counter(str(one.message) for one in said)


def _ahead(read: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """What ``read`` returns for each, in order, a few of them ahead of what is asked for."""
    coming: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for one in arguments:
            coming.append(pool.submit(read, *one))
            if len(coming) > _AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


@contextmanager
def _alone(folder: Path | None, part: tuple[int, int]) -> Iterator[None]:
    """Refuses what another process on this disk is doing; the system itself frees a lock when its process ends."""
    from filelock import FileLock, Timeout

    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f".part-{part[0]}-of-{part[1]}.lock"
    with ExitStack() as stack:
        for path in {own, *folder.glob(".part-*.lock")}:
            if path != own and path.name.endswith(f"-of-{part[1]}.lock"):
                continue  # another part of the same partition
            try:
                lock = FileLock(path, timeout=0)
                lock.acquire()
            except Timeout:
                do = "wait for it, or stop it; parts of one run have different numbers: --part 1/8, --part 2/8"
                raise DetkitError("another run is at work in this folder", str(folder), do) from None
            if path == own:
                stack.callback(lock.release)
            else:
                lock.release()
        yield


def _engine(job: Job, numbers: Sequence[int], workers: int | str, devices: float) -> Iterator[Made]:
    if not numbers:
        return iter(())
    if isinstance(workers, str):
        return _on_ray(job, numbers, workers, devices)
    return map(ShardWorker(job), numbers) if workers == 1 else _in_processes(job, numbers, workers)


def _on_ray(job: Job, numbers: Sequence[int], address: str, devices: float) -> Iterator[Made]:
    try:
        import ray
    except ImportError:
        raise DetkitError("--workers ray needs Ray", do='pip install "ray[data]"') from None

    class Actor:
        def __init__(self) -> None:
            self._work = ShardWorker(job)

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            return {"made": [self._work(int(number)) for number in batch["item"]]}

    if not ray.is_initialized():
        ray.init(address=address if "://" in address else None, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
    made = items.map_batches(Actor, batch_size=1, concurrency=(1, len(numbers)), num_gpus=devices or None)
    for row in made.iter_rows():
        yield row["made"]


def _in_processes(job: Job, numbers: Sequence[int], workers: int) -> Iterator[Made]:
    """Each process makes one shard at a time; one that ends is replaced, and its shard made again."""
    waiting, attempts = deque(numbers), Counter[int]()
    busy: dict[Connection, tuple[Any, int, float]] = {}  # process, shard, when it began
    idle: list[tuple[Connection, Any]] = []
    done: set[int] = set()
    times: list[float] = []
    lost: list[int] = []
    try:
        while len(done) + len(lost) < len(numbers):
            while len(busy) < workers and (number := next_shard(waiting, busy, times, time.monotonic())) is not None:
                pipe, process = idle.pop() if idle else _start(job)
                pipe.send(number)
                busy[pipe] = (process, number, time.monotonic())
            ready = wait(list(busy), timeout=1.0)
            for pipe in [pipe for pipe in busy if pipe in ready]:
                process, number, begun = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    attempts[number] += 1
                    if number not in done and number not in (one for _, one, _ in busy.values()):
                        (waiting if attempts[number] < _ATTEMPTS else lost).append(number)
                    continue
                idle.append((pipe, process))
                if isinstance(answer, DetkitError):
                    raise answer
                if number not in done:
                    done.add(number)
                    times.append(time.monotonic() - begun)
                    yield answer
    finally:
        for process in [process for process, *_ in busy.values()] + [process for _, process in idle]:
            process.kill()
    if lost:
        what = f"the process that made it ended, {_ATTEMPTS} times, in {counted(len(lost), 'shard')}"
        do = "take fewer --workers if the memory was short; all other shards are done"
        raise DetkitError(what, ", ".join(Shards(job.out).path(number) for number in lost[:3]), do, code=4)


def next_shard(
    waiting: deque[int], busy: Mapping[Any, tuple[Any, int, float]], times: Sequence[float], now: float
) -> int | None:
    """The next shard to make: one that waits, or else one that takes so long that it is made a second time.

    Args:
        waiting: Shards that nobody makes; the chosen one is taken out.
        busy: Of each worker at work: whatever, its shard, and when it began.
        times: What finished ones took.
        now: On the same clock.
    """
    if waiting:
        return waiting.popleft()
    under_way = Counter(number for _, number, _ in busy.values())
    limit = _SLOW * statistics.median(times) if times else float("inf")
    late = (number for _, number, begun in busy.values() if now - begun > limit and under_way[number] == 1)
    return next(late, None)


def _start(job: Job) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")  # threads of torch and gRPC do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _serve(pipe: Connection, job: Job) -> None:
    """A worker process: numbers of shards in, what was made out, until the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    worker = None
    while True:
        number = pipe.recv()
        try:
            worker = worker or ShardWorker(job)
            pipe.send(worker(number))
        except DetkitError as error:
            pipe.send(error)
