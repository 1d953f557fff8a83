"""A compiled scanner of COCO results json, straight into arrays: ten times a JSON decoder that makes Python objects.

It takes only what it is sure of: entries of the four keys, each once, in any order, integer ids, plain numbers; other
keys are passed over. Everything else (also what is wrong) ends the scan, and the caller asks the general decoder.
Numbers come out as JSON decoders give them, correctly rounded: small ones by one exact division (Clinger 1990), others
by Eisel and Lemire's multiplication (Lemire, "Number Parsing at a Gigabyte per Second", 2021, section 5).
This module imports numba, so import it inside functions.
"""

from __future__ import annotations

import numpy as np

from detkit.ops.compiled import kernel

_TENS = np.array([10.0**k for k in range(23)])  # exact
_MOST = 64  # decimal exponents -64..64


def _fives() -> tuple[np.ndarray, np.ndarray]:
    """The leading 128 bits of 5^q for q in -64..64, as two halves; inverses up to 5^-27 rounded up, the rest cut."""
    values = []
    for q in range(-_MOST, _MOST + 1):
        if q >= 0:
            value = 5**q << 128 >> (5**q).bit_length()
        else:
            size = (5**-q - 1).bit_length()
            value = (1 << (size + 127 if q >= -27 else 2 * size + 128)) // 5**-q + 1
            value >>= max(0, value.bit_length() - 128)
        values.append(value)
    return np.array([v >> 64 for v in values], np.uint64), np.array([v & (1 << 64) - 1 for v in values], np.uint64)


_HIGH, _LOW = _fives()


@kernel
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """High and low half of a * b."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half), a * b


@kernel
def _rounded(digits: np.uint64, exponent: int, bits: np.ndarray) -> bool:
    """Writes the bits of the double nearest to digits * 10^exponent; False where this method cannot tell."""
    if digits == 0:
        bits[0] = 0
        return True
    if exponent < -_MOST or exponent > _MOST:
        return False
    shift = 0
    for step in (32, 16, 8, 4, 2, 1):
        if digits >> np.uint64(64 - step) == 0:
            digits <<= np.uint64(step)
            shift += step
    high, low = _product(digits, _HIGH[exponent + _MOST])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(digits, _LOW[exponent + _MOST])
        low += more
        if low < more:
            high += np.uint64(1)
    upper = high >> np.uint64(63)
    cut = upper + np.uint64(9)
    mantissa = high >> cut
    power = ((217706 * exponent) >> 16) + 63 + np.int64(upper) - shift + 1023
    if power <= 0 or power >= 2046:
        return False
    near_half = low <= np.uint64(1) and -4 <= exponent <= 23 and mantissa & np.uint64(3) == np.uint64(1)
    if near_half and mantissa << cut == high:
        mantissa &= ~np.uint64(1)  # exactly between two doubles: to the even one
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    if mantissa >= np.uint64(1) << np.uint64(53):
        mantissa = np.uint64(1) << np.uint64(52)
        power += 1
    bits[0] = (mantissa & ~(np.uint64(1) << np.uint64(52))) | (np.uint64(power) << np.uint64(52))
    return True


@kernel
def _number(text: np.ndarray, i: int, bits: np.ndarray, wide: np.ndarray) -> tuple[float, int, bool]:
    """The number at ``i``: its value, where it ends (-1: not one that this scanner takes), whether it is an integer."""
    negative = text[i] == 45  # -
    if negative:
        i += 1
    begin = i
    digits = np.uint64(0)
    exponent = 0
    while text[i] >= 48 and text[i] <= 57:
        digits = digits * np.uint64(10) + np.uint64(text[i] - 48)
        i += 1
    count = i - begin
    whole = True
    if count == 0 or (count > 1 and text[begin] == 48):
        return 0.0, -1, False
    if text[i] == 46:  # .
        i += 1
        point = i
        while text[i] >= 48 and text[i] <= 57:
            digits = digits * np.uint64(10) + np.uint64(text[i] - 48)
            i += 1
        exponent = point - i
        count += i - point
        whole = False
        if i == point:
            return 0.0, -1, False
    if count > 19:  # too many for 64 bits, unless they are leading zeros
        j = begin
        while text[j] == 48 or text[j] == 46:
            count -= 1 if text[j] == 48 else 0
            j += 1
        if count > 19:
            return 0.0, -1, False
    if text[i] == 101 or text[i] == 69:  # e, E
        i += 1
        minus = text[i] == 45
        if minus or text[i] == 43:
            i += 1
        point = i
        power = 0
        while text[i] >= 48 and text[i] <= 57:
            power = power * 10 + (np.int64(text[i]) - 48) if power < 10000 else power  # type: ignore[assignment]
            i += 1
        exponent += -power if minus else power
        whole = False
        if i == point:
            return 0.0, -1, False
    if digits <= np.uint64(9007199254740992) and -22 <= exponent <= 22:
        value = np.float64(np.int64(digits))
        value = value / _TENS[-exponent] if exponent < 0 else value * _TENS[exponent]
    else:
        if not _rounded(digits, exponent, bits):
            return 0.0, -1, False
        value = wide[0]
    return -value if negative else value, i, whole


@kernel
def _blank(text: np.ndarray, i: int) -> int:
    while text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9:
        i += 1
    return i


@kernel
def _string_end(text: np.ndarray, i: int) -> int:
    """The place after the string that starts at ``i``, or -1: no end, an escape, or a control character."""
    i += 1
    while i < text.shape[0] and text[i] != 34:
        if text[i] == 92 or text[i] < 32:
            return -1
        i += 1
    return i + 1 if i < text.shape[0] - 1 else -1


@kernel
def _skip(text: np.ndarray, i: int, bits: np.ndarray, wide: np.ndarray) -> int:
    """The place after the value at ``i``, or -1. Of a list or an object only brackets and strings are looked at."""
    if text[i] == 34:
        return _string_end(text, i)
    if text[i] != 91 and text[i] != 123:
        _, end, _ = _number(text, i, bits, wide)
        return end
    depth = 0
    last = text.shape[0] - 1
    while i < last:
        if text[i] == 34:
            i = _string_end(text, i)
            if i < 0:
                return -1
            continue
        if text[i] == 91 or text[i] == 123:
            depth += 1
        elif text[i] == 93 or text[i] == 125:
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return -1


_WORDS = np.zeros((4, 12), np.uint8)
for _row, _word in enumerate((b'image_id"', b'category_id"', b'bbox"', b'score"')):
    _WORDS[_row, : len(_word)] = list(_word)


@kernel
def _key(text: np.ndarray, i: int) -> tuple[int, int]:
    """Which of the four keys stands at ``i`` (4: another) and where it ends, -1 for what is no plain string."""
    first = text[i + 1]
    field = 0 if first == 105 else 1 if first == 99 else 2 if first == 98 else 3 if first == 115 else 4
    if field < 4:
        for j in range(12):
            if text[i + 1 + j] != _WORDS[field, j]:
                break
            if text[i + 1 + j] == 34:
                return field, i + 2 + j
    return 4, _string_end(text, i)


@kernel
def braces(text: np.ndarray, start: int, stop: int) -> int:
    """How many "{" there are: as many entries at most."""
    count = 0
    for begin in range(start, stop, 255):
        small = np.uint8(0)  # eight bits wide, so that a vector register holds many
        for byte in text[begin : min(begin + 255, stop)]:
            small = np.uint8(small + np.uint8(byte == 123))
        count += np.int64(small)  # type: ignore[assignment]
    return count


@kernel
def scan(
    text: np.ndarray,
    start: int,
    stop: int,
    image: np.ndarray,
    category: np.ndarray,
    box: np.ndarray,
    score: np.ndarray,
) -> int:
    """Reads entries ``{...}, {...}`` from ``start`` until one ends at ``stop``; returns how many, -1 for anything else.

    text: bytes whose last one is "]". Writes image, category (n,) int64, box (n, 4) and score (n,) float64.
    """
    wide = np.empty(1)
    bits = wide.view(np.uint64)
    row = 0
    i = start
    while i < stop:
        if text[i] != 123 or row >= score.shape[0]:  # {
            return -1
        i = _blank(text, i + 1)
        seen = 0
        while True:
            if text[i] != 34:
                return -1
            field, i = _key(text, i)
            if i < 0:
                return -1
            i = _blank(text, i)
            if text[i] != 58:  # :
                return -1
            i = _blank(text, i + 1)
            if field == 4:
                i = _skip(text, i, bits, wide)
            elif seen & (1 << field):
                return -1
            elif field == 2:
                if text[i] != 91:  # [
                    return -1
                for axis in range(4):
                    i = _blank(text, i + 1)
                    value, i, _ = _number(text, i, bits, wide)
                    if i < 0:
                        return -1
                    box[row, axis] = value
                    i = _blank(text, i)
                    if text[i] != (93 if axis == 3 else 44):
                        return -1
                i += 1
            else:
                value, i, whole = _number(text, i, bits, wide)
                if field == 3:
                    score[row] = value
                elif not whole or abs(value) > 9007199254740992.0:
                    return -1
                elif field == 0:
                    image[row] = np.int64(value)
                else:
                    category[row] = np.int64(value)
            if i < 0:
                return -1
            if field < 4:
                seen |= 1 << field
            i = _blank(text, i)
            if text[i] == 44:  # ,
                i = _blank(text, i + 1)
            elif text[i] == 125:  # }
                i += 1
                break
            else:
                return -1
        if seen != 15:
            return -1
        row += 1
        if i == stop:
            return row
        i = _blank(text, i)
        if i == stop:
            return row
        if text[i] != 44:
            return -1
        i = _blank(text, i + 1)
    return -1
