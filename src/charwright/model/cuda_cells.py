"""The GRU and the LSTM over whole sequences on CUDA: the gates of a step are one kernel of PyTorch's.

On a GPU the time of a small operation is that of its launch, and the loop of `fused.py` has about 25 of them per step,
forward and backward. Here it has the product, one operator for everything elementwise, and what lies between.
The operators are those of PyTorch's `GRUCell` and `LSTMCell`; they exist for CUDA alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from charwright.model.cells import State, Weights
from charwright.model.compute import refuse_second_derivatives


@dataclass(frozen=True)
class CellOperators:
    """The elementwise work of one step. `inputs` and `products` (B, G * H) are added; all types are the same.

    gru: (inputs, products, h, bias of the inputs, bias of the products) -> h' and a workspace (B, 5 * H).
    gru_backward: (d_h', workspace, False) -> d_inputs, d_products, d_h, and two that are undefined.
    lstm: (inputs, products, c, None, None) -> h', c' and a workspace (B, 4 * H).
    lstm_backward: (d_h', d_c', c, c', workspace, False) -> d_gates, d_c, and one that is undefined.

    The False asks for no gradients of biases, which would be a sum per step.
    """

    gru: Callable[..., tuple[Tensor, Tensor]]
    gru_backward: Callable[..., tuple[Tensor, ...]]
    lstm: Callable[..., tuple[Tensor, Tensor, Tensor]]
    lstm_backward: Callable[..., tuple[Tensor, ...]]


ATEN = CellOperators(
    torch.ops.aten._thnn_fused_gru_cell.default,
    torch.ops.aten._thnn_fused_gru_cell_backward.default,
    torch.ops.aten._thnn_fused_lstm_cell.default,
    torch.ops.aten._thnn_fused_lstm_cell_backward_impl.default,
)
CELLS = ("gru", "lstm")


def cell_layer(
    cell: str,
    gates: Tensor,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    factor: Tensor,
    operators: CellOperators = ATEN,
) -> tuple[Tensor, State]:
    """As `fused_layer`, for the cells in CELLS; factor (T, B, H) is all that multiplies the state in the product."""
    low = weights.weight_hh.to(dtype)
    outputs: Any
    if cell == "gru":
        assert weights.bias_hh is not None
        outputs = _GRU.apply(gates, state[0], low, weights.bias_hh, factor, operators)  # type: ignore[no-untyped-call]
        return outputs, (outputs[-1],)
    outputs, last_c = _LSTM.apply(gates, state[0], state[1], low, factor, operators)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1], last_c)


def _weight_gradient(d_recurrent: Tensor, masked: Tensor) -> Tensor:
    """All steps' gradients of U at once: d_recurrent (T, B, G * H) and masked (T, B, H) -> (G * H, H)."""
    return d_recurrent.flatten(0, 1).T @ masked.flatten(0, 1)


class _GRU(torch.autograd.Function):
    """gates (T, B, 3H) from the input, h (B, H), U (3H, H) in the products' type, its bias, factor (T, B, H) -> outputs
    (T, B, H).
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, low: Tensor, bias: Tensor, factor: Tensor, operators: CellOperators
    ) -> Tensor:
        masked = low.new_empty(len(gates), *h.shape)  # what U multiplies, in its type
        none, transposed = torch.zeros_like(bias), low.T
        states, kept = [h], []
        for t in range(len(gates)):
            torch.mul(h, factor[t], out=masked[t])
            products = (masked[t] @ transposed).to(gates.dtype)
            h, workspace = operators.gru(gates[t], products, h, none, bias)
            states.append(h)
            kept.append(workspace)
        ctx.save_for_backward(masked, low, factor, *kept, *_before(ctx, 4, states))
        ctx.operators = operators
        return torch.stack(states[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        masked, low, factor, *rest = ctx.saved_tensors
        kept, before = rest[: len(masked)], rest[len(masked) :]
        d_recurrent = masked.new_empty(*masked.shape[:2], len(low))
        d_inputs: list[Tensor] = []  # from the last step to the first
        d_factor: list[Tensor] = []
        d_h = torch.zeros_like(grads[0][0])
        for t in reversed(range(len(masked))):
            d_input, d_products, d_h, *_ = ctx.operators.gru_backward(d_h + grads[0][t], kept[t], False)
            d_inputs.append(d_input)
            d_recurrent[t] = d_products
            d_product = (d_recurrent[t] @ low).to(factor.dtype)
            if before:
                d_factor.append(d_product * before[t])
            d_h = torch.addcmul(d_h, d_product, factor[t])
        d_gates, n = torch.stack(d_inputs[::-1]), 2 * masked.shape[2]
        d_bias = torch.cat([d_gates[:, :, :n].sum((0, 1)), d_recurrent[:, :, n:].sum((0, 1), dtype=factor.dtype)])
        return d_gates, d_h, _weight_gradient(d_recurrent, masked), d_bias, _in_order(d_factor), None


class _LSTM(torch.autograd.Function):
    """gates (T, B, 4H) from the input, h and c (B, H), U (4H, H), factor (T, B, H) -> outputs (T, B, H) and the last
    c.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, c: Tensor, low: Tensor, factor: Tensor, operators: CellOperators
    ) -> tuple[Tensor, Tensor]:
        masked = low.new_empty(len(gates), *h.shape)
        transposed = low.T
        states, cells, kept = [h], [c], []
        for t in range(len(gates)):
            torch.mul(h, factor[t], out=masked[t])
            products = (masked[t] @ transposed).to(gates.dtype)
            h, c, workspace = operators.lstm(gates[t], products, c, None, None)
            states.append(h)
            cells.append(c)
            kept.append(workspace)
        ctx.save_for_backward(masked, low, factor, *cells, *kept, *_before(ctx, 4, states))
        ctx.operators = operators
        return torch.stack(states[1:]), c.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        masked, low, factor, *rest = ctx.saved_tensors
        steps = len(masked)
        cells, kept, before = rest[: steps + 1], rest[steps + 1 : 2 * steps + 1], rest[2 * steps + 1 :]
        d_recurrent = masked.new_empty(*masked.shape[:2], len(low))
        d_inputs: list[Tensor] = []
        d_factor: list[Tensor] = []
        d_h = torch.zeros_like(grads[0][0])
        d_c = grads[1]
        for t in reversed(range(steps)):
            step = (cells[t], cells[t + 1], kept[t], False)
            d_input, d_c, *_ = ctx.operators.lstm_backward(d_h + grads[0][t], d_c, *step)
            d_inputs.append(d_input)
            d_recurrent[t] = d_input
            d_product = (d_recurrent[t] @ low).to(factor.dtype)
            if before:
                d_factor.append(d_product * before[t])
            d_h = d_product * factor[t]
        d_low = _weight_gradient(d_recurrent, masked)
        return torch.stack(d_inputs[::-1]), d_h, d_c, d_low, _in_order(d_factor), None


def _before(ctx: Any, factor: int, states: list[Tensor]) -> list[Tensor]:
    """The states before each step, of those before and after, if the argument `factor` needs a gradient."""
    return states[:-1] if ctx.needs_input_grad[factor] else []


def _in_order(from_the_last: list[Tensor]) -> Tensor | None:
    """The gradients of all steps as one, if there are any."""
    return torch.stack(from_the_last[::-1]) if from_the_last else None
