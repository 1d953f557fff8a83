"""Steps of a stream side by side: while one item is in use, the next one is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, each made in a thread while the one before is in use.

    Decoders, networks and encoders run outside Python's lock, so that two steps of a stream share the cores. One item
    is made ahead, never more; an error comes out where its item would.

    Args:
        items: Not of a source that may wait for ever (a camera, stdin): stopping waits for the item being made.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming = thread.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, source, _END)
            yield cast(Item, item)
            del item  # the consumer's reference is the only one
