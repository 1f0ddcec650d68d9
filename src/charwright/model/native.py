"""The C kernels as a recurrent core: a layer over a whole sequence in one call, forward and backward.

The kernels compute all of it: the table of the first layer, or the input product of a later one, the recurrence, and
the gradients of all weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.config import GATES, PRODUCTS
from charwright.kernels import CELL_CODES, UNITS_MULTIPLE, Kernels, Layer, Linear
from charwright.model.cells import State, Weights
from charwright.model.memory import address, borrow, give_back, share_threads

SLOTS = {"gru": 4, "igru": 4, "lstm": 4, "rnn": 1}


def native_layer(
    kernels: Kernels,
    cell: str,
    x: Tensor,
    ids: Tensor | None,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    mask: Tensor | None,
) -> tuple[Tensor, State]:
    """One layer: the embedding x (V, E) float32 with ids (T, B), or the inputs at each position (T, B, E).

    The mask (B, H) multiplies the state inside the recurrent product, and so does the scale of a multiplicative layer,
    which has ids. Returns outputs (T, B, H) in `dtype` and the last state in float32.

    Raises:
        ValueError: if a part has another type or shape than the kernels read, or an id has no row in the embedding.
    """
    share_threads(kernels)
    units = weights.weight_hh.shape[1]
    _check(x, ids, state, weights, mask)
    narrow, spare = -x.shape[-1] % UNITS_MULTIPLE, -units % UNITS_MULTIPLE
    if narrow:
        x = F.pad(x, (0, narrow))
        weights = _with_inputs(weights, narrow)
    if spare:
        weights = _with_units(weights, cell, spare)
        state = tuple(F.pad(part, (0, spare)) for part in state)
        mask = F.pad(mask, (0, spare)) if mask is not None else None
    c = state[1] if cell == "lstm" else None
    # A function of autograd cannot tell itself whether gradients are wanted: within it, they never are.
    wanted = torch.is_grad_enabled()
    result: Any = _NativeLayer.apply(  # type: ignore[no-untyped-call]
        kernels, cell, dtype, wanted, x if ids is not None else x.to(dtype), ids, weights.weight_ih, weights.bias_ih,
        weights.weight_mx, weights.weight_hh, weights.bias_hh, state[0], c, mask,
    )  # fmt: skip
    outputs, *last = result
    if spare:
        outputs, last = outputs[..., :units], [part[..., :units] for part in last]
    return outputs, tuple(last)


def _check(x: Tensor, ids: Tensor | None, state: State, weights: Weights, mask: Tensor | None) -> None:
    """See that the kernels can read what they get, which they cannot check."""
    for part in weights:
        if part is not None and part.dtype != torch.float32:
            raise ValueError(f"the C kernels need float32 weights, not {part.dtype}; use the core plain")
    if weights.weight_ih.shape[1] != x.shape[-1]:
        raise ValueError(f"the inputs have {x.shape[-1]} numbers, and the weights {weights.weight_ih.shape[1]}")
    steps, batch = (x if ids is None else ids).shape[:2]
    if not steps or not batch:
        raise ValueError(f"a layer needs at least one step and one row, not {steps} and {batch}")
    if ids is not None:
        if ids.dtype != torch.int64 or x.dtype != torch.float32:
            raise ValueError(f"ids must be int64 and their embedding float32, not {ids.dtype} and {x.dtype}")
        low, high = ids.aminmax()
        if not 0 <= int(low) <= int(high) < len(x):
            raise ValueError(f"ids must be from 0 to {len(x) - 1}, those of the vocabulary")
    shape = (batch, weights.weight_hh.shape[1])
    rows = {"the state": state, "the mask of the state": () if mask is None else (mask,)}
    for name, parts in rows.items():
        for part in parts:
            if part.dtype != torch.float32 or part.shape != shape:
                raise ValueError(f"{name} must be float32 {shape}, not {part.dtype} {tuple(part.shape)}")


def _with_inputs(weights: Weights, narrow: int) -> Weights:
    """The weights for inputs that are padded with zeros."""
    scale = weights.weight_mx
    return weights._replace(
        weight_ih=F.pad(weights.weight_ih, (0, narrow)),
        weight_mx=None if scale is None else F.pad(scale, (0, narrow)),
    )


def _with_units(weights: Weights, cell: str, spare: int) -> Weights:
    """The weights with more units, which stay zero."""
    bias, scale = weights.bias_hh, weights.weight_mx
    return Weights(
        weight_ih=_filled_gates(weights.weight_ih.T, GATES[cell], spare).T,
        weight_hh=F.pad(_filled_gates(weights.weight_hh.T, PRODUCTS[cell], spare).T, (0, spare)),
        bias_ih=_filled_gates(weights.bias_ih, GATES[cell], spare),
        bias_hh=None if bias is None else _filled_gates(bias, PRODUCTS[cell], spare),
        weight_mx=None if scale is None else F.pad(scale, (0, 0, 0, spare)),
    )


def _filled_gates(x: Tensor, gates: int, spare: int) -> Tensor:
    """(..., G * H) -> (..., G * (H + spare)), each gate padded with zeros."""
    shaped = F.pad(x.unflatten(-1, (gates, -1)), (0, spare))  # type: ignore[no-untyped-call]
    return shaped.flatten(-2)


class _Inputs(NamedTuple):
    """What a layer computes of its inputs, and how."""

    kernels: Kernels
    low: Tensor  # the inputs (..., E) in the type of the products
    wide: bool  # whether the results and gradients are float32, as those of a table

    def product(self, weight: Tensor, bias: Tensor | None, *, curved: bool = False) -> Tensor:
        """Low (..., E) x weight^T + bias -> (..., N), and if it is curved 1 + tanh of that."""
        outputs = self.low.new_empty((*self.low.shape[:-1], len(weight)), dtype=torch.float32 if self.wide else None)
        layer = self._layer(weight)
        layer.bias, layer.y, layer.curved = address(bias), outputs.data_ptr(), int(curved)
        self._run(layer, backward=False)
        return outputs

    def gradients(
        self,
        d_outputs: Tensor,
        weight: Tensor,
        d_x: Tensor | None,
        *,
        curve: Tensor | None = None,
        adding: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Those of the weight and of a bias; that of the inputs is written to `d_x`, or added.

        `curve`: what a curved product returned.
        """
        d_weight, d_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        layer = self._layer(weight)
        layer.curved, layer.y, layer.adding = int(curve is not None), address(curve), int(adding)
        layer.d_y, layer.d_x = d_outputs.data_ptr(), address(d_x)
        layer.d_weight, layer.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
        self._run(layer, backward=True)
        return d_weight, d_bias

    def _layer(self, weight: Tensor) -> Linear:
        outputs, inputs = weight.shape
        return Linear(
            bf16=int(self.low.dtype == torch.bfloat16), threads=torch.get_num_threads(), wide=int(self.wide),
            rows=self.low.numel() // inputs, inputs=inputs, outputs=outputs, x=self.low.data_ptr(),
            weight=weight.data_ptr(),
        )  # fmt: skip

    def _run(self, layer: Linear, *, backward: bool) -> None:
        scratch = borrow((self.kernels.linear_bytes(layer, backward=backward),), torch.uint8)
        layer.scratch = scratch.data_ptr()
        self.kernels.linear(layer, backward=backward)
        give_back(scratch)


class _NativeLayer(torch.autograd.Function):
    """See `native_layer`; outputs (T, B, H) and h, or h and c, of the last step (B, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        cell: str,
        dtype: torch.dtype,
        wanted: bool,
        x: Tensor,
        ids: Tensor | None,
        weight_ih: Tensor,
        bias_ih: Tensor,
        weight_mx: Tensor | None,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        h: Tensor,
        c: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, ...]:
        steps, batch = (ids if ids is not None else x).shape[:2]
        units = weight_hh.shape[1]
        weight_ih, bias_ih, weight_hh = weight_ih.contiguous(), bias_ih.contiguous(), weight_hh.contiguous()
        ids, weight_mx, bias_hh, mask = (
            None if part is None else part.contiguous() for part in (ids, weight_mx, bias_hh, mask)
        )
        inputs = _Inputs(kernels, x.to(dtype).contiguous(), wide=ids is not None)
        scale = None if weight_mx is None else inputs.product(weight_mx, None, curved=True)
        gate_inputs = inputs.product(weight_ih, bias_ih)  # the table, or those at each position
        hidden = torch.empty(steps + 1, batch, units, dtype=dtype)
        masked = None if mask is None and scale is None else borrow(hidden.shape, dtype)
        cells = borrow(hidden.shape, dtype) if c is not None else None
        gates = borrow((steps, batch, SLOTS[cell] * units), dtype)
        last_h, last_c = (
            None if part is None else part.clone(memory_format=torch.contiguous_format) for part in (h, c)
        )
        assert last_h is not None
        layer = _layer(cell, dtype, steps, batch, units, tokens=0 if ids is None else len(x))
        _point(layer, "table" if ids is not None else "inputs", gate_inputs)
        packed = _packed(kernels, cell, weight_hh, dtype, backward=False)
        tensors = {"ids": ids, "bias": bias_hh, "mask": mask, "scale": scale, "packed": packed, "hidden": hidden}
        tensors |= {"masked": masked, "gates": gates, "cells": cells, "state_h": last_h, "state_c": last_c}
        for name, tensor in tensors.items():
            _point(layer, name, tensor)
        kernels.forward(layer)
        if wanted and any(ctx.needs_input_grad):
            ctx.save_for_backward(inputs.low, ids, weight_ih, weight_mx, weight_hh, bias_hh, mask, scale)
            ctx.kernels, ctx.cell, ctx.x_dtype = kernels, cell, x.dtype
            # The kernels overwrite some of these with gradients, which save_for_backward does not allow.
            ctx.kept = (hidden, masked, cells, gates)
        else:
            give_back(masked, cells, gates)
        return (hidden[1:], last_h) if last_c is None else (hidden[1:], last_h, last_c)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("the native core supports one backward pass per forward pass; run it forward again")
        (hidden, masked, cells, gates), ctx.kept = ctx.kept, None
        low, ids, weight_ih, weight_mx, weight_hh, bias_hh, mask, scale = ctx.saved_tensors
        steps, batch, units = hidden.shape[0] - 1, hidden.shape[1], hidden.shape[2]
        cell, dtype = ctx.cell, hidden.dtype
        d_outputs = grads[0].to(dtype).contiguous()
        d_h = grads[1].contiguous().clone()
        d_c = grads[2].contiguous().clone() if cells is not None else None
        d_gates = torch.zeros(len(low), len(weight_ih)) if ids is not None else None
        d_bias = torch.zeros_like(bias_hh) if bias_hh is not None else None
        d_scale = torch.zeros_like(scale) if scale is not None else None
        layer = _layer(cell, dtype, steps, batch, units, tokens=0 if ids is None else len(low))
        packed = _packed(ctx.kernels, cell, weight_hh, dtype, backward=True)
        tensors = {"ids": ids, "bias": bias_hh, "mask": mask, "scale": scale, "packed": packed, "hidden": hidden}
        tensors |= {"masked": masked, "gates": gates, "cells": cells, "d_outputs": d_outputs, "d_h": d_h, "d_c": d_c}
        tensors |= {"d_table": d_gates, "d_scale": d_scale, "d_bias": d_bias}
        for name, tensor in tensors.items():
            _point(layer, name, tensor)
        ctx.kernels.backward(layer)
        del packed, tensors  # before the step's peak of memory
        d_weights = _weight_gradient(ctx.kernels, layer, weight_hh)
        if d_gates is None:
            d_gates = torch.empty(steps, batch, len(weight_ih), dtype=dtype)
            ctx.kernels.input_gradient(layer, d_gates.data_ptr())
        give_back(masked, cells, gates)
        inputs = _Inputs(ctx.kernels, low, wide=ids is not None)
        d_x = torch.empty_like(low, dtype=ctx.x_dtype) if ctx.needs_input_grad[4] else None
        d_input_weights, d_input_bias = inputs.gradients(d_gates, weight_ih, d_x)
        d_scale_weights = None
        if d_scale is not None:
            d_scale_weights, _ = inputs.gradients(d_scale, weight_mx, d_x, curve=scale, adding=True)
        return (
            None, None, None, None, d_x, None, d_input_weights, d_input_bias, d_scale_weights, d_weights, d_bias, d_h,
            d_c, None,
        )  # fmt: skip


def _weight_gradient(kernels: Kernels, layer: Layer, weights: Tensor) -> Tensor:
    """The gradient of U (P * H, H) float32 from all steps at once, after backward."""
    rows, units = weights.shape
    scratch = borrow(
        (kernels.outer_bytes(layer.steps * layer.batch, rows, units, bf16=bool(layer.bf16)),), torch.uint8
    )  # fmt: skip
    result = torch.empty(rows, units)
    kernels.weight_gradient(layer, scratch.data_ptr(), result.data_ptr())
    give_back(scratch)
    return result


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
    setattr(layer, name, address(tensor))


def _packed(kernels: Kernels, cell: str, weights: Tensor, dtype: torch.dtype, *, backward: bool) -> Tensor:
    units, bf16 = weights.shape[1], dtype == torch.bfloat16
    packed = torch.empty(kernels.packed_bytes(cell, units, bf16), dtype=torch.uint8)
    kernels.pack(
        cell, units, bf16=bf16, backward=backward, threads=torch.get_num_threads(), weights=weights.data_ptr(),
        to=packed.data_ptr(),
    )  # fmt: skip
    return packed
