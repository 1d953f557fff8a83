"""Items made ahead: the same ones, in order, one at a time, errors in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from detkit.io.prefetch import prefetched, threaded


def test_the_same_items_in_order_and_the_next_one_is_made_meanwhile() -> None:
    made, here = [], threading.get_ident()
    begun = [threading.Event() for _ in range(5)]

    def numbers() -> Iterator[tuple[int, int]]:
        for i in range(5):
            begun[i].set()
            made.append(i)
            yield i, threading.get_ident()

    for place, (number, thread) in enumerate(prefetched(numbers())):
        assert number == place
        assert thread != here
        assert place == 4 or begun[place + 1].wait(600)
        assert len(made) <= place + 2
    assert made == [0, 1, 2, 3, 4]
    assert list(prefetched([])) == []


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    numbers = prefetched(broken())
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        next(numbers)


def test_a_stop_ends_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    before = set(threading.enumerate())
    numbers = prefetched(prefetched(endless()))
    assert next(numbers) == 1
    numbers.close()
    del numbers
    assert closed.wait(600)
    assert set(threading.enumerate()) <= before, "those of other tests may end meanwhile"


def test_threads_work_ahead_and_results_keep_their_order() -> None:
    together, seen = threading.Barrier(3, timeout=600), list[int]()

    def numbers() -> Iterator[int]:
        for i in range(6):
            seen.append(i)
            yield i

    def square(i: int) -> int:
        together.wait()  # passes when three are at work at once
        return i * i

    for place, number in enumerate(threaded(square, numbers(), 3)):
        assert number == place**2
        assert len(seen) <= place + 4
    assert len(seen) == 6
    assert list(threaded(square, [], 3)) == []


def test_errors_of_items_and_of_work_come_in_their_places() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    numbers = threaded(lambda i: 10 * i, broken(), 4)
    assert [next(numbers), next(numbers)] == [10, 20]
    with pytest.raises(OSError, match="disk"):
        next(numbers)
    inverses = threaded(lambda i: 4 // i, [1, 2, 0, 4], 2)
    assert [next(inverses), next(inverses)] == [4, 2]
    with pytest.raises(ZeroDivisionError):
        next(inverses)
