"""Ways to damage a file, for fuzz.py: each a function of the bytes and of a generator of random numbers."""

from __future__ import annotations

import json
import random
import re
import struct
from contextlib import suppress
from typing import Any

import onnx

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 10**40,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "nan", "1e5", "-7", "true", "../..", "/dev/zero", "/", ".",
    "cat", "\u00e9\u202e", "\ud800", "\x00", "x" * 5000, [], {}, [[]], [None], [0, 0, 0, 0], [1e9] * 4, {"a": 1},
    [[[[[[[[]]]]]]]],
)  # fmt: skip
TOKENS = [
    b"", b"nan", b"-1", b"1e309", b"99999999999999999999", b"0", b"inf", b"\xff\xfe", b"\x00", b"\n\n", b"\r", b"\t",
    b":", b"- ", b"{", b"]", b"<", b"/>", b"&lt;&x;", b"<!DOCTYPE a>", b"!!python/object:os.system", b"*a", b"&a [*a]",
    b'"', b"'", b",,", b";", b"[" * 5000, b"../", b"/dev/zero", b"%s", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"x" * 3000,
    b"1_000", b"0x1F", b"9" * 5000, b"1e400",
]  # fmt: skip


def damaged(data: bytes, json_like: bool, rng: random.Random) -> bytes:
    """``data`` with one to three faults."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if json_like and rng.random() < 0.6:
            with suppress(ValueError, RecursionError):  # what is no JSON any more is damaged as text
                value = json.loads(data)
                data = json.dumps(_altered(value, rng)).encode()
                continue
        data = rng.choice(FAULTS)(data, rng)
    return data


def damaged_header(data: bytes, rng: random.Random) -> bytes:
    """A model file whose own header, JSON inside the JSON of safetensors, has one to three faults."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    whole = json.loads(data[8:end])
    for _ in range(rng.choice((1, 1, 2, 3))):
        own = json.loads(whole["__metadata__"]["detkit"])
        whole["__metadata__"]["detkit"] = json.dumps(_altered(own, rng))
    text = json.dumps(whole).encode()
    return struct.pack("<Q", len(text)) + text + data[end:]


def damaged_metadata(data: bytes, rng: random.Random) -> bytes:
    """An ONNX file of detkit's with one to three faults in what it says of itself, or that says nothing."""
    model = onnx.load_from_string(data)
    if rng.random() < 0.1:
        del model.metadata_props[:]
    for entry in model.metadata_props:
        if entry.key == "detkit":
            value = json.loads(entry.value)
            for _ in range(rng.choice((1, 1, 2, 3))):
                value = _altered(value, rng)
            entry.value = json.dumps(value)
    return bytes(model.SerializeToString())


def _altered(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its nodes replaced, left out, or there twice; deeper nodes as likely as others."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        changed = value.copy()
        if rng.random() < 0.1:
            del changed[key]
        elif isinstance(changed, list) and rng.random() < 0.05:
            changed.insert(key, changed[key])
        else:
            changed[key] = _altered(value[key], rng)
        return changed
    return rng.choice(VALUES)


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        place = rng.randrange(len(found) if rng.random() < 0.5 else min(len(found), 200))  # headers are at the start
        found[place] = rng.choice((0, 255, 127, 128, rng.randrange(256), found[place] ^ 1 << rng.randrange(8)))
    return bytes(found)


def _replaced(data: bytes, rng: random.Random) -> bytes:
    words = list(re.finditer(rb"[\w.+-]+", data[:100_000]))
    if not words:
        return data
    word = rng.choice(words)
    return data[: word.start()] + rng.choice(TOKENS) + data[word.end() :]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes as a large, small or negative number: sizes in binary headers."""
    start, number = rng.randrange(max(1, min(len(data), 400))), rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 65536))
    packed = struct.pack(rng.choice("<>") + rng.choice("IQ"), number)
    return data[:start] + packed + data[start + len(packed) :]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice(TOKENS) + data[start:]


def _spliced(data: bytes, rng: random.Random) -> bytes:
    """Without some bytes, or with them several times."""
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice((1, 2, 4, 16, 64, 512))
    return data[:start] + data[start:end] * rng.choice((0, 0, 2, 51)) + data[end:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


FAULTS = (_flipped, _replaced, _replaced, _number, _inserted, _spliced, _spliced, _cut)
