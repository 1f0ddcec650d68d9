"""The C kernels as a recurrent core: a layer over a whole sequence in one call, forward and backward.

PyTorch computes the table of the first layer, or the input projection of a later one.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.config import GATES, PRODUCTS
from charwright.kernels import CELL_CODES, UNITS_MULTIPLE, Kernels, Layer, Ngrams
from charwright.model.cells import State, Weights
from charwright.model.votes import RowGradient, Votes

SLOTS = {"gru": 4, "igru": 4, "lstm": 4, "rnn": 1}


@cache
def share_threads(kernels: Kernels) -> None:
    """Run the kernels on PyTorch's OpenMP threads, if that runtime can be found.

    Its threads spin for some milliseconds after each PyTorch operation and would compete with other threads for the
    cores.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return  # Windows: the kernels use their own threads.
    brought_along = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    for name in [*map(str, brought_along), "libgomp.so.1"]:
        # Only a runtime that is already loaded can be PyTorch's.
        with suppress(OSError):
            kernels.use_openmp(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW))
            return


def native_layer(
    kernels: Kernels,
    cell: str,
    table: Tensor,
    ids: Tensor | None,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    mask: Tensor | None,
    scale: Tensor | None = None,
) -> tuple[Tensor, State]:
    """One layer: `table` (V, G * H) float32 with ids (T, B), or the gate inputs at each position (T, B, G * H).

    `scale` (V, H) float32, with ids, multiplies the state inside the recurrent product, and so does the mask (B, H).
    Returns outputs (T, B, H) in `dtype` and the last state in float32.

    Raises:
        ValueError: if a part has another type or shape than the kernels read, or an id has no row in the table.
    """
    share_threads(kernels)
    units = weights.weight_hh.shape[1]
    _check(table, ids, state, weights, mask)
    spare = -units % UNITS_MULTIPLE
    hidden_weights, bias = weights.weight_hh, weights.bias_hh
    if spare:
        table = _filled_gates(table, GATES[cell], spare)
        hidden_weights = F.pad(_filled_gates(hidden_weights.T, PRODUCTS[cell], spare).T, (0, spare))
        bias = _filled_gates(bias, PRODUCTS[cell], spare) if bias is not None else None
        state = tuple(F.pad(part, (0, spare)) for part in state)
        mask = F.pad(mask, (0, spare)) if mask is not None else None
        scale = F.pad(scale, (0, spare)) if scale is not None else None
    inputs = table if ids is not None else table.to(dtype)
    c = state[1] if cell == "lstm" else None
    parts = (inputs, ids, hidden_weights, bias, state[0], c, mask, scale)
    # A function of autograd cannot tell itself whether gradients are wanted: within it, they never are.
    wanted = torch.is_grad_enabled()
    result: Any = _NativeLayer.apply(kernels, cell, dtype, wanted, *parts)  # type: ignore[no-untyped-call]
    outputs, *last = result
    if spare:
        outputs, last = outputs[..., :units], [part[..., :units] for part in last]
    return outputs, tuple(last)


def _check(table: Tensor, ids: Tensor | None, state: State, weights: Weights, mask: Tensor | None) -> None:
    """See that the kernels can read what they get, which they cannot check."""
    if weights.weight_hh.dtype != torch.float32:
        raise ValueError(f"the C kernels need float32 weights, not {weights.weight_hh.dtype}; use the core plain")
    steps, batch = (table if ids is None else ids).shape[:2]
    if not steps or not batch:
        raise ValueError(f"a layer needs at least one step and one row, not {steps} and {batch}")
    if ids is not None:
        if ids.dtype != torch.int64:
            raise ValueError(f"ids must be int64, not {ids.dtype}")
        low, high = ids.aminmax()
        if not 0 <= int(low) <= int(high) < len(table):
            raise ValueError(f"ids must be from 0 to {len(table) - 1}, those of the vocabulary")
    shape = (batch, weights.weight_hh.shape[1])
    rows = {"the state": state, "the mask of the state": () if mask is None else (mask,)}
    for name, parts in rows.items():
        for part in parts:
            if part.dtype != torch.float32 or part.shape != shape:
                raise ValueError(f"{name} must be float32 {shape}, not {part.dtype} {tuple(part.shape)}")


def _filled_gates(x: Tensor, gates: int, spare: int) -> Tensor:
    """(..., G * H) -> (..., G * (H + spare)), each gate padded with zeros."""
    shaped = F.pad(x.unflatten(-1, (gates, -1)), (0, spare))  # type: ignore[no-untyped-call]
    return shaped.flatten(-2)


class _NativeLayer(torch.autograd.Function):
    """See `native_layer`; outputs (T, B, H) and h, or h and c, of the last step (B, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        cell: str,
        dtype: torch.dtype,
        wanted: bool,
        inputs: Tensor,
        ids: Tensor | None,
        weights: Tensor,
        bias: Tensor | None,
        h: Tensor,
        c: Tensor | None,
        mask: Tensor | None,
        scale: Tensor | None,
    ) -> tuple[Tensor, ...]:
        steps, batch = (ids if ids is not None else inputs).shape[:2]
        units = weights.shape[1]
        hidden = torch.empty(steps + 1, batch, units, dtype=dtype)
        masked = None if mask is None and scale is None else _borrow(hidden.shape, dtype)
        cells = _borrow(hidden.shape, dtype) if c is not None else None
        gates = _borrow((steps, batch, SLOTS[cell] * units), dtype)
        last_h, last_c = (
            None if part is None else part.clone(memory_format=torch.contiguous_format) for part in (h, c)
        )
        assert last_h is not None
        inputs = inputs.contiguous()
        ids, bias, mask, scale = (None if part is None else part.contiguous() for part in (ids, bias, mask, scale))
        layer = _layer(cell, dtype, steps, batch, units, tokens=0 if ids is None else len(inputs))
        _point(layer, "table" if ids is not None else "inputs", inputs)
        packed = _packed(kernels, cell, weights, dtype, backward=False)
        tensors = {"ids": ids, "bias": bias, "mask": mask, "scale": scale, "packed": packed, "hidden": hidden}
        tensors |= {"masked": masked, "gates": gates, "cells": cells, "state_h": last_h, "state_c": last_c}
        for name, tensor in tensors.items():
            _point(layer, name, tensor)
        kernels.forward(layer)
        ctx.save_for_backward(inputs if ids is not None else None, ids, weights, bias, mask, scale)
        ctx.kernels, ctx.cell, ctx.dtype = kernels, cell, dtype
        if wanted and any(ctx.needs_input_grad):
            # The kernels overwrite some of these with gradients, which save_for_backward does not allow.
            ctx.kept = (hidden, masked, cells, gates)
        else:
            _give_back(masked, cells, gates)
        return (hidden[1:], last_h) if last_c is None else (hidden[1:], last_h, last_c)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("the native core supports one backward pass per forward pass; run it forward again")
        (hidden, masked, cells, gates), ctx.kept = ctx.kept, None
        table, ids, weights, bias, mask, scale = ctx.saved_tensors
        steps, batch, units = hidden.shape[0] - 1, hidden.shape[1], hidden.shape[2]
        cell, dtype = ctx.cell, ctx.dtype
        d_outputs = grads[0].to(dtype).contiguous()
        d_h = grads[1].contiguous().clone()
        d_c = grads[2].contiguous().clone() if cells is not None else None
        d_table = torch.zeros_like(table) if ids is not None else None
        d_bias = torch.zeros_like(bias) if bias is not None else None
        d_scale = torch.zeros_like(scale) if scale is not None else None
        layer = _layer(cell, dtype, steps, batch, units, tokens=0 if table is None else len(table))
        packed = _packed(ctx.kernels, cell, weights, dtype, backward=True)
        tensors = {"ids": ids, "bias": bias, "mask": mask, "scale": scale, "packed": packed, "hidden": hidden}
        tensors |= {"masked": masked, "gates": gates, "cells": cells, "d_outputs": d_outputs, "d_h": d_h, "d_c": d_c}
        tensors |= {"d_table": d_table, "d_scale": d_scale, "d_bias": d_bias}
        for name, tensor in tensors.items():
            _point(layer, name, tensor)
        ctx.kernels.backward(layer)
        del packed, tensors  # before the step's peak of memory
        d_weights = _weight_gradient(ctx.kernels, layer, weights)
        d_inputs = d_table
        if d_inputs is None:
            d_inputs = torch.empty(steps, batch, GATES[cell] * units, dtype=dtype)
            ctx.kernels.input_gradient(layer, d_inputs.data_ptr())
        _give_back(masked, cells, gates)
        return None, None, None, None, d_inputs, None, d_weights, d_bias, d_h, d_c, None, d_scale


def _weight_gradient(kernels: Kernels, layer: Layer, weights: Tensor) -> Tensor:
    """The gradient of U (P * H, H) float32 from all steps at once, after backward."""
    rows, units = weights.shape
    scratch = _borrow(
        (kernels.outer_bytes(layer.steps * layer.batch, rows, units, bf16=bool(layer.bf16)),), torch.uint8
    )  # fmt: skip
    result = torch.empty(rows, units)
    kernels.weight_gradient(layer, scratch.data_ptr(), result.data_ptr())
    _give_back(scratch)
    return result


def outer(kernels: Kernels, a: Tensor, b: Tensor) -> Tensor:
    """A (N, M) transposed times b (N, K) -> (M, K) float32.

    K must be a multiple of `UNITS_MULTIPLE`, and both must have the same type, float32 or bfloat16.
    """
    (n, m), columns, bf16 = a.shape, b.shape[1], a.dtype == torch.bfloat16
    scratch = _borrow((kernels.outer_bytes(n, m, columns, bf16=bf16),), torch.uint8)
    result = torch.empty(m, columns)
    kernels.outer(
        n, m, columns, bf16=bf16, threads=torch.get_num_threads(), a=a.data_ptr(), a_row=a.stride(0), b=b.data_ptr(),
        b_row=b.stride(0), scratch=scratch.data_ptr(), c=result.data_ptr(),
    )  # fmt: skip
    _give_back(scratch)
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
    losses, scratch = torch.empty(rows), torch.empty(threads, vocabulary + UNITS_MULTIPLE)
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
    (rows, units), vocabulary, threads = x.shape, len(weight), torch.get_num_threads()
    batch = rows if mask is None else len(mask)
    gradients = None
    if wanted:
        logits = torch.empty(rows, vocabulary, dtype=x.dtype)
        gradients = HeadGradients(torch.empty_like(x), torch.empty_like(weight), torch.zeros_like(bias), logits)
    bf16 = x.dtype == torch.bfloat16
    scratch_bytes = kernels.head_bytes(threads, rows, vocabulary, units, bf16=bf16, masked=wanted and mask is not None)
    losses, scratch = torch.empty(rows), _borrow((scratch_bytes,), torch.uint8)
    total = kernels.head(
        rows, batch, vocabulary, units, bf16=bf16, threads=threads, x=x.data_ptr(), mask=_address(mask),
        weight=weight.data_ptr(), bias=bias.data_ptr(),
        ngrams=None if votes is None else _ngrams(votes.array, votes.offsets),
        targets=targets.data_ptr(), scale=scale, losses=losses.data_ptr(),
        d_logits=_address(gradients and gradients.logits), d_x=_address(gradients and gradients.x),
        d_weight=_address(gradients and gradients.weight), d_bias=_address(gradients and gradients.bias),
        scratch=scratch.data_ptr(),
    )  # fmt: skip
    _give_back(scratch)
    return total, gradients


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def contexts(kernels: Kernels, ids: Tensor, before: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The offsets (K, N) of n-grams after each of ids (T, B), and the tokens (B, K) float32 before what follows.

    `before` (B, K) float32 are those before the first id, as in a model's state.
    """
    (steps, batch), count = ids.shape, before.shape[1]
    ids, before = ids.contiguous(), before.contiguous()
    offsets, after = torch.empty(count, ids.numel(), dtype=torch.int64), torch.empty_like(before)
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


# Large internal arrays are reused: fresh memory costs a page fault every 4 kB.
_spare: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}
MOST_SPARE = 8


_lending = Lock()


def _borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with _lending:
        found = _spare.pop((tuple(shape), dtype), None)
    return torch.empty(shape, dtype=dtype) if found is None else found


def _give_back(*tensors: Tensor | None) -> None:
    with _lending:
        for tensor in tensors:
            if tensor is not None:
                _spare[tuple(tensor.shape), tensor.dtype] = tensor
        while len(_spare) > MOST_SPARE:
            del _spare[next(iter(_spare))]


def _layer(cell: str, dtype: torch.dtype, steps: int, batch: int, units: int, tokens: int) -> Layer:
    return Layer(
        cell=CELL_CODES[cell],
        bf16=int(dtype == torch.bfloat16),
        steps=steps,
        batch=batch,
        units=units,
        threads=torch.get_num_threads(),
        tokens=tokens,
    )


def _point(layer: Layer, name: str, tensor: Tensor | None) -> None:
    """Pass the address of a tensor to the kernels; the caller keeps the tensor alive."""
    setattr(layer, name, None if tensor is None else tensor.data_ptr())


def _packed(kernels: Kernels, cell: str, weights: Tensor, dtype: torch.dtype, *, backward: bool) -> Tensor:
    units, bf16 = weights.shape[1], dtype == torch.bfloat16
    weights = weights.contiguous()
    packed = torch.empty(kernels.packed_bytes(cell, units, bf16), dtype=torch.uint8)
    kernels.pack(
        cell, units, bf16=bf16, backward=backward, threads=torch.get_num_threads(), weights=weights.data_ptr(),
        to=packed.data_ptr(),
    )  # fmt: skip
    return packed
