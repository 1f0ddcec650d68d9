"""The plain cells against PyTorch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from charwright.config import GATES, STATES
from charwright.model.cells import CELL_FUNCTIONS, State, Weights
from charwright.model.plain import unroll
from ramps import ramp

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARY = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
WIDTH, UNITS = 5, 7


def weights_for(cell: str) -> Weights:
    rows = GATES[cell] * UNITS
    bias_hh = ramp(rows, phase=4).requires_grad_() if cell == "gru" else None
    return Weights(
        ramp(rows, WIDTH, phase=1).requires_grad_(),
        ramp(rows, UNITS, phase=2).requires_grad_(),
        ramp(rows, phase=3).requires_grad_(),
        bias_hh,
    )


def library_layer(cell: str, weights: Weights) -> nn.RNNBase:
    layer = LIBRARY[cell](WIDTH, UNITS).double()
    with torch.no_grad():
        layer.weight_ih_l0.copy_(weights.weight_ih)
        layer.weight_hh_l0.copy_(weights.weight_hh)
        layer.bias_ih_l0.copy_(weights.bias_ih)
        layer.bias_hh_l0.copy_(torch.zeros_like(weights.bias_ih) if weights.bias_hh is None else weights.bias_hh)
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
    for mine, theirs_gradient in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs_gradient.reshape(mine.shape))


@pytest.mark.parametrize("cell", CELL_FUNCTIONS)
def test_each_gate_has_its_own_role(cell: str) -> None:
    """Rolling the weights by one gate changes the result, so the ramps would detect swapped gates."""
    weights, state, x = weights_for(cell), states_for(cell, 2), ramp(4, 2, WIDTH)
    outputs, _ = unroll(cell, x, state, weights)
    rolled = Weights(*(None if weight is None else weight.roll(UNITS, 0) for weight in weights))
    if GATES[cell] == 1:
        rolled = Weights(*(None if weight is None else weight.roll(1, 0) for weight in weights))
    assert (unroll(cell, x, state, rolled)[0] - outputs).abs().max() > 0.01


def test_gru_without_a_second_bias_uses_zeros() -> None:
    weights, state, x = weights_for("gru"), states_for("gru", 2), ramp(3, 2, WIDTH)
    zeros = weights._replace(bias_hh=torch.zeros_like(weights.bias_ih))
    torch.testing.assert_close(
        unroll("gru", x, state, weights._replace(bias_hh=None)), unroll("gru", x, state, zeros), rtol=0, atol=0
    )
