"""Detection of very many images, shard by shard, by any number of processes: what ``detkit detect --shards`` does.

A shard is done when its file is there; nothing else is remembered, so whatever is killed, the same command goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import statistics
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from detkit.errors import DetkitError
from detkit.io.detections import record_of
from detkit.io.files import reading, write_error
from detkit.io.images import as_rgb
from detkit.io.prefetch import threaded
from detkit.io.remote import filesystem, reaching, read_address, unless_the_store_fails
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

    @cached_property
    def _predictor(self) -> Predictor:
        return self._job.load()

    def __call__(self, number: int) -> Made | DetkitError:
        """Makes a shard, the same rows whoever does it; what goes wrong is an answer, too, which crosses processes."""
        try:
            return self._make(number)
        except DetkitError as error:
            return error

    def _make(self, number: int) -> Made:
        files, limits = self._shards.files(number), self._predictor.limits(**self._job.limits)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            frames = threaded(lambda one: self._read(*one), files, _AHEAD)
            rows = [_row(*seen) for seen in self._predictor.detect_frames(frames, limits, self._job.batch)]
        notes, failed = Counter(str(one.message) for one in said), sum(row["error"] is not None for row in rows)
        one_per_folder = {os.path.dirname(name): name for name, _ in files}.values()
        if failed == len(rows) and not any(map(self._sees, one_per_folder)):
            what = f"not one image of a shard can be read on this machine: {rows[0]['error']}"
            do = "is their disk mounted here for this user, the address right? start where the other parts were started"
            raise DetkitError(what, f"{platform.node()}: {files[0][0]} and all others of shard {number}", do, code=4)
        self._shards.write(number, rows)
        return Made(len(rows), failed, sum(len(row["detections"]) for row in rows), notes)

    def _sees(self, name: str) -> bool:
        """True where anything in an image's folder can be read, or its store has a file there."""
        if "://" in name:
            with unless_the_store_fails(), reaching(name):
                fs, path = filesystem(name)
                fs.invalidate_cache()  # what this process listed before, too
                return bool(fs.ls(os.path.dirname(path), detail=False))
        folder = os.path.dirname(os.path.join(self._job.folder, name))
        with suppress(OSError, ValueError), os.scandir(folder) as entries:
            return any(os.access(one, os.R_OK) for one in entries)
        return False

    def _read(self, name: str, size: int | None) -> Frame | Failure:
        try:
            with reading(name):
                data = read_address(name, size) if "://" in name else Path(self._job.folder, name).read_bytes()
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
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Printed:
    """Makes the shards of ``job.out`` that are not there yet.

    Args:
        sources: Files, folders, patterns, addresses. The first part looks through them again where there is a manifest,
            the others do not.
        job: What every worker is told.
        names: What the sources are called, to know them again.
        settings: Of the detector, to refuse another one's shards.
        size: Images per shard.
        part: (k, n): only every n-th shard, from the k-th on.
        workers: Processes on this machine; ``ray`` or ``ray://HOST:PORT``: Ray Data's actors.
        devices: GPUs that each of Ray's actors needs.
        overwrite: Start over, without what the folder holds; for all parts together.
        tell: Told what a person should know.
        on_progress: Called with shards done and in all.

    Returns:
        As facts: out, shards (in all), made (now), there (before), left (to other parts), new and gone (images, since
        the list was made), images, failed, detections, seconds.

    Raises:
        DetkitError: Other sources or settings than those of the folder, another run at work in it, a store that
            cannot be reached, a full disk, a shard that ends its process each time.
    """
    shards, begun, new, gone = Shards(job.out), time.perf_counter(), 0, 0
    if overwrite and part[1] > 1:
        raise DetkitError("starting over is for all parts together", "--overwrite --part", "give another --shards OUT")
    with _alone(shards.folder, part):
        if overwrite and shards.exists():
            shards.clear()
        shards.sweep(part)
        if shards.exists():
            shards.check(names, settings)
            if len(counts := shards.manifest.counts) > 1 and counts[0] != size:
                tell(f"{job.out}: shards of {counts[0]} images, as they were begun")
            if part[0] == 1 and any(changes := shards.changes(_there(sources))):
                new, gone = changes
                what = f"{job.out}: since its list was made {counted(new, 'image')} came (left out) and {gone} went"
                tell(f"{what}; give another folder, or --overwrite, to look at those that are there now")
        else:
            shards.begin((file for source in sources for file in image_files(source)), size, names, settings)
        missing = shards.missing(tell)
        mine = [number for number in missing if number % part[1] == part[0] - 1]
        made: list[Made] = []
        on_progress(0, len(mine))
        for one in _engine(job, mine, workers, devices):
            if isinstance(one, DetkitError):
                raise one
            made.append(one)
            on_progress(len(made), len(mine))
    notes = sum((one.notes for one in made), Counter[str]())
    for text, count in notes.items():
        tell(f"{counted(count, 'file')}: {text}")
    seconds, left = time.perf_counter() - begun, len(missing) - len(made)
    total = len(shards.manifest.counts)
    facts = {"out": job.out, "shards": total, "made": len(made), "there": total - len(missing), "left": left}
    sums = {key: sum(getattr(one, key) for one in made) for key in ("images", "failed", "detections")}
    facts |= {"new": new, "gone": gone, **sums}
    text = "{made} of {shards} shards made now, {there} were there, {left} left to other parts: {out}".format(**facts)
    found = "images: {images}, {failed} of them could not be read; detections: {detections}".format(**facts)
    return Printed({**facts, "seconds": round(seconds, 3)}, [text, *[f"{found}; {seconds:.1f} s"] * bool(made)])


def _there(sources: Iterable[str]) -> Iterator[str]:
    """The names of images that are there now; a source that has gone has none."""
    for source in sources:
        with unless_the_store_fails():
            yield from (name for name, _ in image_files(source))


def _row(seen: Frame | Failure, found: Detections) -> dict[str, Any]:
    if isinstance(seen, Failure):
        return {"source": seen.source, "detections": [], "error": seen.what}
    return {**record_of(seen, found), "error": None}


@contextmanager
def _alone(folder: Path | None, part: tuple[int, int]) -> Iterator[None]:
    """Refuses what another process on this disk is doing; the system itself frees a lock when its process ends."""
    from filelock import FileLock, Timeout

    if folder is None:
        yield
        return
    own = folder / f".part-{part[0]}-of-{part[1]}.lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in {own, *folder.glob(".part-*.lock")}:
                if path == own:
                    stack.enter_context(FileLock(path, timeout=0))
                elif not path.name.endswith(f"-of-{part[1]}.lock"):  # not another part of the same partition
                    with FileLock(path, timeout=0):
                        pass
        except Timeout:
            do = "wait for it, or stop it; parts of one run have different numbers: --part 1/8, --part 2/8"
            raise DetkitError("another run is at work in this folder", str(folder), do) from None
        except OSError as error:
            raise write_error(error, folder) from error
        yield


def _engine(job: Job, numbers: Sequence[int], workers: int | str, devices: float) -> Iterator[Made | DetkitError]:
    if isinstance(workers, str):
        return _on_ray(job, numbers, workers, devices) if numbers else iter(())
    return map(ShardWorker(job), numbers) if workers == 1 else _in_processes(job, numbers, workers)


def _on_ray(job: Job, numbers: Sequence[int], address: str, devices: float) -> Iterator[Made | DetkitError]:
    try:
        import ray
    except ImportError:
        raise DetkitError("--workers ray needs Ray", do='pip install "detkit[ray]"') from None

    class Driver:
        def __init__(self) -> None:
            self._made = _by_ray_data(job, numbers, devices)

        def next(self) -> Made | DetkitError | None:
            return next(self._made, None)

    try:
        if not ray.is_initialized():
            ray.init(address=address if "://" in address else None, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        do = "is its head there, with ray start --head --ray-client-server-port 10001? must RAY_AUTH_TOKEN be set here?"
        raise DetkitError("Ray cannot be reached", address, do, code=4) from None
    driver = ray.remote(num_cpus=0)(Driver).remote()  # Ray Data itself does not run at the client's end of ray://
    yield from iter(lambda: ray.get(driver.next.remote()), None)


def _by_ray_data(job: Job, numbers: Sequence[int], devices: float) -> Iterator[Made | DetkitError]:
    import ray

    class Actor:
        def __init__(self) -> None:
            with suppress(OSError):
                os.chdir(job.folder)  # relative names of models and of the output begin there, too
            self._work = ShardWorker(job)

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            return {"made": [self._work(int(number)) for number in batch["item"]]}

    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
    made = items.map_batches(Actor, batch_size=1, concurrency=(1, len(numbers)), num_gpus=devices or None)
    return (row["made"] for row in made.iter_rows())


def _in_processes(job: Job, numbers: Sequence[int], workers: int) -> Iterator[Made | DetkitError]:
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
    work = ShardWorker(job)
    while True:
        pipe.send(work(pipe.recv()))
