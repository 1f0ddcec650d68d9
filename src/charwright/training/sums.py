"""The sum of the gradients over the ranks: by torch.distributed, or in memory that the ranks of one machine share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from charwright.training.ranks import Ranks

SHARED_FOLDER = Path("/dev/shm")
"""A file system in memory, which Linux has."""


@dataclass(frozen=True)
class Turn:
    """The buffers of a step: this rank's gradients are written to `own`, and `total` has their sums after `add_up`."""

    own: Sequence[Tensor]
    total: Sequence[Tensor]
    add_up: Callable[[], object]


def turns_of(weights: Sequence[Tensor], ranks: Ranks) -> list[Turn]:
    """The buffers for gradients of these weights; steps take turns with them.

    All gradients travel together, since a message per weight would cost a round trip each.
    """
    flat = torch.zeros(sum(weight.numel() for weight in weights), device=weights[0].device)
    views = _views(flat, weights)
    shared = _shared(len(flat), ranks) if ranks.one_machine and flat.device.type == "cpu" else None
    if shared is None:
        return [Turn(views, views, partial(ranks.sum, flat))]
    return [Turn(_views(rows[ranks.rank], weights), views, partial(_add, rows, flat, ranks)) for rows in shared]


def _views(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    sizes = [weight.numel() for weight in weights]
    return [piece.view_as(weight) for piece, weight in zip(torch.split(flat, sizes), weights, strict=True)]


def _add(rows: Tensor, total: Tensor, ranks: Ranks) -> None:
    """Add up the rows (N, size) of all ranks. Each rank does so for itself, in the same order."""
    ranks.meet()  # All have written their row.
    torch.add(rows[0], rows[1], out=total)
    for row in rows[2:]:
        total += row


def _shared(size: int, ranks: Ranks) -> Tensor | None:
    """Memory (2, N, size) that all ranks map; None where that is not possible.

    There are two turns, since a rank may write its next gradients while a slower one still adds up those before.
    """
    count = 2 * ranks.size * size
    path = ranks.first(partial(_create, 4 * count))
    if path is None:
        return None
    mapped: Tensor | None = None
    with suppress(RuntimeError, OSError):
        mapped = torch.from_file(path, shared=True, size=count, dtype=torch.float32)
    everywhere = all(ranks.gather(mapped is not None))
    if ranks.rank == 0:
        Path(path).unlink(missing_ok=True)  # The memory lives as long as it is mapped.
    return mapped.view(2, ranks.size, size) if mapped is not None and everywhere else None


def _create(size_bytes: int) -> str | None:
    """Create a file of zeros in memory; None if there is no such place, or no room."""
    if not SHARED_FOLDER.is_dir() or not hasattr(os, "posix_fallocate"):
        return None
    path = None
    try:
        descriptor, path = tempfile.mkstemp(prefix="charwright-", dir=SHARED_FOLDER)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)  # A file with holes could fail on access.
        finally:
            os.close(descriptor)
    except OSError:
        if path is not None:
            Path(path).unlink(missing_ok=True)
        return None
    return path
