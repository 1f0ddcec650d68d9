"""The layers of `cuda_cells.py`. Their operators need CUDA; elsewhere they are replaced by what PyTorch documents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from charwright.config import STATES
from charwright.model.cells import State, Weights
from charwright.model.cuda_cells import ATEN, CELLS, CellOperators, cell_layer
from charwright.model.fused import fused_layer
from charwright.model.plain import unroll
from charwright.model.recurrent import Tokens, run_layer
from ramps import ramp, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

UNITS, STEPS, BATCH, WIDTH = 7, 9, 3, 5
GATES = {"gru": 3, "lstm": 4}


# What the kernels of ATen's RNN.cu compute.


def gru(inputs: Tensor, products: Tensor, h: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x_r, x_z, x_n = (inputs + b).chunk(3, dim=1)
    h_r, h_z, h_n = (products + c).chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n), torch.cat([r, z, n, h, h_n], dim=1)


def gru_backward(d_h: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor, ...]:
    assert not has_bias
    r, z, n, h, h_n = workspace.chunk(5, dim=1)
    d_z = d_h * (h - n) * (1 - z) * z
    d_n = d_h * (1 - z) * (1 - n * n)
    d_r = d_n * h_n * (1 - r) * r
    return torch.cat([d_r, d_z, d_n], dim=1), torch.cat([d_r, d_z, d_n * r], dim=1), d_h * z


def lstm(inputs: Tensor, products: Tensor, c: Tensor, _: None, __: None) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = (inputs + products).chunk(4, dim=1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    after = f * c + i * g
    return o * torch.tanh(after), after, torch.cat([i, f, g, o], dim=1)


def lstm_backward(
    d_h: Tensor, d_c: Tensor, c: Tensor, after: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, ...]:
    assert not has_bias
    i, f, g, o = workspace.chunk(4, dim=1)
    tanh_c = torch.tanh(after)
    d_after = d_h * o * (1 - tanh_c * tanh_c) + d_c
    d_gates = [d_after * g * (1 - i) * i, d_after * c * (1 - f) * f, d_after * i * (1 - g * g)]
    return torch.cat([*d_gates, d_h * tanh_c * (1 - o) * o], dim=1), d_after * f


DOCUMENTED = CellOperators(gru, gru_backward, lstm, lstm_backward)


# The layers.


def some_weights(cell: str, dtype: torch.dtype, device: str, *, scaled: bool = False) -> Weights:
    rows = GATES[cell] * UNITS

    def weight(*shape: int, phase: float) -> Tensor:
        return ramp(*shape, phase=phase, dtype=dtype).to(device).requires_grad_()

    bias_hh = weight(rows, phase=4) if cell == "gru" else None
    scale = weight(UNITS, WIDTH, phase=6) if scaled else None
    return Weights(weight(rows, WIDTH, phase=1), weight(rows, UNITS, phase=2), weight(rows, phase=3), bias_hh, scale)


def some_state(cell: str, dtype: torch.dtype, device: str) -> State:
    parts = (ramp(BATCH, UNITS, phase=20 + i, dtype=dtype) for i in range(STATES[cell]))
    return tuple(part.to(device).requires_grad_() for part in parts)


def some_mask(dtype: torch.dtype, device: str) -> Tensor:
    return ((ramp(BATCH, UNITS, phase=40, dtype=dtype) > 0).to(dtype) * 1.25).to(device)


def calculate(
    cell: str,
    how: str,
    *,
    dtype: torch.dtype = torch.float64,
    low: torch.dtype | None = None,
    device: str = "cpu",
    scaled: bool = False,
) -> list[Tensor]:
    """Outputs, last states, and the gradients of everything, by the plain cells or with operators."""
    weights = some_weights(cell, dtype, device, scaled=scaled)
    state, mask = some_state(cell, dtype, device), some_mask(dtype, device)
    x = ramp(STEPS, BATCH, WIDTH, phase=5, dtype=dtype).to(device).requires_grad_()
    if how == "plain":
        outputs, last = unroll(cell, x, state, weights, mask)
    else:
        gates = x @ weights.weight_ih.T + weights.bias_ih
        mask = mask.expand(STEPS, *mask.shape)
        mask = mask if weights.weight_mx is None else mask * (1 + torch.tanh(x @ weights.weight_mx.T))
        operators = {"documented": DOCUMENTED, "aten": ATEN}[how]
        outputs, last = cell_layer(cell, gates, state, weights, low or dtype, mask, operators)
    total = (outputs * ramp(*outputs.shape, scale=1, phase=30, dtype=dtype).to(device)).sum()
    for i, part in enumerate(last):
        total = total + (part * ramp(*part.shape, phase=31 + i, dtype=dtype).to(device)).sum()
    asked = [x, *state, *(weight for weight in weights if weight is not None)]
    return [outputs.detach(), *(part.detach() for part in last), *torch.autograd.grad(total, asked)]


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "multiplicative"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_equal_the_plain_loop(cell: str, scaled: bool) -> None:
    found, expected = (calculate(cell, how, scaled=scaled) for how in ("documented", "plain"))
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_products_may_be_in_bfloat16(cell: str) -> None:
    low = calculate(cell, "documented", dtype=torch.float32, low=torch.bfloat16)
    for ours, plain in zip(low, calculate(cell, "plain", dtype=torch.float32), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < float((ours - plain).norm() / plain.norm()) < 0.02


@pytest.mark.parametrize("cell", CELLS)
def test_operators_exist_in_this_version_of_pytorch(cell: str) -> None:
    """Without CUDA a call is refused only after its arguments have been matched with the schema."""
    if torch.cuda.is_available():
        pytest.skip("the operators themselves are tested on this machine")
    with pytest.raises(NotImplementedError, match="_thnn_fused_"):
        calculate(cell, "aten", dtype=torch.float32)
    matrix = torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match="_thnn_fused_"):
        {
            "gru": lambda: ATEN.gru_backward(matrix, torch.ones(2, 15), False),
            "lstm": lambda: ATEN.lstm_backward(matrix, matrix, matrix, matrix, torch.ones(2, 12), False),
        }[cell]()


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_operators_compute_what_is_documented(cell: str, dtype: torch.dtype) -> None:
    bounds = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-5}
    real = calculate(cell, "aten", dtype=dtype, device="cuda", scaled=True)
    for how in ("documented", "plain"):
        for ours, expected in zip(real, calculate(cell, how, dtype=dtype, device="cuda", scaled=True), strict=True):
            torch.testing.assert_close(ours, expected, **bounds)


@needs_cuda
@pytest.mark.parametrize("vocabulary", [11, 40, 600], ids=["table", "positions", "many"])
@pytest.mark.parametrize("core", ["fused", "torch"])
@pytest.mark.parametrize("cell", [*CELLS, "rnn"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "multiplicative"])
def test_masked_layers_of_tokens_on_cuda(scaled: bool, cell: str, core: str, vocabulary: int) -> None:
    """In double precision, so that the plain loop on the CPU is a reference."""
    if cell == "rnn":
        rows, states = UNITS, 1
    else:
        rows, states = GATES[cell] * UNITS, STATES[cell]

    def calculated(core: str, device: str) -> list[Tensor]:
        def weight(*shape: int, phase: float) -> Tensor:
            return ramp(*shape, phase=phase).to(device).requires_grad_()

        bias_hh = weight(rows, phase=4) if cell == "gru" else None
        scale = weight(UNITS, WIDTH, phase=6) if scaled else None
        inputs, products = weight(rows, WIDTH, phase=1), weight(rows, UNITS, phase=2)
        weights = Weights(inputs, products, weight(rows, phase=3), bias_hh, scale)
        table = weight(vocabulary, WIDTH, phase=5)
        state = tuple(weight(BATCH, UNITS, phase=20 + i) for i in range(states))
        x = Tokens(some_ids(STEPS, BATCH, vocabulary).to(device), table)
        mask = some_mask(torch.float64, device)
        outputs, last = run_layer(core, cell, x, state, weights, torch.float64, mask)
        total = (outputs * ramp(*outputs.shape, scale=1, phase=30).to(device)).sum()
        asked = [table, *state, *(weight for weight in weights if weight is not None)]
        found = [outputs.detach(), *(part.detach() for part in last), *torch.autograd.grad(total, asked)]
        return [value.cpu() for value in found]

    for ours, plain in zip(calculated(core, "cuda"), calculated("plain", "cpu"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)


@needs_cuda
@pytest.mark.parametrize("cell", CELLS)
def test_fused_uses_the_operators_on_cuda(cell: str) -> None:
    gates = torch.zeros(STEPS, BATCH, GATES[cell] * UNITS, device="cuda", requires_grad=True)
    weights, state = some_weights(cell, torch.float32, "cuda"), some_state(cell, torch.float32, "cuda")
    outputs, _ = fused_layer(cell, gates, None, state, weights, torch.float32, None)
    assert "_GRU" in str(outputs.grad_fn) or "_LSTM" in str(outputs.grad_fn)
    assert "Fused" not in str(outputs.grad_fn)
