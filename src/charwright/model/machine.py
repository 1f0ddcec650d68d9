"""What the machine is good at: which device, and whether bfloat16 pays there."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from charwright import kernels
from charwright.errors import UsageError
from charwright.model.recurrent import choose_core

NO_KERNELS = (
    "the C kernels were not built, and training on the CPU takes about twice as long; "
    "install charwright again where a C compiler is"
)


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, then Metal, then the CPU.

    Raises:
        UsageError: when the name is no device, or the machine has none of that kind.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is no device; try auto, cpu, cuda or mps") from error
    if not available.get(device.type, False):
        raise UsageError(f"--device {name}: this machine, or its PyTorch, has no {device.type}; try --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of the matrix products: `auto` is bfloat16 where the device multiplies it faster than float32."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"f32": torch.float32, "bf16": torch.bfloat16}[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # PyTorch knows, but under names that it has not promised to keep.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)


@cache
def keep_memory() -> None:
    """Ask the C library to keep memory that is freed, for the next step that will want as much.

    Otherwise it goes back to the system after each step and comes again as pages that must be cleared one by one,
    which can cost a sixth of a training step. Only glibc can be asked; elsewhere this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 * 2**20)  # the largest that it accepts
        mallopt(trim_threshold, 2**31 - 1)


def describe_machine() -> dict[str, Any]:
    """What was found on this machine and what `auto` means here, ready to be shown."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    loaded = kernels.load()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if precision == torch.bfloat16 else "f32",
        "core": choose_core("auto", device, precision),
        "kernels": loaded.name if loaded else f"none: {NO_KERNELS}",
        "kernels_here": kernels.available(),
        "torch": torch.__version__,
    }
