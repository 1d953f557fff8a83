"""COCO results json to arrays by the compiled scanner, in threads where the file is large."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detkit.ops.compiled import run_chunks, thread_count

_THREADED = 1 << 22  # bytes above which starting threads costs less than it saves
_BLANK = b" \t\r\n"


class Entries(NamedTuple):
    """image, category (n,) int64: the file's own ids; box (n, 4) xywh and score (n,) float64; in file order."""

    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    score: np.ndarray


def scan_results(raw: bytes | mmap.mmap, start: int) -> Entries | None:
    """The entries of the list that starts at byte ``start``, or None if only a general decoder can tell.

    None for ids that are words, repeated keys, numbers of more than 19 digits, and everything that is not JSON.
    """
    from detkit.metrics import scan_kernels as kernels

    text = np.frombuffer(raw, np.uint8)
    stop = _last(text, len(text))
    if text[stop - 1] != ord("]") or stop - 1 == start:
        return None
    text = text[:stop]
    first, last = start + 1, _last(text, stop - 1)
    while first < last and text[first] in _BLANK:
        first += 1
    if first >= last:
        return Entries(*_table(0))
    parts = _parts(raw, text, first, last, thread_count() if last - first >= _THREADED else 1)
    room = [0] * len(parts)
    read = [0] * len(parts)

    def count(begin: int, end: int) -> None:
        for p in range(begin, end):
            room[p] = kernels.braces(text, *parts[p])

    run_chunks(count, len(parts), len(parts))
    ends = np.cumsum(room).tolist()
    columns = _table(ends[-1])

    def scan(begin: int, end: int) -> None:
        for p in range(begin, end):
            rows = slice(ends[p] - room[p], ends[p])
            read[p] = kernels.scan(text, *parts[p], *(column[rows] for column in columns))

    run_chunks(scan, len(parts), len(parts))
    if min(read) < 0:
        return None
    if read != room:  # entries with objects of their own, such as masks: fewer entries than braces
        used = [slice(end - size, end - size + rows) for end, size, rows in zip(ends, room, read, strict=True)]
        columns = tuple(np.concatenate([column[rows] for rows in used]) for column in columns)
    return Entries(*columns)


def places(values: np.ndarray, known: Sequence[int | str]) -> np.ndarray:
    """(n,) int64: where in ``known`` each whole number stands (the first of equal ones), -1 where it does not."""
    numbers = [(key, i) for i, key in enumerate(known) if isinstance(key, int) and abs(key) < 1 << 63]
    if not numbers or not len(values):
        return np.full(len(values), -1, np.int64)
    keys, index = np.array(numbers, np.int64).T
    low, high = int(keys.min()), int(keys.max())
    if high - low < 1 << 24:
        table = np.full(high - low + 2, -1, np.int64)  # the last entry: for all that lies outside
        table[keys[::-1] - low] = index[::-1]
        outside = (values < low) | (values > high)
        return table[np.where(outside, high - low + 1, values - low) if outside.any() else values - low]
    order = np.argsort(keys, kind="stable")
    found = order[np.minimum(np.searchsorted(keys[order], values), len(keys) - 1)]
    return np.where(keys[found] == values, index[found], -1)


def _table(rows: int) -> tuple[np.ndarray, ...]:
    return np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty((rows, 4)), np.empty(rows)


def _last(text: np.ndarray, stop: int) -> int:
    """``stop`` moved back over blanks."""
    while stop > 0 and text[stop - 1] in _BLANK:
        stop -= 1
    return stop


def _parts(raw: bytes | mmap.mmap, text: np.ndarray, first: int, last: int, number: int) -> list[tuple[int, int]]:
    """About equal parts that begin with "{" and end after "}". A wrong guess (in a string) fails the scan before it."""
    cuts = [(first, first)]
    for part in range(1, number):
        place = max(first + (last - first) * part // number, cuts[-1][1] + 1)
        while (place := raw.find(b"{", place, last)) > 0:
            comma = _last(text, place) - 1
            end = _last(text, comma)
            if text[comma] == ord(",") and text[end - 1] == ord("}"):
                cuts.append((end, place))
                break
            place += 1
    return [(begin, end) for (_, begin), (end, _) in zip(cuts, [*cuts[1:], (last, last)], strict=True)]
