"""Where to compute, and in what precision, on this machine."""

from __future__ import annotations

import ctypes
import sys

import torch

from detkit.errors import DetkitError


def pick_device(name: str | int) -> torch.device:
    """The device of that name; ``auto`` is CUDA, else MPS, else the CPU; a number is that GPU.

    Raises:
        DetkitError: It is not there.
    """
    name = f"cuda:{name}" if str(name).isdigit() else str(name)
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
    """The precision of that name; ``auto`` is bf16 where the hardware multiplies in it, else fp32.

    Newer GPUs do, and CPUs with AMX or AVX512-BF16.

    Raises:
        DetkitError: fp16 on a CPU.
    """
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
