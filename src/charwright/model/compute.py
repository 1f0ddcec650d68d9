"""Where and how a model computes: device, recurrent core, precision, kernels and threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from charwright import kernels
from charwright.errors import UsageError
from charwright.model.features import by_features, features_of
from charwright.schema import thread_count

CORES = ("auto", "plain", "native", "fused", "torch")

NOT_BUILT = "the C kernels were not built", "reinstall charwright with a C compiler available"
SWITCHED_OFF = "CHARWRIGHT_KERNELS=none switches the C kernels off", "unset it"

CPU = torch.device("cpu")


PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """How a model computes.

    `core` is the recurrent core, `precision` the type of the matrix products, `threads` the number of CPU threads
    (None: as PyTorch is set), `kernel` the variant of the C kernels (None: as CHARWRIGHT_KERNELS says, or the best).
    """

    device: torch.device = CPU
    core: str = "auto"
    precision: torch.dtype = torch.float32
    threads: int | None = None
    kernel: str | None = None

    @classmethod
    def choose(
        cls, device: str = "auto", core: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> Compute:
        """Resolve the names that options use; for `auto` the features of this machine decide, by `by_features`.

        Raises:
            UsageError: when a name is unknown, or not available on this machine.
        """
        place = choose_device(device)
        core = asked_core(core)
        _check_core_name(core)
        core, named, kernel = by_features(features_of(place), core, precision)
        compute = cls(place, core, PRECISIONS[named], threads, kernel)
        choose_core(core, place, compute.precision)
        return compute

    @property
    def precision_name(self) -> str:
        """The precision as options name it: f32 or bf16."""
        return next((name for name, dtype in PRECISIONS.items() if dtype == self.precision), str(self.precision))

    @property
    def label(self) -> str:
        """Core, precision and variant in a few words: `native f32 avx512`."""
        return " ".join([self.core, self.precision_name, *([self.kernel] if self.kernel else [])])

    def start(self) -> None:
        """Set PyTorch's number of threads, if one is given, and start a GPU.

        A GPU's first product loads libraries, which takes seconds that no measurement of its speed should count.

        Raises:
            UsageError: in a fork of a process that has started, whose threads PyTorch waits for in vain.
        """
        if STARTED_IN and os.getpid() not in STARTED_IN and (self.threads or torch.get_num_threads()) > 1:
            raise UsageError(
                "this process is a fork of one that has trained, where PyTorch's threads do not work: start processes"
                " by the method spawn, or use one thread (threads=1)"
            )
        STARTED_IN.add(os.getpid())
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device.type != "cpu":
            one = torch.ones(1, 1, device=self.device)
            float(one @ one)


STARTED_IN: set[int] = set()
"""The process that has started, and in a fork of it both."""


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Leave PyTorch with the number of threads that it has now."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Wanted:
    """What the user asks for, by the names that options use; `auto` and None leave it to the machine.

    Raises:
        ConfigError: when the number of threads is none.
    """

    device: str = "auto"
    core: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the number of threads, which PyTorch does not."""
        object.__setattr__(self, "threads", thread_count(self.threads))

    def by_rule(self) -> Compute:
        """What the features of this machine decide, without a measurement."""
        return Compute.choose(self.device, self.core, self.precision, self.threads)


def choose_device(name: str) -> torch.device:
    """Resolve the name of a device; `auto` selects CUDA, then Metal, then the CPU.

    Raises:
        UsageError: when there is no such device, or not on this machine.
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
        raise UsageError(f"--device {name!r} is not a device; try auto, cpu, cuda or mps") from error
    if not available.get(device.type, False):
        raise UsageError(f"--device {name}: this machine, or its PyTorch, has no {device.type}; try --device cpu")
    return device


def asked_core(name: str) -> str:
    """The core that the user asks for: by an option or, if that is `auto`, by CHARWRIGHT_CORE."""
    return (os.environ.get("CHARWRIGHT_CORE") or "auto") if name == "auto" else name


def choose_core(name: str, device: torch.device, dtype: torch.dtype = torch.float32, kernel: str | None = None) -> str:
    """Resolve the name of a core on a device, for products in `dtype`, by a variant of the kernels if one is named.

    `auto` (or the value of CHARWRIGHT_CORE) selects the C kernels on a CPU if they were built, and PyTorch's own layers
    on a GPU.

    Raises:
        UsageError: when there is no such core, or it does not work here.
    """
    name = asked_core(name)
    _check_core_name(name)
    fits_native = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    if name == "auto":
        if device.type != "cpu":
            return "torch"
        return "native" if fits_native and kernels.load(kernel) is not None else "fused"
    if name == "native" and not fits_native:
        raise UsageError(f"--core native works on the cpu in f32 and bf16, not on {device.type} in {dtype}")
    if name == "native" and kernels.load(kernel) is None:
        raise UsageError(f"--core native: {why_no_kernels()}")
    return name


def _check_core_name(name: str) -> None:
    if name not in CORES:
        raise UsageError(f"--core (or CHARWRIGHT_CORE) must be one of {', '.join(CORES)}, not {name!r}")


def why_no_kernels(*, cost: bool = False) -> str:
    """Why the C kernels are not there, what that costs if `cost`, and what to do."""
    cause, advice = SWITCHED_OFF if kernels.available() else NOT_BUILT
    return f"{cause}{', so training on the CPU takes two to four times as long' if cost else ''}; {advice}"


@cache
def keep_memory() -> None:
    """Ask the C library to keep freed memory for the next training step.

    By default it returns the memory to the system after each step and gets it back as pages that have to be cleared,
    which can cost a sixth of a training step. This works with glibc and does nothing elsewhere.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 * 2**20)  # the largest value it accepts
        mallopt(trim_threshold, 2**31 - 1)


def refuse_second_derivatives() -> None:
    """Refuse a backward pass, in which this is called, that is recorded itself: the gradients would lack a part.

    Raises:
        RuntimeError: within `backward` or `grad` with `create_graph`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this core or loss has no second derivative; use Compute(core='plain') of charwright.model.compute, "
            "and the cross-entropy of the logits that the model returns"
        )


def describe_machine() -> dict[str, Any]:
    """What this machine offers and what `auto` selects on it."""
    compute = Compute.choose()
    loaded = kernels.load()
    on_cuda = compute.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(compute.device) if on_cuda else str(compute.device),
        "threads": torch.get_num_threads(),
        "precision": compute.precision_name,
        "core": compute.core,
        "kernels": loaded.name if loaded else f"none: {why_no_kernels(cost=True)}",
        "kernels_here": kernels.available(),
        "torch": torch.__version__,
    }
