"""Every fast core against the plain loop over the cells: outputs and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from charwright import kernels
from charwright.config import GATES, PRODUCTS, STATES, ModelConfig
from charwright.errors import UsageError
from charwright.model.cells import State, Weights
from charwright.model.compute import CORES, Compute, choose_core
from charwright.model.language_model import LanguageModel
from charwright.model.native import native_layer
from charwright.model.recurrent import Tokens, run_layer
from ramps import fill_with_ramps, ramp, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")

FAST_CORES = [core for core in CORES if core not in ("auto", "plain")]
CELLS = list(GATES)
EXACT = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-3, "atol": 2e-5}}

# Odd sizes that no vector width divides. The vocabulary size decides how the input is looked up: in a table of all
# tokens if it is small compared to T * B, else in a table of those that occur; the gradients of more than 512 tokens
# are scattered.
SHAPES = [
    pytest.param({"units": 7, "steps": 17, "batch": 3, "vocabulary": 11, "layers": 1}, id="table"),
    pytest.param({"units": 48, "steps": 17, "batch": 9, "vocabulary": 70, "layers": 2}, id="table-two-layers"),
    pytest.param({"units": 48, "steps": 1, "batch": 9, "vocabulary": 70, "layers": 2}, id="projection-one-step"),
    pytest.param({"units": 7, "steps": 17, "batch": 1, "vocabulary": 30, "layers": 1}, id="projection-one-row"),
    pytest.param({"units": 1, "steps": 1, "batch": 1, "vocabulary": 5, "layers": 1}, id="smallest"),
    pytest.param({"units": 1, "steps": 17, "batch": 3, "vocabulary": 6, "layers": 2}, id="one-unit"),
    pytest.param({"units": 7, "steps": 60, "batch": 30, "vocabulary": 530, "layers": 1}, id="table-scatter"),
]
SHAPES += [pytest.param({**each.values[0], "multiplicative": 1}, id=f"{each.id}-multiplicative") for each in SHAPES]


@dataclasses.dataclass(frozen=True)
class Case:
    """One forward and backward pass: logits, the last state, and the gradients by name."""

    logits: Tensor
    state: State
    gradients: dict[str, Tensor]


def skip_unless_supported(core: str, precision: torch.dtype) -> None:
    """Skip a core that lacks its kernels or does not support a precision; those in Python always work."""
    try:
        choose_core(core, torch.device("cpu"), precision)
    except UsageError as error:
        assert core not in ("plain", "fused", "torch")
        pytest.skip(str(error))


def make_model(
    core: str,
    cell: str,
    dtype: torch.dtype,
    precision: torch.dtype,
    *,
    units: int,
    vocabulary: int,
    layers: int,
    multiplicative: int = 0,
) -> LanguageModel:
    skip_unless_supported(core, precision)
    config = ModelConfig(cell=cell, layers=layers, units=units, embedding_size=5, multiplicative=bool(multiplicative))
    model = LanguageModel(config, vocabulary, compute=Compute(core=core, precision=precision)).to(dtype)
    return fill_with_ramps(model)


def make_state(cell: str, layers: int, batch: int, units: int, dtype: torch.dtype) -> State:
    return tuple(ramp(layers, batch, units, phase=20 + i, dtype=dtype) for i in range(STATES[cell]))


def calculate(
    core: str,
    cell: str,
    dtype: torch.dtype,
    precision: torch.dtype | None = None,
    *,
    steps: int,
    batch: int,
    **sizes: int,
) -> Case:
    model = make_model(core, cell, dtype, precision or dtype, **sizes)
    state = tuple(part.requires_grad_() for part in make_state(cell, sizes["layers"], batch, sizes["units"], dtype))
    logits, last = model(some_ids(steps, batch, sizes["vocabulary"]), state)
    # Every value has its own weight, nonlinearly, so that a misplaced gradient is detected.
    total = (torch.tanh(logits) * ramp(*logits.shape, scale=1, phase=30, dtype=dtype)).sum()
    for i, part in enumerate(last):
        total = total + (part * ramp(*part.shape, scale=1, phase=31 + i, dtype=dtype)).sum()
    names = [name for name, _ in model.named_parameters()] + [f"state.{i}" for i in range(len(state))]
    gradients = torch.autograd.grad(total, [*model.parameters(), *state])
    return Case(logits.detach(), tuple(part.detach() for part in last), dict(zip(names, gradients, strict=True)))


@pytest.mark.parametrize("dtype", list(EXACT), ids=str)
@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("core", FAST_CORES)
def test_core_equals_the_plain_loop(core: str, cell: str, sizes: dict[str, int], dtype: torch.dtype) -> None:
    ours, plain = calculate(core, cell, dtype, **sizes), calculate("plain", cell, dtype, **sizes)
    torch.testing.assert_close(ours.logits, plain.logits, **EXACT[dtype])
    torch.testing.assert_close(ours.state, plain.state, **EXACT[dtype])
    for name, expected in plain.gradients.items():
        # Gradients are sums over up to T * B terms, so their rounding error scales with the largest entry.
        bounds = EXACT[dtype] | {"atol": EXACT[dtype]["atol"] * max(1.0, float(expected.abs().max()))}
        torch.testing.assert_close(ours.gradients[name], expected, **bounds, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("sizes", [SHAPES[i] for i in (1, 2, 6, 8, 13)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("core", FAST_CORES)
def test_bfloat16_stays_near_float32(core: str, cell: str, sizes: dict[str, int]) -> None:
    """bfloat16 keeps 8 bits of each factor, so errors are a few thousandths."""
    low = calculate(core, cell, torch.float32, torch.bfloat16, **sizes)
    plain = calculate("plain", cell, torch.float32, **sizes)
    assert low.logits.dtype == torch.float32
    assert relative_error(low.logits, plain.logits) < 0.01
    for name, expected in plain.gradients.items():
        assert low.gradients[name].dtype == torch.float32
        assert relative_error(low.gradients[name], expected) < 0.03, name


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("core", ["plain", *FAST_CORES])
def test_a_sequence_equals_its_pieces(core: str, cell: str, precision: torch.dtype) -> None:
    """Some pieces are so short that the lookup changes from the table to the product."""
    model = make_model(core, cell, torch.float32, precision, units=48, vocabulary=20, layers=2)
    ids = some_ids(17, 3, 20)
    # PyTorch's own layer carries its state in the precision of the products, which costs bits in bfloat16.
    exact = {"rtol": 1e-4, "atol": 1e-5} if precision == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    with torch.no_grad():
        whole, end = model(ids)
        state, pieces = None, []
        for begin, stop in [(0, 1), (1, 9), (9, 12), (12, 17)]:
            logits, state = model(ids[begin:stop], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole, **exact)
    torch.testing.assert_close(state, end, **exact)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("core", ["plain", *FAST_CORES])
def test_a_batch_equals_its_rows(core: str, cell: str) -> None:
    model = make_model(core, cell, torch.float32, torch.float32, units=48, vocabulary=40, layers=2)
    ids, state = some_ids(17, 9, 40), make_state(cell, 2, 9, 48, torch.float32)
    with torch.no_grad():
        logits, last = model(ids, state)
        for row in range(9):
            one = slice(row, row + 1)
            alone, end = model(ids[:, one], tuple(part[:, one] for part in state))
            torch.testing.assert_close(logits[:, one], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tuple(part[:, one] for part in last), end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", list(EXACT), ids=str)
@pytest.mark.parametrize("tokens", [True, False], ids=["ids-scaled", "vectors"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("core", FAST_CORES)
def test_masks_on_the_recurrent_product(core: str, cell: str, tokens: bool, dtype: torch.dtype) -> None:
    """The dropout mask of a sequence (B, H), for tokens beside a scale: outputs and gradients equal those of the
    plain loop.
    """
    skip_unless_supported(core, dtype)
    units, steps, batch, width, rows, products = 7, 9, 3, 5, 7 * GATES[cell], 7 * PRODUCTS[cell]
    mask = (ramp(batch, units, phase=40, dtype=dtype) > 0).to(dtype) * 1.25

    def layer(which: str) -> list[Tensor]:
        bias_hh = ramp(products, phase=4, dtype=dtype).requires_grad_() if cell in ("gru", "igru") else None
        weights = Weights(
            ramp(rows, width, phase=1, dtype=dtype).requires_grad_(),
            ramp(products, units, phase=2, dtype=dtype).requires_grad_(),
            ramp(rows, phase=3, dtype=dtype).requires_grad_(),
            bias_hh,
            ramp(units, width, phase=6, dtype=dtype).requires_grad_() if tokens else None,
        )
        table = ramp(11, width, phase=5, dtype=dtype).requires_grad_()
        ids = some_ids(steps, batch, 11)
        state = tuple(part[0].requires_grad_() for part in make_state(cell, 1, batch, units, dtype))
        x = Tokens(ids, table) if tokens else table[ids]
        outputs, last = run_layer(which, cell, x, state, weights, dtype, mask)
        total = (outputs * ramp(*outputs.shape, scale=1, phase=30, dtype=dtype)).sum()
        total = total + sum((part * ramp(*part.shape, phase=31, dtype=dtype)).sum() for part in last)
        asked = [table, *state, *(weight for weight in weights if weight is not None)]
        return [outputs.detach(), *last, *torch.autograd.grad(total, asked)]

    for ours, plain in zip(layer(core), layer("plain"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=EXACT[dtype]["rtol"], atol=10 * EXACT[dtype]["atol"])


@pytest.mark.parametrize("core", FAST_CORES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_of_the_last_state_alone(core: str, cell: str) -> None:
    """A loss on the last state only, as in a classifier."""
    gradients = []
    for which in (core, "plain"):
        model = make_model(which, cell, torch.float32, torch.float32, units=7, vocabulary=9, layers=1)
        _, last = model(some_ids(5, 2, 9))
        total = sum((part * ramp(*part.shape, phase=i, dtype=torch.float32)).sum() for i, part in enumerate(last))
        gradients.append(torch.autograd.grad(total, model.weight("recurrent.0.weight_hh"))[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("core", FAST_CORES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_state_and_ids_of_the_caller_are_unchanged(core: str, cell: str) -> None:
    model = make_model(core, cell, torch.float32, torch.float32, units=7, vocabulary=9, layers=2)
    ids, state = some_ids(5, 2, 9), make_state(cell, 2, 2, 7, torch.float32)
    before = ids.clone(), tuple(part.clone() for part in state)
    model(ids, state)[0].sum().backward()
    torch.testing.assert_close((ids, state), before, rtol=0, atol=0)


@pytest.mark.parametrize("units", [7, 16])
@pytest.mark.parametrize("core", FAST_CORES)
@pytest.mark.parametrize("cell", CELLS)
def test_states_and_ids_may_be_views(core: str, cell: str, units: int) -> None:
    """Batches are transposed arrays; the result must not depend on contiguity."""
    model = make_model(core, cell, torch.float32, torch.float32, units=units, vocabulary=9, layers=1)
    ids, state = some_ids(6, 4, 9), make_state(cell, 1, 4, units, torch.float32)
    ids_view = ids.T.contiguous().T
    state_view = tuple(part.transpose(1, 2).contiguous().transpose(1, 2) for part in state)
    assert not ids_view.is_contiguous()
    torch.testing.assert_close(model(ids_view, state_view), model(ids, state), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [9, 5])  # 5 is so small for as many ids that the table has all rows.
def test_what_the_kernels_cannot_read_is_refused(vocabulary: int) -> None:
    """A wrong type or shape would be read as something else, or beyond its end."""
    model = make_model("native", "gru", torch.float32, torch.float32, units=16, vocabulary=vocabulary, layers=1)
    ids, [state] = some_ids(6, 4, vocabulary), make_state("gru", 1, 4, 16, torch.float32)
    for wrong, given in (
        ((ids.int()[:0], None), "at least one step"),
        ((ids, (state[:, :1],)), r"the state of 4 rows has the shapes \[\(1, 4, 16\)\], not \[\(1, 1, 16\)\]"),
        ((ids, (state.double(),)), "the state must be float32"),
    ):
        with pytest.raises(ValueError, match=given):
            model(*wrong)
    for outside in (-1, vocabulary):
        with pytest.raises((ValueError, IndexError)):
            model(ids.clone().fill_(outside))
    layer, loaded, zeros = model._layer(0), kernels.load(), (torch.zeros(4, 16),)
    assert loaded is not None
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        cut = layer._replace(**{name: getattr(layer, name)[:-16]})
        with pytest.raises(ValueError, match=f"{name} of a layer of 16 units must be"):
            native_layer(loaded, "gru", torch.zeros(vocabulary, 5), ids, zeros, cut, torch.float32, None)
    with pytest.raises(ValueError, match="need float32 weights"):
        model.double()(ids)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("core", FAST_CORES)
def test_the_same_call_gives_the_same_bits(core: str, threads: int) -> None:
    """Otherwise a resumed run could not have the bits of an uninterrupted one."""
    torch.set_num_threads(threads)
    sizes = {"units": 48, "steps": 17, "batch": 9, "vocabulary": 70, "layers": 2}
    first, second = (calculate(core, "gru", torch.float32, torch.bfloat16, **sizes) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[name]), name
