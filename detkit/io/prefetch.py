"""Steps of a stream side by side: while one item is in use, the next ones are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def threaded(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """What ``work`` returns for each item, in their order, made by ``threads`` threads ahead of what is asked for.

    As many items as there are threads are ahead; an error comes out where its item's result would.
    """
    source, coming = iter(items), deque[Future[Result]]()
    failed: Exception | None = None
    with ThreadPoolExecutor(threads, "threaded") as pool:
        while failed is None:
            try:
                coming.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except Exception as error:  # of the source: what came before it is still due
                failed = error
            if len(coming) > threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    if failed is not None:
        raise failed


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, each made in a thread while the one before is in use; never two ahead.

    Args:
        items: Not of a source that may wait for ever (a camera, stdin): stopping waits for the item being made.
    """
    source = iter(items)
    for item in threaded(lambda end: next(source, end), repeat(_END), 1):
        if item is _END:
            return
        yield cast(Item, item)
        del item  # the consumer's reference is the only one
