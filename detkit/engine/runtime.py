"""Where a run computes: device, precision, processes. All that differs between machines is behind this one class."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from detkit.errors import DetkitError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """device: ``auto`` or torch's name; precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.

    rank, world: this process's number and how many there are; accelerate starts and joins them (torchrun, ``accelerate
    launch``) and splits gradients. Raises DetkitError for a device or precision that this machine does not have.
    """

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        self._accelerator: Any = None
        self.rank, self.world = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=device == "cpu")
            self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
            self.device: torch.device = self._accelerator.device
        else:
            self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def main(self) -> bool:
        """True in the one process that writes files and tells what happens."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: it averages gradients over processes."""
        return model if self._accelerator is None else self._accelerator.prepare_model(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision in the block, if this run has any."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def without_sync(self, module: nn.Module, really: bool) -> AbstractContextManager[Any]:
        """Gradients stay in this process in the block, because more of the window follows."""
        return self._accelerator.no_sync(module) if really and self._accelerator is not None else nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes."""
        return values if self._accelerator is None else self._accelerator.reduce(values, reduction="sum")

    def any(self, flag: int) -> bool:
        """True in every process if ``flag`` is not 0 in one of them."""
        return bool(flag) if self._accelerator is None else bool(self.sum(torch.tensor(flag, device=self.device)))

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order of rank."""
        if self._accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Gives every process the main one's values, in place (running statistics differ between processes)."""
        if self._accelerator is not None:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def memory(self) -> float:
        """The most memory that was in use, in MB: the accelerator's, on a CPU this process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        import psutil

        return psutil.Process().memory_info().rss / 2**20


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA, else MPS, else the CPU. Raises DetkitError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DetkitError(f"no device {name!r} here", reason, "use cpu, or leave the device out") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware multiplies in it (newer GPUs, CPUs with AMX or AVX512-BF16), else fp32."""
    if name == "fp16" and device.type == "cpu":
        raise DetkitError("fp16 does not train on a CPU", "train.precision", "use bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step instead of handing it back (elsewhere: nothing).

    Activations come and go in blocks of many megabytes; fetched anew from the system, their page faults take a third
    of a training step on CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
