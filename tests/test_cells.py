"""The plain cells against PyTorch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from charwright.config import GATES, PRODUCTS, STATES
from charwright.model.cells import CELL_FUNCTIONS, State, Weights, as_gru
from charwright.model.plain import unroll
from ramps import ramp

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARY = {"gru": nn.GRU, "igru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
"""PyTorch's layer of each cell; an input-reset GRU is one whose weights from the state to r are zeros."""
WIDTH, UNITS = 5, 7


def weights_for(cell: str) -> Weights:
    rows, products = GATES[cell] * UNITS, PRODUCTS[cell] * UNITS
    bias_hh = ramp(products, phase=4).requires_grad_() if cell in ("gru", "igru") else None
    return Weights(
        ramp(rows, WIDTH, phase=1).requires_grad_(),
        ramp(products, UNITS, phase=2).requires_grad_(),
        ramp(rows, phase=3).requires_grad_(),
        bias_hh,
    )


def library_layer(cell: str, weights: Weights) -> nn.RNNBase:
    layer, spare = LIBRARY[cell](WIDTH, UNITS).double(), (GATES[cell] - PRODUCTS[cell]) * UNITS
    with torch.no_grad():
        layer.weight_ih_l0.copy_(weights.weight_ih)
        layer.bias_ih_l0.copy_(weights.bias_ih)
        layer.weight_hh_l0.zero_()[spare:] = weights.weight_hh
        layer.bias_hh_l0.zero_()
        if weights.bias_hh is not None:
            layer.bias_hh_l0[spare:] = weights.bias_hh
    return layer


def states_for(cell: str, batch: int) -> State:
    return tuple(ramp(batch, UNITS, phase=5 + i).requires_grad_() for i in range(STATES[cell]))


def weighted_sum(outputs: Tensor, state: State) -> Tensor:
    """A scalar in which every value of the result has its own weight, so that misplaced gradients are detected."""
    total = (outputs * ramp(*outputs.shape, scale=1, phase=8)).sum()
    return total + sum((part * ramp(*part.shape, scale=1, phase=9 + i)).sum() for i, part in enumerate(state))


@pytest.mark.parametrize("cell", CELL_FUNCTIONS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (6, 3)])
def test_cells_equal_pytorchs_layers_in_outputs_and_gradients(cell: str, steps: int, batch: int) -> None:
    weights, state, x = weights_for(cell), states_for(cell, batch), ramp(steps, batch, WIDTH).requires_grad_()
    outputs, last = unroll(cell, x, state, weights)

    layer = library_layer(cell, weights)
    theirs_state = tuple(part.detach()[None].requires_grad_() for part in state)
    theirs_x = x.detach().requires_grad_()
    theirs, theirs_last = layer(theirs_x, theirs_state if cell == "lstm" else theirs_state[0])
    theirs_last = tuple(part[0] for part in (theirs_last if cell == "lstm" else (theirs_last,)))

    torch.testing.assert_close(outputs, theirs)
    torch.testing.assert_close(last, theirs_last)

    parameters = [weight for weight in weights if weight is not None]
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"][: len(parameters)]
    ours = torch.autograd.grad(weighted_sum(outputs, last), [x, *state, *parameters])
    expected = torch.autograd.grad(
        weighted_sum(theirs, theirs_last), [theirs_x, *theirs_state, *(getattr(layer, name) for name in names)]
    )
    for mine, gradient in zip(ours, expected, strict=True):
        of_states = gradient[0] if gradient.ndim > mine.ndim else gradient
        # The gradients of zeros that an input-reset GRU has not come first.
        torch.testing.assert_close(mine, of_states[len(of_states) - len(mine) :])


@pytest.mark.parametrize("cell", CELL_FUNCTIONS)
def test_each_gate_has_its_own_role(cell: str) -> None:
    """Rolling the weights by one gate changes the result, so the ramps would detect swapped gates."""
    weights, state, x = weights_for(cell), states_for(cell, 2), ramp(4, 2, WIDTH)
    outputs, _ = unroll(cell, x, state, weights)
    rolled = Weights(*(None if weight is None else weight.roll(UNITS, 0) for weight in weights))
    if GATES[cell] == 1:
        rolled = Weights(*(None if weight is None else weight.roll(1, 0) for weight in weights))
    assert (unroll(cell, x, state, rolled)[0] - outputs).abs().max() > 0.01


@pytest.mark.parametrize("cell", ["gru", "igru"])
def test_gru_without_a_second_bias_uses_zeros(cell: str) -> None:
    weights, state, x = weights_for(cell), states_for(cell, 2), ramp(3, 2, WIDTH)
    zeros = weights._replace(bias_hh=torch.zeros(PRODUCTS[cell] * UNITS, dtype=torch.float64))
    torch.testing.assert_close(
        unroll(cell, x, state, weights._replace(bias_hh=None)), unroll(cell, x, state, zeros), rtol=0, atol=0
    )


def test_the_reset_gate_of_an_input_reset_gru_reads_the_input_alone() -> None:
    """By the equations: r decides how much of the product enters into n, whatever the state is."""
    weights, (h,), x = weights_for("igru"), states_for("igru", 2), ramp(2, WIDTH)
    [after] = CELL_FUNCTIONS["igru"](x, (h,), weights)
    bias_r, bias_z, bias_n = weights.bias_ih.split(UNITS)
    w_r, w_z, w_n = weights.weight_ih.split(UNITS)
    u_z, u_n = weights.weight_hh.split(UNITS)
    assert weights.bias_hh is not None
    c_z, c_n = weights.bias_hh.split(UNITS)
    r = torch.sigmoid(x @ w_r.T + bias_r)
    z = torch.sigmoid(x @ w_z.T + bias_z + h @ u_z.T + c_z)
    n = torch.tanh(x @ w_n.T + bias_n + r * (h @ u_n.T + c_n))
    torch.testing.assert_close(after, n + z * (h - n))
    whole = as_gru(weights)
    assert whole.weight_hh.shape == (3 * UNITS, UNITS)
    torch.testing.assert_close(CELL_FUNCTIONS["gru"](x, (h,), whole)[0], after, rtol=0, atol=0)
