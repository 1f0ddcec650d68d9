"""The cells over whole sequences in PyTorch alone: the core for machines without the C kernels.

It differs from `cells.py` in three ways, none of which changes a result beyond rounding:

- The loop over time has only what depends on the previous step: the product h x U, and the gates.
- The gradients of the weights are one product over all steps after the backward loop, not one per step.
- Products may be in bfloat16; the state and the gates stay in float32.

On CUDA the GRU and the LSTM are those of `cuda_cells.py`, with fewer kernels per step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from charwright.config import GRUS
from charwright.model import cuda_cells
from charwright.model.cells import State, Weights, as_gru
from charwright.model.compute import refuse_second_derivatives


def fused_layer(
    cell: str,
    gates: Tensor,
    scale: Tensor | None,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    mask: Tensor | None,
) -> tuple[Tensor, State]:
    """One layer: gate inputs (T, B, G * H) -> outputs (T, B, H) and the last state.

    `mask` (B, H) and `scale` (T, B, H), if given, multiply the state inside the recurrent product.
    """
    mask = torch.ones_like(state[0]) if mask is None else mask
    factor = mask.expand(len(gates), *mask.shape) if scale is None else mask * scale
    if gates.is_cuda and cell == "igru":
        cell, weights = "gru", as_gru(weights)
    if gates.is_cuda and cell in cuda_cells.CELLS:
        return cuda_cells.cell_layer(cell, gates, state, weights, dtype, factor)
    low = weights.weight_hh.to(dtype)
    outputs: Any
    if cell in GRUS:
        assert weights.bias_hh is not None
        outputs = _FusedGRU.apply(gates, state[0], low, weights.bias_hh, factor)  # type: ignore[no-untyped-call]
        return outputs, (outputs[-1],)
    if cell == "lstm":
        outputs, last_c = _FusedLSTM.apply(gates, state[0], state[1], low, factor)  # type: ignore[no-untyped-call]
        return outputs, (outputs[-1], last_c)
    outputs = _FusedRNN.apply(gates, state[0], low, factor)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1],)


def _weight_gradient(d_gates: Tensor, h_before: Tensor, low: Tensor) -> Tensor:
    """All steps' gradients of U at once: d_gates (T, B, P * H) and h_before (T, B, H) -> (P * H, H)."""
    return d_gates.flatten(0, 1).T @ h_before.flatten(0, 1).to(low.dtype)


class _FusedGRU(torch.autograd.Function):
    """gates (T, B, 3H) from the input, h (B, H), U (3H, H) in the products' type, its bias, factor (T, B, H) ->
    outputs (T, B, H). U is (2H, H) if the reset gate reads the input alone.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, low: Tensor, bias: Tensor, factor: Tensor) -> Tensor:
        (steps, batch, _), units = gates.shape, h.shape[1]
        first, last = 3 * units - len(low), len(low) - units  # of gates with products; of products but the candidate's
        hidden = gates.new_empty(steps + 1, batch, units)  # hidden[t] is the state before step t
        rz = gates.new_empty(steps, batch, 2 * units)
        n, h_n = gates.new_empty(steps, batch, units), gates.new_empty(steps, batch, units)
        hidden[0] = h
        transposed = low.T
        rz[:, :, :first] = gates[:, :, :first].sigmoid()
        for t in range(steps):
            h_gates = ((hidden[t] * factor[t]).to(low.dtype) @ transposed).to(gates.dtype).add_(bias)
            torch.add(gates[t, :, first : 2 * units], h_gates[:, :last], out=rz[t, :, first:]).sigmoid_()
            h_n[t] = h_gates[:, last:]
            torch.addcmul(gates[t, :, 2 * units :], rz[t, :, :units], h_n[t], out=n[t]).tanh_()
            torch.lerp(n[t], hidden[t], rz[t, :, units:], out=hidden[t + 1])
        ctx.save_for_backward(hidden, rz, n, h_n, low, factor)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        hidden, rz, n, h_n, low, factor = ctx.saved_tensors
        steps, batch, units = n.shape
        first, last = 3 * units - len(low), len(low) - units
        d_gates = torch.empty(steps, batch, 3 * units, dtype=n.dtype, device=n.device)
        d_recurrent = torch.empty(steps, batch, len(low), dtype=low.dtype, device=n.device)
        d_factor = torch.empty_like(hidden[1:]) if ctx.needs_input_grad[4] else None
        d_h = torch.zeros_like(hidden[0])
        for t in reversed(range(steps)):
            d_h = d_h + grads[0][t]
            r, z = rz[t, :, :units], rz[t, :, units:]
            d_n = d_h * (1 - z) * (1 - n[t] * n[t])
            d_gates[t, :, units : 2 * units] = d_h * (hidden[t] - n[t]) * z * (1 - z)
            d_gates[t, :, :units] = d_n * h_n[t] * r * (1 - r)
            d_gates[t, :, 2 * units :] = d_n
            d_recurrent[t, :, :last] = d_gates[t, :, first : 2 * units]
            d_recurrent[t, :, last:] = d_n * r
            d_product = (d_recurrent[t] @ low).to(n.dtype)
            if d_factor is not None:
                d_factor[t] = d_product * hidden[t]
            d_h = torch.addcmul(d_product * factor[t], d_h, z)
        d_low = _weight_gradient(d_recurrent, hidden[:-1] * factor, low)
        d_bias = torch.cat(
            [d_gates[:, :, first : 2 * units].sum((0, 1)), d_recurrent[:, :, last:].sum((0, 1), dtype=n.dtype)]
        )
        return d_gates, d_h, d_low, d_bias, d_factor


class _FusedLSTM(torch.autograd.Function):
    """gates (T, B, 4H) from the input, h and c (B, H), U (4H, H), factor (T, B, H) -> outputs (T, B, H) and
    the last c.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, c: Tensor, low: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        (steps, batch, _), units = gates.shape, h.shape[1]
        hidden = gates.new_empty(steps + 1, batch, units)
        cells = gates.new_empty(steps + 1, batch, units)
        active = gates.new_empty(gates.shape)  # i, f, g, o after their functions
        hidden[0], cells[0] = h, c
        transposed = low.T
        for t in range(steps):
            torch.add(gates[t], ((hidden[t] * factor[t]).to(low.dtype) @ transposed).to(gates.dtype), out=active[t])
            active[t, :, : 2 * units].sigmoid_()
            active[t, :, 2 * units : 3 * units].tanh_()
            active[t, :, 3 * units :].sigmoid_()
            i, f, g, o = active[t].chunk(4, dim=1)
            torch.addcmul(f * cells[t], i, g, out=cells[t + 1])
            torch.mul(o, torch.tanh(cells[t + 1]), out=hidden[t + 1])
        ctx.save_for_backward(hidden, cells, active, low, factor)
        return hidden[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        hidden, cells, active, low, factor = ctx.saved_tensors
        steps, batch, units = hidden.shape[0] - 1, hidden.shape[1], hidden.shape[2]
        d_gates = torch.empty_like(active)
        d_recurrent = torch.empty(steps, batch, 4 * units, dtype=low.dtype, device=low.device)
        d_factor = torch.empty_like(hidden[1:]) if ctx.needs_input_grad[4] else None
        d_h = torch.zeros_like(hidden[0])
        d_c = grads[1]
        for t in reversed(range(steps)):
            d_h = d_h + grads[0][t]
            i, f, g, o = active[t].chunk(4, dim=1)
            d_i, d_f, d_g, d_o = d_gates[t].chunk(4, dim=1)
            tanh_c = torch.tanh(cells[t + 1])
            d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
            d_i.copy_(d_c * g * i * (1 - i))
            d_f.copy_(d_c * cells[t] * f * (1 - f))
            d_g.copy_(d_c * i * (1 - g * g))
            d_o.copy_(d_h * tanh_c * o * (1 - o))
            d_recurrent[t] = d_gates[t]
            d_product = (d_recurrent[t] @ low).to(active.dtype)
            if d_factor is not None:
                d_factor[t] = d_product * hidden[t]
            d_h = d_product * factor[t]
            d_c = d_c * f
        return d_gates, d_h, d_c, _weight_gradient(d_recurrent, hidden[:-1] * factor, low), d_factor


class _FusedRNN(torch.autograd.Function):
    """gates (T, B, H) from the input, h (B, H), U (H, H), factor (T, B, H) -> outputs (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, low: Tensor, factor: Tensor) -> Tensor:
        hidden = gates.new_empty(len(gates) + 1, *h.shape)
        hidden[0] = h
        for t in range(len(gates)):
            product = ((hidden[t] * factor[t]).to(low.dtype) @ low.T).to(gates.dtype)
            torch.add(gates[t], product, out=hidden[t + 1]).tanh_()
        ctx.save_for_backward(hidden, low, factor)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        hidden, low, factor = ctx.saved_tensors
        d_gates = torch.empty_like(hidden[1:])
        d_recurrent = torch.empty(d_gates.shape, dtype=low.dtype, device=low.device)
        d_factor = torch.empty_like(hidden[1:]) if ctx.needs_input_grad[3] else None
        d_h = torch.zeros_like(hidden[0])
        for t in reversed(range(len(d_gates))):
            d_gates[t] = (d_h + grads[0][t]) * (1 - hidden[t + 1] * hidden[t + 1])
            d_recurrent[t] = d_gates[t]
            d_product = (d_recurrent[t] @ low).to(hidden.dtype)
            if d_factor is not None:
                d_factor[t] = d_product * hidden[t]
            d_h = d_product * factor[t]
        return d_gates, d_h, _weight_gradient(d_recurrent, hidden[:-1] * factor, low), d_factor
