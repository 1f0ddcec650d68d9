"""The output layer, its loss and the n-grams in the C kernels."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from charwright.kernels import UNITS_MULTIPLE, Kernels, Ngrams, OutputLayer
from charwright.model.kernel_calls import address, borrow, fresh, give_back
from charwright.model.votes import RowGradient, Votes


def outer(kernels: Kernels, a: Tensor, b: Tensor) -> Tensor:
    """A (N, M) transposed times b (N, K) -> (M, K) float32.

    K must be a multiple of `UNITS_MULTIPLE`, and both must have the same type, float32 or bfloat16.
    """
    (n, m), columns, bf16 = a.shape, b.shape[1], a.dtype == torch.bfloat16
    threads = torch.get_num_threads()
    scratch = borrow((kernels.outer_bytes(n, m, columns, bf16=bf16, threads=threads),), torch.uint8)
    result = fresh(m, columns)
    kernels.outer(
        n, m, columns, bf16=bf16, threads=threads, a=a.data_ptr(), a_row=a.stride(0), b=b.data_ptr(),
        b_row=b.stride(0), scratch=scratch.data_ptr(), c=result.data_ptr(),
    )  # fmt: skip
    give_back(scratch)
    return result


def cross_entropy(
    kernels: Kernels,
    logits: Tensor,
    bias: Tensor,
    targets: Tensor,
    scale: float,
    d_bias: Tensor | None,
    votes: Votes | None = None,
) -> float:
    """The sum of the losses in nats of logits (N, V) + bias (V,) + votes against targets (N,).

    With `d_bias`, to which is added, the logits are overwritten with the gradients of `scale` times the losses' sum.
    """
    rows, vocabulary = logits.shape
    threads = torch.get_num_threads()
    losses, scratch = fresh(rows), fresh(threads, vocabulary + UNITS_MULTIPLE)
    return kernels.cross_entropy(
        rows, vocabulary, bf16=logits.dtype == torch.bfloat16, threads=threads, logits=logits.data_ptr(),
        bias=bias.data_ptr(), targets=targets.data_ptr(), scale=scale, losses=losses.data_ptr(),
        d_bias=None if d_bias is None else d_bias.data_ptr(), scratch=scratch.data_ptr(),
        ngrams=None if votes is None else _ngrams(votes.array, votes.offsets),
    )  # fmt: skip


class HeadGradients(NamedTuple):
    """What `head` computes beside the losses, of N positions."""

    x: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    bias: Tensor  # (V,)
    logits: Tensor  # (N, V)


def head(
    kernels: Kernels,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    scale: float,
    *,
    mask: Tensor | None,
    votes: Votes | None,
    wanted: bool,
) -> tuple[float, HeadGradients | None]:
    """The sum of the losses of x (N, H) W^T + bias (V,) + votes against targets (N,), with products in the type of x.

    Row n of x is multiplied by row n % B of the mask (B, H). If they are wanted, also the gradients of `scale` times
    the sum; those of x and of the logits have the type of x, float32 or bfloat16, all else is float32. H is a multiple
    of `UNITS_MULTIPLE`.
    """
    x, weight, bias, targets = x.contiguous(), weight.contiguous(), bias.contiguous(), targets.contiguous()
    mask = None if mask is None else mask.float().contiguous()
    (rows, units), vocabulary, threads = x.shape, len(weight), torch.get_num_threads()
    batch = rows if mask is None else len(mask)
    gradients = None
    if wanted:
        logits = fresh(rows, vocabulary, dtype=x.dtype)
        gradients = HeadGradients(torch.empty_like(x), torch.empty_like(weight), torch.zeros_like(bias), logits)
    losses = fresh(rows)
    layer = OutputLayer(
        bf16=int(x.dtype == torch.bfloat16), threads=threads, rows=rows, batch=batch, units=units,
        vocabulary=vocabulary, scale=scale, x=x.data_ptr(), mask=address(mask), weight=weight.data_ptr(),
        bias=bias.data_ptr(), targets=targets.data_ptr(), losses=losses.data_ptr(),
    )  # fmt: skip
    if votes is not None:
        layer.ngrams = ctypes.pointer(_ngrams(votes.array, votes.offsets))
    if gradients is not None:
        layer.d_logits, layer.d_x = gradients.logits.data_ptr(), gradients.x.data_ptr()
        layer.d_weight, layer.d_bias = gradients.weight.data_ptr(), gradients.bias.data_ptr()
    scratch = borrow((kernels.head_bytes(layer),), torch.uint8)
    layer.scratch = scratch.data_ptr()
    total = kernels.head(layer)
    give_back(scratch)
    return total, gradients


def contexts(kernels: Kernels, ids: Tensor, before: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The offsets (K, N) of n-grams after each of ids (T, B), and the tokens (B, K) float32 before what follows.

    `before` (B, K) float32 are those before the first id, as in a model's state.
    """
    (steps, batch), count = ids.shape, before.shape[1]
    ids, before = ids.contiguous(), before.contiguous()
    offsets, after = fresh(count, ids.numel(), dtype=torch.int64), torch.empty_like(before)
    kernels.contexts(
        steps, batch, count + 1, bits, ids=ids.data_ptr(), before=before.data_ptr(), offsets=offsets.data_ptr(),
        after=after.data_ptr(),
    )  # fmt: skip
    return offsets, after


def descend(kernels: Kernels, array: Tensor, gradient: RowGradient, rate: float) -> None:
    """Subtract `rate` times the gradient from an array of n-grams (2^bits + V,), in place."""
    d_logits = gradient.d_logits
    assert d_logits.is_contiguous()
    rows, vocabulary = d_logits.shape
    kernels.descend(
        rows, vocabulary, bf16=d_logits.dtype == torch.bfloat16, threads=torch.get_num_threads(),
        ngrams=_ngrams(array, gradient.offsets), d_logits=d_logits.data_ptr(), rate=rate,
    )  # fmt: skip


def _ngrams(array: Tensor, offsets: Tensor) -> Ngrams:
    """The n-grams in the kernels' form; the caller keeps the tensors alive."""
    assert array.is_contiguous()
    assert offsets.is_contiguous()
    return Ngrams(array=array.data_ptr(), offsets=offsets.data_ptr(), size=len(array), count=len(offsets))
