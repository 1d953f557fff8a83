"""What the functions of ``detkit.ops`` accept: numpy arrays (or lists) or torch tensors, never both in one call.

float32 and float64 stay as they are; half precision and integers become float32, quantised tensors the numbers that
they stand for; bool, complex and everything that is not a number is a TypeError; a wrong shape is a ValueError. Nothing
here changes or aliases-and-writes its argument.
Plain numbers out of their range are a ValueError too, here and in the networks that are made of them.
"""

from __future__ import annotations

import sys
from typing import cast

import numpy as np

from detkit.arrays import Array, Either, is_tensor


def float_array(value: Array, name: str) -> Array:
    """``value`` in float32 or float64, of its own kind; ``name``: for errors.

    Raises:
        TypeError: It holds no real numbers.
    """
    found: Either = value if is_tensor(value) else np.asarray(value)
    xp = sys.modules["torch"] if is_tensor(value) else np
    if is_tensor(value) and found.is_quantized:
        return cast("Array", found.dequantize())
    if found.dtype in (xp.float32, xp.float64):
        return cast("Array", found)
    if not _kind(found).startswith(("f", "bf", "i", "u")):
        raise TypeError(f"{name} must hold real numbers, got dtype {found.dtype}")
    if is_tensor(value):
        return cast("Array", found.float())
    return cast("Array", found.astype(np.float64 if found.dtype.itemsize > 8 else np.float32))


def box_array(value: Array, name: str = "boxes") -> Array:
    """``value`` as (N, 4) float32 or float64; an empty list counts as (0, 4).

    Raises:
        ValueError: Another shape.
    """
    boxes = float_array(value, name)
    if boxes.shape == (0,):
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
    return boxes


def score_array(value: Array, count: int, name: str = "scores") -> Array:
    """``value`` as (count,) float32 or float64.

    Raises:
        ValueError: Another shape.
    """
    return _of_length(float_array(value, name), count, name)


def label_array(value: Array, count: int, name: str = "labels") -> Array:
    """``value`` as (count,) int64.

    Raises:
        TypeError: It holds no integers.
        ValueError: Another shape.
    """
    found: Either = value if is_tensor(value) else np.asarray(value)
    if not _kind(found).startswith(("i", "u")) and tuple(found.shape) != (0,):
        raise TypeError(f"{name} must be integers, got {found.dtype}")
    labels: Either = _of_length(found, count, name)
    return cast("Array", labels.long() if is_tensor(value) else labels.astype(np.int64, copy=False))


def of_nothing(value: Array | None, boxes: Array) -> Array:
    """``value``; where it is None, which may stand for the scores and labels of no boxes, an empty column."""
    if value is not None or len(boxes):
        return cast("Array", value)
    nothing: Either = boxes if is_tensor(boxes) else np.asarray(boxes)
    return cast("Array", nothing.reshape(-1))


def _kind(array: Either) -> str:
    """What the dtype is: f, i, u and others for numpy; float32, bfloat16, int64, bool for torch."""
    return str(array.dtype).removeprefix("torch.") if is_tensor(array) else str(array.dtype.kind)


def _of_length(value: Array, count: int, name: str) -> Array:
    if tuple(value.shape) != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per box, got {tuple(value.shape)}")
    return value


def check_same_kind(*values: object) -> None:
    """Checks that arrays can meet in one call.

    Raises:
        TypeError: Numpy and torch are mixed.
        ValueError: Tensors lie on different devices.
    """
    devices = {str(value.device) if is_tensor(value) else "" for value in cast("tuple[Either, ...]", values)}
    if "" in devices and len(devices) > 1:
        raise TypeError("numpy arrays and torch tensors cannot be mixed in one call: convert one of them")
    if len(devices) > 1:
        raise ValueError(f"tensors lie on different devices: {sorted(devices)}")


def same_dtype(a: Array, b: Array) -> tuple[Array, Array]:
    """``a`` and ``b`` in the wider of their two float types."""
    if a.dtype == b.dtype:
        return a, b
    return double(a), double(b)


def double(array: Array) -> Array:
    """``array`` in float64."""
    found: Either = array
    return cast("Array", found.double() if is_tensor(array) else found.astype(np.float64))


def as_kind(values: np.ndarray, like: Array) -> Array:
    """``values`` as the kind of array that ``like`` is, on its device."""
    source: Either = like
    return cast("Array", sys.modules["torch"].from_numpy(values).to(source.device) if is_tensor(like) else values)


def host_arrays(*arrays: Either) -> list[np.ndarray] | None:
    """Numpy arrays, and views of plain CPU tensors, for a compiled kernel.

    Returns:
        None where torch itself has to see the operations: for other devices, for tensors that need a gradient, and for
        traced, compiled, fake or wrapped ones.
    """
    if not is_tensor(arrays[0]):
        return list(arrays)
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    for tensor in arrays:
        if tensor.device.type != "cpu" or (tensor.requires_grad and torch.is_grad_enabled()):
            return None
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            return None
    try:
        return [tensor.detach().numpy() for tensor in arrays]
    except (RuntimeError, TypeError):  # inside vmap, or under a mode that makes every tensor a fake one
        return None


def check_positive(**values: float) -> None:
    """ValueError where one is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def check_shares(**values: float) -> None:
    """ValueError where one does not lie between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def behaved(array: np.ndarray) -> np.ndarray:
    """C-contiguous, aligned and writeable, copied if it is not: numba compiles a kernel again for each other layout."""
    return array if array.flags.carray else array.copy()
