"""Where a run computes: device, precision, processes. All that differs between machines is behind this one class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from torch import Tensor, nn

from detkit.devices import keep_freed_memory, pick_device, pick_precision
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from detkit.engine.options import TrainOptions

T = TypeVar("T")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """One process's view of the run's machines.

    accelerate starts and joins several processes (torchrun, ``accelerate launch``) and averages gradients over them.

    Args:
        device: ``auto`` or torch's name.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.

    Attributes:
        rank: This process's number.
        world: How many there are.
        main: True in the one that writes files and tells what happens.
        device: Where it computes.
        precision: How; never ``auto``.
        scaler: Of the loss; it does nothing but in fp16.

    Raises:
        DetkitError: A device or precision that this machine does not have.
    """

    def __init__(self, device: str | int = "auto", precision: str = "auto") -> None:
        self._accelerator: Accelerator | None = None
        self.rank, self.world = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=device == "cpu")
            self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.main = self.rank == 0
        self.device = pick_device(device) if self._accelerator is None else self._accelerator.device
        self.precision = pick_precision(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, model: nn.Module, options: TrainOptions) -> None:
        """Moves a model here, in the order of pixels that the options ask for; BatchNorms counting over processes.

        Raises:
            DetkitError: ``sync_norms`` where torch has none.
        """
        if options.sync_norms and self.world > 1:
            if self.device.type != "cuda":
                do = "leave it out; freeze_norms=true makes processes equal on a CPU"
                raise DetkitError("BatchNorm is shared by processes on CUDA only", "train.sync_norms", do)
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        for part in ("backbone", "neck") if options.compile else ():
            getattr(model, part).compile()  # in place: names, copies and files stay as they are

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: it averages gradients over processes."""
        return model if self._accelerator is None else self._accelerator.prepare_model(model)

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision in the block, if this run has any."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def without_sync(self, module: nn.Module, really: bool) -> AbstractContextManager[object]:
        """Gradients stay in this process in the block, because more of the window follows."""
        return self._accelerator.no_sync(module) if really and self._accelerator is not None else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return values if self._accelerator is None else self._accelerator.reduce(values, reduction="sum")

    def any(self, flag: int) -> bool:
        """True in every process if ``flag`` is not 0 in one of them."""
        return bool(self.sum(torch.tensor(flag, device=self.device))) if self.world > 1 else bool(flag)

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, in order of rank."""
        if self._accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the main one's values, in place (running statistics differ between processes)."""
        if self.world > 1:
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
        return psutil.Process().memory_info().rss / 2**20
