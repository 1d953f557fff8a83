"""Numpy arrays and torch tensors side by side, without importing torch unless a tensor is asked for."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")  # the same kind comes back
# A numpy array or a torch tensor, for what serves both. As a union, every expression of two would be a type error.
Either = Any


def is_tensor(value: object) -> bool:
    """True if ``value`` is a torch tensor; never imports torch."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.Tensor)


def convert_kind(value: Either, dtype: str, like: Either) -> Either:
    """``value`` as an array of another type, of the kind of ``like``.

    Args:
        value: An array, a tensor or a list.
        dtype: The type's name, one that numpy and torch share.
        like: A numpy array or a tensor, whose device counts for lists.

    Raises:
        TypeError: One is a numpy array and the other a tensor.
    """
    if is_tensor(value) != is_tensor(like) and (is_tensor(value) or isinstance(value, np.ndarray)):
        raise TypeError("a structure holds numpy arrays or torch tensors, never both")
    if not is_tensor(like):
        return np.asarray(value, dtype=dtype)
    torch = sys.modules["torch"]
    return torch.as_tensor(value, dtype=getattr(torch, dtype), device=None if is_tensor(value) else like.device)


def concatenated(values: Sequence[Either], axis: int = 0) -> Either:
    """Arrays or tensors of one kind as one, end to end.

    Raises:
        TypeError: Numpy arrays and tensors are mixed.
    """
    if len({is_tensor(value) for value in values}) > 1:
        raise TypeError("a structure holds numpy arrays or torch tensors, never both")
    return sys.modules["torch"].cat(values, axis) if is_tensor(values[0]) else np.concatenate(values, axis)


def row_index(index: Either, like: Either) -> Either:
    """An index that keeps the leading dimension: one int selects a structure of length one.

    Args:
        index: An int, a slice, a list, or an array or tensor of ints or bools.
        like: What is indexed.

    Raises:
        IndexError: An int beyond the rows, which also ends ``for row in structure``.
    """
    if isinstance(index, (int, np.integer)):
        if not -len(like) <= index < len(like):
            raise IndexError(f"row {index} of {len(like)}")
        return slice(int(index), int(index) + 1 or None)
    if isinstance(index, list):
        index = np.asarray(index, dtype=np.int64 if not index else None)
    if is_tensor(like) and isinstance(index, np.ndarray):
        return sys.modules["torch"].as_tensor(index, device=like.device)
    return index if is_tensor(like) else as_numpy(index)


def moved(value: Either, device: torch.device | str, *, non_blocking: bool = False) -> Either:
    """An array or tensor as a tensor on ``device``."""
    if not is_tensor(value):
        import torch

        value = torch.from_numpy(np.ascontiguousarray(value))
    return value.to(device, non_blocking=non_blocking)


def as_numpy(value: Either) -> Either:
    """A tensor as a numpy array; anything else as it is."""
    return value.detach().cpu().numpy() if is_tensor(value) else value


def plain(value: object) -> Any:
    """``value`` as JSON can hold it: lists for tuples and arrays, Python's numbers for numpy's, null for NaN, text for
    the rest."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
