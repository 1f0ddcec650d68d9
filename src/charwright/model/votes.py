"""The votes of a model's n-grams in PyTorch: where they begin in the array, their sums, and the array's gradient.

`charwright.ngrams` defines the offsets. T is the number of time steps, B that of rows, N = T * B, K = order - 1 that of
contexts, V the vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from charwright.ngrams import HIGHEST_ORDER, MULTIPLIERS


@dataclass(frozen=True)
class RowGradient:
    """The gradient of an array of n-grams: each position adds its numbers (V,) to the K rows from its offsets on.

    As an array it would be zero almost everywhere.
    """

    offsets: Tensor  # (K, N) int64
    d_logits: Tensor  # (N, V) float32 or bfloat16

    def times(self, factor: Tensor | float) -> RowGradient:
        """The gradient of a loss that counts `factor` times."""
        return replace(self, d_logits=self.d_logits * factor)

    def add_to(self, array: Tensor, factor: Tensor | float = 1.0) -> None:
        """Add `factor` times the gradient to an array (2^bits + V,)."""
        columns = torch.arange(self.d_logits.shape[1], device=array.device)
        values = (self.d_logits.to(array.dtype) * factor).flatten()
        for offsets in self.offsets:
            array.index_add_(0, (offsets[:, None] + columns).flatten(), values)


def joined(gradients: Sequence[RowGradient]) -> RowGradient:
    """The gradients of some positions after each other as one."""
    offsets = torch.cat([gradient.offsets for gradient in gradients], dim=1)
    return RowGradient(offsets, torch.cat([gradient.d_logits for gradient in gradients]))


@dataclass(frozen=True)
class Votes:
    """What n-grams add to the logits of N positions.

    `gradients` collects the gradient of the array in backward passes; without it, autograd gets the array's.
    """

    array: Tensor  # (2^bits + V,)
    offsets: Tensor  # (K, N) int64
    gradients: list[RowGradient] | None = None

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


def contexts_of(ids: Tensor, order: int, before: Tensor | None = None) -> Tensor:
    """What n-grams see after each of ids (T, B): (T, B, order) int64, the last tokens, the last one first.

    A token is 1 + its id, and 0 where there is none. `before` (B, order - 1 or more) are those before the first id, by
    default none.
    """
    earlier = ids.new_zeros(ids.shape[1], order - 1) if before is None else before[:, : order - 1].to(ids.dtype)
    marks = torch.cat([earlier.flip(1).T, ids + 1])  # (order - 1 + T, B)
    return torch.stack([marks[order - 1 - back : len(marks) - back] for back in range(order)], dim=-1)


def offsets_of(contexts: Tensor, bits: int) -> Tensor:
    """The offsets (K, ...) of contexts (..., order)."""
    order = contexts.shape[-1]
    marks, multipliers = contexts.flatten(0, -2).T, _multipliers(contexts.device)[: order - 1, :order]
    # CUDA has no products of matrices of integers.
    sums = multipliers @ marks if marks.device.type == "cpu" else (multipliers[..., None] * marks).sum(dim=1)
    # If a token is missing, so are all before it.
    offsets = ((sums & 0xFFFFFFFF) >> (32 - bits)).masked_fill_(marks[1:] == 0, 1 << bits)
    return offsets.view(order - 1, *contexts.shape[:-1])


@cache
def _multipliers(device: torch.device) -> Tensor:
    """Those of all orders as a tensor (7, 8), with zeros for the tokens that a context does not have.

    It is kept, because a CUDA graph cannot record its copy to the device.
    """
    return torch.tensor([(*row, *[0] * (HIGHEST_ORDER - len(row))) for row in MULTIPLIERS], device=device)


def summed_votes(votes: Votes, vocabulary_size: int) -> Tensor:
    """The votes as logits (N, V), for autograd; the gradient of the array is collected if the votes say so."""
    arguments = (votes.array, votes.offsets, vocabulary_size, votes.gradients)
    result: Any = _Sum.apply(*arguments)  # type: ignore[no-untyped-call]
    return result  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """array (2^bits + V,) and offsets (K, N) -> sums (N, V)."""

    @staticmethod
    def forward(
        ctx: Any, array: Tensor, offsets: Tensor, vocabulary_size: int, gradients: list[RowGradient] | None
    ) -> Tensor:
        ctx.save_for_backward(array, offsets)
        ctx.gradients = gradients
        return Votes(array, offsets).add_to(array.new_zeros(offsets.shape[1], vocabulary_size))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        array, offsets = ctx.saved_tensors
        rows = RowGradient(offsets, grads[0].contiguous())
        if ctx.gradients is not None:
            ctx.gradients.append(rows)
            return None, None, None, None
        gradient = torch.zeros_like(array)
        rows.add_to(gradient)
        return gradient, None, None, None
