"""Numpy arrays and torch tensors side by side, without importing torch unless a tensor is asked for."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


def is_tensor(value: Any) -> bool:
    """True if ``value`` is a torch tensor; never imports torch."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.Tensor)


def convert_kind(value: Any, dtype: str, like: Any) -> Any:
    """``value`` as an array of ``dtype``, of the kind of ``like``; mixing numpy and torch is an error."""
    if is_tensor(value) != is_tensor(like) and (is_tensor(value) or isinstance(value, np.ndarray)):
        raise TypeError("a structure holds numpy arrays or torch tensors, never both")
    if not is_tensor(like):
        return np.asarray(value, dtype=dtype)
    torch = sys.modules["torch"]
    value = value if is_tensor(value) else torch.as_tensor(value, device=like.device)
    return value.to(getattr(torch, dtype))


def row_index(index: Any, like: Any) -> Any:
    """An index that keeps the leading dimension: one int selects a structure of length one."""
    if isinstance(index, (int, np.integer)):
        if not -len(like) <= index < len(like):
            raise IndexError(f"row {index} of {len(like)}")  # also ends ``for row in structure``
        return slice(int(index), int(index) + 1 or None)
    if isinstance(index, list):
        index = np.asarray(index, dtype=np.int64 if not index else None)
    if is_tensor(like) and isinstance(index, np.ndarray):
        return sys.modules["torch"].as_tensor(index, device=like.device)
    if not is_tensor(like) and is_tensor(index):
        return index.cpu().numpy()
    return index


def moved(value: Any, device: Any, *, non_blocking: bool = False) -> Any:
    """An array or tensor as a tensor on ``device``."""
    if not is_tensor(value):
        import torch

        value = torch.from_numpy(np.ascontiguousarray(value))
    return value.to(device, non_blocking=non_blocking)


def as_numpy(value: Any) -> Any:
    """A tensor as a numpy array; anything else as it is."""
    return value.detach().cpu().numpy() if is_tensor(value) else value


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: lists for tuples and arrays, Python's numbers for numpy's, null for NaN, text for
    the rest."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
