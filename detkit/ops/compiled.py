"""How compiled kernels are declared, and how many threads may share one call.

Kernels are serial, release the GIL and are cached on disk. A cached kernel calls only kernels of its own file, because
numba's cache does not see a change in another one. Where threads pay, ordinary Python threads run chunks: numba's own
parallel loops abort the process when two threads enter them, and a worker forked after one dies.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from numba.core.event import Event

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """``function`` compiled by numba at its first call: IEEE arithmetic (no fastmath), no GIL, cached on disk.

    A kernel that another one calls becomes a part of it.
    """
    import numba

    _listen()
    declare = functools.partial(numba.njit, nogil=True, error_model="numpy", forceinline=True)
    try:
        return _quickly_loaded(cast("Function", declare(cache=True)(function)))
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written: compile in each process instead.
        return cast("Function", declare()(function))


def _quickly_loaded(dispatcher: Function) -> Function:
    """The dispatcher, which then loads cached code without first importing what only compiling needs.

    Those imports (SciPy's linear algebra is one) cost most of a second. Loading itself needs numba's run time alone,
    and whatever has to be compiled still imports them: the compiler does that by itself.
    """
    from numba.core.runtime.nrt import rtsys

    cache = dispatcher._cache  # type: ignore[attr-defined]
    if not hasattr(cache, "_load_overload") or not hasattr(cache, "_guard_against_spurious_io_errors"):
        return dispatcher  # a numba that is built otherwise keeps its own way

    def load(signature: object, context: object) -> object:
        rtsys.initialize(context)
        with cache._guard_against_spurious_io_errors():
            return cache._load_overload(signature, context)

    cache.load_overload = load
    return dispatcher


@functools.cache
def _listen() -> None:
    """Says on stderr, once a process, that kernels were compiled, when that has taken more than a second."""
    from numba.core import event

    class Notice(event.Listener):  # type: ignore[misc, unused-ignore]
        depth = 0
        began = spent = 0.0

        def on_start(self, event: Event) -> None:
            if not self.depth:  # a kernel compiles those that it calls
                self.began = time.perf_counter()
            self.depth += 1

        def on_end(self, event: Event) -> None:
            self.depth -= 1
            if self.depth or not event.data["dispatcher"].py_func.__module__.startswith("detkit."):
                return
            told = self.spent > 1
            self.spent += time.perf_counter() - self.began
            if self.spent > 1 and not told:
                print(
                    "detkit: compiling kernels, once on this machine (detkit doctor --warm does all)", file=sys.stderr
                )

    event.register("numba:compile", Notice())  # type: ignore[no-untyped-call, unused-ignore]


def thread_count() -> int:
    """Threads that one call may use: 1 in a worker process, torch's setting if it is loaded, else the usable cores."""
    if multiprocessing.parent_process() is not None:
        return 1
    get_num_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if get_num_threads is not None:
        return int(get_num_threads())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores


def run_chunks(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Calls ``work(start, stop)`` on even parts of a range; the first failure is raised.

    Threads are started for each call and joined before it returns: a pool kept alive would be dead in a forked child.

    Args:
        work: What is called; it releases the GIL.
        count: The end of the range.
        threads: The number of parts; one is called here.
    """
    if threads < 2:
        work(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, bounds[:-1], bounds[1:]):
            pass  # the result of a failed call is its exception
