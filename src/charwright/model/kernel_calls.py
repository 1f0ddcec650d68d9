"""What calls of the C kernels share: PyTorch's threads, working memory, addresses."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from charwright.kernels import Kernels
from charwright.model.compute import CPU


@cache
def share_threads(kernels: Kernels) -> None:
    """Run the kernels on PyTorch's OpenMP threads, if that runtime can be found.

    Its threads spin for some milliseconds after each PyTorch operation and would compete with other threads for the
    cores.
    """
    if sys.platform != "win32":  # There the kernels use their own threads.
        brought_along = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
        for name in [*map(str, brought_along), "libgomp.so.1"]:
            # Only a runtime that is already loaded can be PyTorch's.
            with suppress(OSError):
                kernels.use_openmp(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW))
                return


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An array in the CPU's memory, whatever PyTorch's default type and device are; its contents are undefined."""
    return torch.empty(shape, dtype=dtype, device=CPU)


# Large internal arrays are reused: fresh memory costs a page fault every 4 kB.
_spare: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}
MOST_SPARE = 12
_lending = Lock()


def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An array whose contents are undefined."""
    with _lending:
        found = _spare.pop((tuple(shape), dtype), None)
    return fresh(*shape, dtype=dtype) if found is None else found


def give_back(*tensors: Tensor | None) -> None:
    """Keep borrowed arrays for the next ones of their shapes; the caller no longer uses them."""
    with _lending:
        for tensor in tensors:
            if tensor is not None:
                _spare[tuple(tensor.shape), tensor.dtype] = tensor
        while len(_spare) > MOST_SPARE:
            del _spare[next(iter(_spare))]


def free_borrowed() -> None:
    """Free the arrays that are kept for the next ones of their shapes."""
    with _lending:
        _spare.clear()


def ids_fit(kernels: Kernels | None, ids: Tensor, vocabulary: int) -> bool:
    """Whether all ids, int64, are from 0 to `vocabulary` - 1."""
    if kernels is not None and ids.is_contiguous() and ids.device.type == "cpu":
        return kernels.ids_fit(ids.data_ptr(), ids.numel(), vocabulary)
    low, high = ids.aminmax()
    return int(low) >= 0 and int(high) < vocabulary


def check_ids(kernels: Kernels | None, ids: Tensor, vocabulary: int) -> None:
    """Check that all ids have a row in the embedding.

    Raises:
        ValueError: if not.
    """
    if not ids_fit(kernels, ids, vocabulary):
        raise ValueError(f"ids must be from 0 to {vocabulary - 1}, those of the vocabulary")


def address(tensor: Tensor | None) -> int | None:
    """Where the numbers of a tensor are, which the caller keeps alive; None without one."""
    return None if tensor is None else tensor.data_ptr()
