"""Where a run computes: device, precision, processes. All that differs between machines is behind this one class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from detkit.devices import keep_freed_memory, pick_device, pick_precision

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
