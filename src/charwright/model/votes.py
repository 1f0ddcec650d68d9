"""The votes of a model's n-grams in PyTorch: where they begin in the array, their sums, and the array's gradient.

`charwright.ngrams` defines the offsets. T is the number of time steps, B that of rows, N = T * B, K = 3 that of
contexts, V the vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from charwright.ngrams import BEFORE, MULTIPLIERS


@dataclass(frozen=True)
class Votes:
    """What n-grams add to the logits of N positions."""

    array: Tensor  # (2^bits + V,)
    offsets: Tensor  # (K, N) int64
    gradient: Tensor | None = None  # of the array, added to

    def part(self, some: slice) -> Votes:
        """Those of some positions."""
        return replace(self, offsets=self.offsets[:, some].contiguous())

    def add_to(self, logits: Tensor) -> Tensor:
        """Add the votes to logits (N, V), in place."""
        vocabulary = logits.shape[1]
        rows = self.array.detach().as_strided((len(self.array) - vocabulary + 1, vocabulary), (1, 1))
        for offsets in self.offsets:
            logits += rows[offsets]
        return logits

    def add_gradient(self, d_logits: Tensor) -> None:
        """Add to the gradient of the array, from that of the logits (N, V)."""
        assert self.gradient is not None
        columns = torch.arange(d_logits.shape[1], device=d_logits.device)
        values = d_logits.to(self.gradient.dtype).flatten()
        for offsets in self.offsets:
            self.gradient.index_add_(0, (offsets[:, None] + columns).flatten(), values)


def contexts_of(ids: Tensor, before: Tensor | None = None) -> Tensor:
    """What n-grams see after each of ids (T, B): (T, B, 4) int64, the last four tokens, the last one first.

    A token is 1 + its id, and 0 where there is none. `before` (B, 3 or more) are those before the first id, by default
    none.
    """
    earlier = ids.new_zeros(ids.shape[1], BEFORE) if before is None else before[:, :BEFORE].to(ids.dtype)
    marks = torch.cat([earlier.flip(1).T, ids + 1])  # (3 + T, B)
    return torch.stack([marks[BEFORE - back : len(marks) - back] for back in range(BEFORE + 1)], dim=-1)


def offsets_of(contexts: Tensor, bits: int) -> Tensor:
    """The offsets (K, ...) of contexts (..., 4)."""
    found = []
    for row in MULTIPLIERS:
        # Number by number: a CUDA graph cannot record the copy of a list to the device.
        sums = torch.stack([contexts[..., k] * multiplier for k, multiplier in enumerate(row)]).sum(dim=0)
        incomplete = contexts[..., len(row) - 1] == 0  # Then so are all tokens before.
        found.append(((sums & 0xFFFFFFFF) >> (32 - bits)).masked_fill_(incomplete, 1 << bits))
    return torch.stack(found)


def summed_votes(votes: Votes, vocabulary_size: int) -> Tensor:
    """The votes as logits (N, V), for autograd."""
    result: Any = _Sum.apply(votes.array, votes.offsets, vocabulary_size)  # type: ignore[no-untyped-call]
    return result  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """array (2^bits + V,) and offsets (K, N) -> sums (N, V)."""

    @staticmethod
    def forward(ctx: Any, array: Tensor, offsets: Tensor, vocabulary_size: int) -> Tensor:
        ctx.save_for_backward(array, offsets)
        return Votes(array, offsets).add_to(array.new_zeros(offsets.shape[1], vocabulary_size))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        array, offsets = ctx.saved_tensors
        gradient = torch.zeros_like(array)
        Votes(array, offsets, gradient).add_gradient(grads[0])
        return gradient, None, None
