"""What the functions of ``detkit.ops`` accept: numpy arrays (or lists) or torch tensors, never both in one call.

float32 and float64 stay as they are; half precision and integers become float32; bool, complex and everything that is
not a number is a TypeError; a wrong shape is a ValueError. Nothing here changes or aliases-and-writes its argument.
Plain numbers out of their range are a ValueError too, here and in the networks that are made of them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from detkit.arrays import is_tensor


def float_array(value: Any, name: str) -> Any:
    """``value`` in float32 or float64, of its own kind."""
    if is_tensor(value):
        torch = sys.modules["torch"]
        if value.dtype in (torch.float32, torch.float64):
            return value
        if value.dtype == torch.bool or value.dtype.is_complex:
            raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
        return value.float()
    array = np.asarray(value)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(np.float64 if array.dtype.itemsize > 8 else np.float32)


def box_array(value: Any, name: str = "boxes") -> Any:
    """``value`` as (N, 4) float32 or float64; an empty list counts as (0, 4)."""
    boxes = float_array(value, name)
    if boxes.shape == (0,):
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
    return boxes


def score_array(value: Any, count: int, name: str = "scores") -> Any:
    """``value`` as (count,) float32 or float64."""
    scores = float_array(value, name)
    if tuple(scores.shape) != (count,):
        raise ValueError(f"{name} must have shape ({count},), one a box, got {tuple(scores.shape)}")
    return scores


def label_array(value: Any, count: int, name: str = "labels") -> Any:
    """``value`` as (count,) int64."""
    if is_tensor(value):
        torch = sys.modules["torch"]
        whole = not (value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool)
    else:
        value = np.asarray(value)
        whole = value.dtype.kind in "iu" or value.shape == (0,)
    if not whole:
        raise TypeError(f"{name} must be integers, got {value.dtype}")
    if tuple(value.shape) != (count,):
        raise ValueError(f"{name} must have shape ({count},), one a box, got {tuple(value.shape)}")
    return value.long() if is_tensor(value) else value.astype(np.int64, copy=False)


def check_same_kind(*values: Any) -> None:
    """TypeError where numpy and torch meet in one call, ValueError where two devices do."""
    tensors = [value for value in values if is_tensor(value)]
    if not tensors:
        return
    if len(tensors) != len(values):
        raise TypeError("numpy arrays and torch tensors cannot be mixed in one call: convert one of them")
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"tensors lie on different devices: {sorted({str(t.device) for t in tensors})}")


def same_dtype(a: Any, b: Any) -> tuple[Any, Any]:
    """``a`` and ``b`` in the wider of their two float types."""
    if a.dtype == b.dtype:
        return a, b
    return (a.double(), b.double()) if is_tensor(a) else (a.astype(np.float64), b.astype(np.float64))


def host_arrays(*tensors: Any) -> list[np.ndarray] | None:
    """Numpy views of plain CPU tensors, or None where torch itself has to see the operations.

    None for other devices, for tensors that need a gradient, and for traced, compiled, fake or wrapped ones.
    """
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    for tensor in tensors:
        if tensor.device.type != "cpu" or (tensor.requires_grad and torch.is_grad_enabled()):
            return None
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            return None
    try:
        return [tensor.detach().numpy() for tensor in tensors]
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
