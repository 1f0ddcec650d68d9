"""The cells over whole sequences, made fast.

What the fast core does differently from `cells.py`, without changing a result beyond rounding:

- The first layer's input product is a table, embedding x W_ih + b_ih, with a row for each token, looked up by id.
- The loop over time holds only what depends on the step before: one product h x U, and the gates.
- The gradients of the weights are one product over all steps after the backward loop, not one a step.
- Products may run in bfloat16; the state and the arithmetic of the gates stay in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.model.cells import State, Weights, unroll

CORES = ("auto", "plain", "fused", "torch")

# Up to this many tokens, the gradient of a lookup is a product with one-hot rows; beyond it, a scatter-add.
ONE_HOT_LIMIT = 512


@dataclass(frozen=True)
class Tokens:
    """The input of the first layer: ids (T, B) int64 and the embedding (V, E) that they select from."""

    ids: Tensor
    embedding: Tensor

    def embedded(self) -> Tensor:
        """The embedding's rows (T, B, E)."""
        return F.embedding(self.ids, self.embedding)


LayerInput = Tensor | Tokens


def choose_core(name: str, device: torch.device) -> str:
    """The core that `auto` means on a device: the library's own kernels on a GPU, ours on a CPU."""
    if name != "auto":
        return name
    return "fused" if device.type == "cpu" else "torch"


def run_layer(
    core: str, cell: str, x: LayerInput, state: State, weights: Weights, dtype: torch.dtype
) -> tuple[Tensor, State]:
    """One recurrent layer over a sequence.

    Args:
        core: `plain` (the cells in a loop), `fused` (this module's) or `torch` (the library's: cuDNN on CUDA).
        cell: gru, lstm or rnn.
        x: (T, B, E), or the tokens of the first layer.
        state: (h,) or (h, c), each (B, H).
        weights: the layer's weights.
        dtype: the type of the matrix products.

    Returns:
        outputs (T, B, H) and the last state.
    """
    if core == "plain":
        return unroll(cell, _plain(x), state, weights)
    if core == "torch":
        return _library_layer(cell, _plain(x), state, weights, dtype)
    gates = _project(x, weights, dtype)
    low = weights.weight_hh.to(dtype)
    outputs: Any
    if cell == "gru":
        assert weights.bias_hh is not None
        outputs = _FusedGRU.apply(gates, state[0], low, weights.bias_hh)  # type: ignore[no-untyped-call]
        return outputs, (outputs[-1],)
    if cell == "lstm":
        outputs, last_c = _FusedLSTM.apply(gates, state[0], state[1], low)  # type: ignore[no-untyped-call]
        return outputs, (outputs[-1], last_c)
    outputs = _FusedRNN.apply(gates, state[0], low)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1],)


def _plain(x: LayerInput) -> Tensor:
    return x.embedded() if isinstance(x, Tokens) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """X W^T + b with the product in `dtype`, and the result in the type of the bias."""
    if dtype == bias.dtype:
        return F.linear(x, weight, bias)
    return F.linear(x.to(dtype), weight.to(dtype)).to(bias.dtype) + bias


def _project(x: LayerInput, weights: Weights, dtype: torch.dtype) -> Tensor:
    """What the input says to the gates, (T, B, G * H): by table where there are fewer tokens than positions."""
    if isinstance(x, Tokens):
        if len(x.embedding) <= x.ids.numel():
            table = linear(x.embedding, weights.weight_ih, weights.bias_ih, dtype)
            looked_up: Tensor = _Lookup.apply(table, x.ids, dtype)  # type: ignore[no-untyped-call]
            return looked_up
        x = x.embedded()
    return linear(x, weights.weight_ih, weights.bias_ih, dtype)


class _Lookup(torch.autograd.Function):
    """table (V, N) and ids (T, B) -> rows (T, B, N)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.size, ctx.dtype = len(table), dtype
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ids,), rows = ctx.saved_tensors, grads[0].flatten(0, 1)
        if ctx.size > ONE_HOT_LIMIT:
            table = rows.new_zeros(ctx.size, rows.shape[1])
            return table.index_add_(0, ids.flatten(), rows), None, None
        one_hot = torch.zeros(ids.numel(), ctx.size, dtype=ctx.dtype, device=ids.device)
        one_hot.scatter_(1, ids.flatten()[:, None], 1)
        return (one_hot.T @ rows.to(ctx.dtype)).to(rows.dtype), None, None


def _weight_gradient(d_gates: Tensor, h_before: Tensor, low: Tensor) -> Tensor:
    """All steps' gradients of U at once: d_gates (T, B, G * H) and h_before (T, B, H) -> (G * H, H)."""
    return d_gates.flatten(0, 1).T @ h_before.flatten(0, 1).to(low.dtype)


class _FusedGRU(torch.autograd.Function):
    """gates (T, B, 3H) from the input, h (B, H), U (3H, H) in the products' type, its bias -> outputs (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, low: Tensor, bias: Tensor) -> Tensor:
        (steps, batch, _), units = gates.shape, h.shape[1]
        hidden = gates.new_empty(steps + 1, batch, units)  # hidden[t] is the state before step t
        rz = gates.new_empty(steps, batch, 2 * units)
        n, h_n = gates.new_empty(steps, batch, units), gates.new_empty(steps, batch, units)
        hidden[0] = h
        transposed = low.T
        for t in range(steps):
            h_gates = (hidden[t].to(low.dtype) @ transposed).to(gates.dtype).add_(bias)
            torch.add(gates[t, :, : 2 * units], h_gates[:, : 2 * units], out=rz[t]).sigmoid_()
            h_n[t] = h_gates[:, 2 * units :]
            torch.addcmul(gates[t, :, 2 * units :], rz[t, :, :units], h_n[t], out=n[t]).tanh_()
            torch.lerp(n[t], hidden[t], rz[t, :, units:], out=hidden[t + 1])
        ctx.save_for_backward(hidden, rz, n, h_n, low)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        hidden, rz, n, h_n, low = ctx.saved_tensors
        steps, batch, units = n.shape
        d_gates = torch.empty(steps, batch, 3 * units, dtype=n.dtype, device=n.device)
        d_recurrent = torch.empty(steps, batch, 3 * units, dtype=low.dtype, device=n.device)
        d_h = torch.zeros_like(hidden[0])
        for t in reversed(range(steps)):
            d_h = d_h + grads[0][t]
            r, z = rz[t, :, :units], rz[t, :, units:]
            d_n = d_h * (1 - z) * (1 - n[t] * n[t])
            d_gates[t, :, units : 2 * units] = d_h * (hidden[t] - n[t]) * z * (1 - z)
            d_gates[t, :, :units] = d_n * h_n[t] * r * (1 - r)
            d_gates[t, :, 2 * units :] = d_n
            d_recurrent[t, :, : 2 * units] = d_gates[t, :, : 2 * units]
            d_recurrent[t, :, 2 * units :] = d_n * r
            d_h = torch.addcmul((d_recurrent[t] @ low).to(n.dtype), d_h, z)
        d_low = _weight_gradient(d_recurrent, hidden[:-1], low)
        d_bias = torch.cat(
            [d_gates[:, :, : 2 * units].sum((0, 1)), d_recurrent[:, :, 2 * units :].sum((0, 1), dtype=n.dtype)]
        )
        return d_gates, d_h, d_low, d_bias


class _FusedLSTM(torch.autograd.Function):
    """gates (T, B, 4H) from the input, h and c (B, H), U (4H, H) -> outputs (T, B, H) and the last c."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, c: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        (steps, batch, _), units = gates.shape, h.shape[1]
        hidden = gates.new_empty(steps + 1, batch, units)
        cells = gates.new_empty(steps + 1, batch, units)
        active = gates.new_empty(gates.shape)  # i, f, g, o after their functions
        hidden[0], cells[0] = h, c
        transposed = low.T
        for t in range(steps):
            torch.add(gates[t], (hidden[t].to(low.dtype) @ transposed).to(gates.dtype), out=active[t])
            active[t, :, : 2 * units].sigmoid_()
            active[t, :, 2 * units : 3 * units].tanh_()
            active[t, :, 3 * units :].sigmoid_()
            i, f, g, o = active[t].chunk(4, dim=1)
            torch.addcmul(f * cells[t], i, g, out=cells[t + 1])
            torch.mul(o, torch.tanh(cells[t + 1]), out=hidden[t + 1])
        ctx.save_for_backward(hidden, cells, active, low)
        return hidden[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        hidden, cells, active, low = ctx.saved_tensors
        steps, batch, units = hidden.shape[0] - 1, hidden.shape[1], hidden.shape[2]
        d_gates = torch.empty_like(active)
        d_recurrent = torch.empty(steps, batch, 4 * units, dtype=low.dtype, device=low.device)
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
            d_h = (d_recurrent[t] @ low).to(active.dtype)
            d_c = d_c * f
        return d_gates, d_h, d_c, _weight_gradient(d_recurrent, hidden[:-1], low)


class _FusedRNN(torch.autograd.Function):
    """gates (T, B, H) from the input, h (B, H), U (H, H) -> outputs (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, low: Tensor) -> Tensor:
        hidden = gates.new_empty(len(gates) + 1, *h.shape)
        hidden[0] = h
        for t in range(len(gates)):
            product = (hidden[t].to(low.dtype) @ low.T).to(gates.dtype)
            torch.add(gates[t], product, out=hidden[t + 1]).tanh_()
        ctx.save_for_backward(hidden, low)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        hidden, low = ctx.saved_tensors
        d_gates = torch.empty_like(hidden[1:])
        d_recurrent = torch.empty(d_gates.shape, dtype=low.dtype, device=low.device)
        d_h = torch.zeros_like(hidden[0])
        for t in reversed(range(len(d_gates))):
            d_gates[t] = (d_h + grads[0][t]) * (1 - hidden[t + 1] * hidden[t + 1])
            d_recurrent[t] = d_gates[t]
            d_h = (d_recurrent[t] @ low).to(hidden.dtype)
        return d_gates, d_h, _weight_gradient(d_recurrent, hidden[:-1], low)


def _library_layer(cell: str, x: Tensor, state: State, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, State]:
    """PyTorch's own layer: cuDNN on CUDA, Metal on a Mac."""
    bias_hh = weights.bias_hh if weights.bias_hh is not None else torch.zeros_like(weights.bias_ih)
    params = [tensor.to(dtype) for tensor in (weights.weight_ih, weights.weight_hh, weights.bias_ih, bias_hh)]
    states = [part[None].to(dtype).contiguous() for part in state]
    # Arguments: has_biases, layers, dropout, training, bidirectional, batch_first.
    rest = (params, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    x = x.to(dtype)
    if cell == "lstm":
        outputs, h, c = torch.lstm(x, states, *rest)
        last: State = (h, c)
    else:
        outputs, h = (torch.gru if cell == "gru" else torch.rnn_tanh)(x, states[0], *rest)
        last = (h,)
    wide = weights.weight_hh.dtype
    return outputs.to(wide), tuple(part[0].to(wide) for part in last)
