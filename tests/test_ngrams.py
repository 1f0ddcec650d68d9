"""N-grams that add to the logits: their offsets, the model, its gradients, and how the array is trained."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import charwright as cw
from charwright import kernels, ngrams
from charwright.data.sequences import make_dataset
from charwright.errors import ConfigError
from charwright.evaluation.dynamic import evaluate_dynamically
from charwright.model import native_loss, votes
from charwright.model.compute import Compute
from charwright.model.votes import contexts_of, offsets_of
from charwright.training.optimizer import clipped_gradients, make_optimizer, set_learning_rate
from ramps import ramp

pytestmark = pytest.mark.usefixtures("one_thread")

V, BITS = 13, 9
CORES = ["plain", "fused", *(["native"] if kernels.load() else [])]


def make_model(core: str = "plain", precision: str = "f32", **options: Any) -> cw.LanguageModel:
    """A model whose array is random, with votes about as large as logits."""
    config = cw.ModelConfig(**({"units": 16, "embedding_size": 8, "ngram_bits": BITS} | options))
    model = cw.LanguageModel(config, V, seed=1, compute=Compute.choose("cpu", core=core, precision=precision))
    if config.ngram_bits:
        with torch.no_grad():
            model.weight("ngrams.weight").normal_(generator=torch.Generator().manual_seed(2))
    return model


def some_ids(steps: int, batch: int, vocabulary: int = V) -> Tensor:
    return torch.randint(vocabulary, (steps, batch), generator=torch.Generator().manual_seed(3))


# Offsets.


ORDERS = (2, 4, 8)


@pytest.mark.parametrize("order", ORDERS)
def test_an_offset_is_the_top_bits_of_a_sum_of_products(order: int) -> None:
    marks = (5, 9, 1, 7, 2, 60, 3, 2**21)
    found = ngrams.offsets_of(np.array([4]), np.array([marks[1:order]]), 20)
    for (offset,), multipliers in zip(found.tolist(), ngrams.MULTIPLIERS[: order - 1], strict=True):
        total = sum(mark * multiplier for mark, multiplier in zip(marks, multipliers, strict=False))
        assert offset == total % 2**32 // 2**12
    assert found[:3].tolist() == [[395_477], [466_485], [516_501]][: order - 1]


def test_the_multipliers_are_odd_and_as_many_as_tokens() -> None:
    assert [len(row) for row in ngrams.MULTIPLIERS] == list(range(2, ngrams.HIGHEST_ORDER + 1))
    assert all(multiplier % 2 and multiplier < 2**32 for row in ngrams.MULTIPLIERS for multiplier in row)
    limits = cw.ModelConfig(ngram_order=2), cw.ModelConfig(ngram_order=ngrams.HIGHEST_ORDER)
    assert [config.ngram_order for config in limits] == [2, 8]
    with pytest.raises(ConfigError, match="`ngram_order` must be at most 8"):
        cw.ModelConfig(ngram_order=ngrams.HIGHEST_ORDER + 1)


def test_contexts_that_begin_before_the_text_share_the_last_offset() -> None:
    found = ngrams.offsets_of(np.array([4, 4, 4, 4]), np.array([[0, 0, 0], [9, 0, 0], [9, 1, 0], [9, 1, 7]]), 20)
    assert (found == 2**20).tolist() == [[True, False, False, False], [True, True, False, False], [True] * 3 + [False]]


@given(
    ids=st.lists(st.lists(st.integers(0, 2**21), min_size=2, max_size=2), min_size=1, max_size=12),
    bits=st.integers(1, 28),
    order=st.integers(2, 8),
)
def test_the_offsets_of_a_sequence_are_those_of_its_steps(ids: list[list[int]], bits: int, order: int) -> None:
    """Whether it is read at once, in two pieces or token by token."""
    sequence, before = np.array(ids), np.zeros((2, order - 1), dtype=np.int64)
    contexts = votes.contexts_of(torch.from_numpy(sequence), order)
    half = len(sequence) // 2
    if half:
        second = votes.contexts_of(torch.from_numpy(sequence[half:]), order, contexts[half - 1])
        assert_array_equal(second, contexts[half:])
    whole = votes.offsets_of(contexts, bits)
    for step, row in enumerate(sequence):
        assert_array_equal(ngrams.offsets_of(row, before, bits), whole[:, step])
        before = ngrams.moved_on(row, before)
    assert_array_equal(before, contexts[-1, :, :-1])
    assert int(whole.max()) <= 2**bits


def test_offsets_are_spread_over_the_array() -> None:
    """All n-grams of four tokens: about as many different offsets as random ones would be."""
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
    found = ngrams.offsets_of(grid[:, 0], grid[:, 1:] + 1, 16)
    for n, offsets in enumerate(found, 2):
        contexts = 4**n
        expected = 2**16 * (1 - (1 - 2**-16) ** contexts)
        assert len(np.unique(offsets)) > 0.97 * expected


# The model.


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("cell", "order"), [("gru", 2), ("gru", 4), ("lstm", 8)])
def test_the_votes_add_to_the_logits(core: str, cell: str, order: int) -> None:
    model, ids = make_model(core, cell=cell, ngram_order=order), some_ids(11, 3)
    plain = make_model(core, cell=cell, ngram_bits=0)
    plain.load_arrays({name: array for name, array in model.arrays().items() if name != "ngrams.weight"})
    with torch.no_grad():
        (logits, state), (without, state_without) = model(ids), plain(ids)
    array, before = model.arrays()["ngrams.weight"], np.zeros((3, order - 1), dtype=np.int64)
    for step, row in enumerate(ids.numpy()):
        for column, offsets in enumerate(ngrams.offsets_of(row, before, BITS).T):
            wanted = sum(array[offset : offset + V] for offset in offsets)
            assert np.abs((logits - without)[step, column].numpy() - wanted).max() < 1e-5
        before = ngrams.moved_on(row, before)
    for part, alone in zip(state, state_without, strict=False):
        assert torch.equal(part, alone)
    assert_array_equal(state[-1][0], before)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("most", [2**25, 64 * V])
@pytest.mark.parametrize("one_call", [True, False])
def test_loss_and_gradients_are_those_of_the_logits(
    core: str, precision: str, most: int, one_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the logits are computed some rows at a time."""
    if core == "plain" and precision == "bf16":
        pytest.skip("the core plain computes in float32")
    monkeypatch.setattr("charwright.model.loss.MOST_LOGITS_BYTES", 4 * most)
    monkeypatch.setattr("charwright.model.loss.MOST_LOGITS_PLAIN", most)
    if not one_call:
        monkeypatch.setattr("charwright.model.loss.has_head", lambda *_: False)
    model, ids = make_model(core, precision), some_ids(41, 5)
    weights = list(model.parameters())
    logits, _ = model(ids[:-1])
    wanted = F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())
    wanted_gradients = torch.autograd.grad(wanted, weights)
    loss, _ = model.loss(ids[:-1], ids[1:])
    tolerance = 1e-5 if precision == "f32" else 0.02
    assert float(abs(loss - wanted).detach()) < tolerance * float(wanted.detach())
    for found, gradient in zip(torch.autograd.grad(loss, weights), wanted_gradients, strict=True):
        assert float((found - gradient).norm()) <= 2 * tolerance * float(gradient.norm())


@pytest.mark.skipif(kernels.load() is None, reason="the kernels are not built")
@pytest.mark.parametrize("masked", [False, True])
def test_the_head_in_one_call_is_that_in_several(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no bit depends on the number of threads."""
    results: list[list[torch.Tensor]] = []
    for one_call, threads in ((True, 1), (True, 2), (False, 1)):
        if not one_call:
            monkeypatch.setattr("charwright.model.loss.has_head", lambda *_: False)
        torch.set_num_threads(threads)
        model, ids = make_model("native", **({"dropout": 0.3} if masked else {})), some_ids(71, 5)
        loss, _ = model.train().loss(ids[:-1], ids[1:], generator=torch.Generator().manual_seed(3))
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    one, two, several = results
    for first, second, third in zip(one, two, several, strict=True):
        assert torch.equal(first, second)
        assert float((first - third).norm().detach()) <= 1e-5 * float(third.norm().detach())


@pytest.mark.skipif(kernels.load() is None, reason="the kernels are not built")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [1, 12, 28])
def test_the_kernels_find_the_same_contexts(order: int, bits: int) -> None:
    loaded = kernels.load()
    assert loaded is not None
    ids = torch.randint(20_000, (13, 3), generator=torch.Generator().manual_seed(1))
    before = torch.tensor([[0.0] * 7, [5.0, 3.0, *[0.0] * 5], [2.0, 900.0, 7.0, 19_999.0, 1.0, 4.0, 8.0]])
    before = before[:, : order - 1]
    contexts = contexts_of(ids, order, before)
    offsets, after = native_loss.contexts(loaded, ids, before, bits)
    assert torch.equal(offsets, offsets_of(contexts, bits).flatten(1))
    assert torch.equal(after, contexts[-1, :, :-1].to(torch.float32))


def test_gradients_are_those_of_finite_differences() -> None:
    model, ids = make_model().double(), some_ids(9, 2)
    array = model.weight("ngrams.weight")
    loss, _ = model.loss(ids[:-1], ids[1:])
    (gradient,) = torch.autograd.grad(loss, [array])
    for at in torch.argsort(-gradient.abs())[:8].tolist():
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                array[at] += step
                sides.append(float(model.loss(ids[:-1], ids[1:])[0]))
                array[at] -= step
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float(gradient[at]), rel=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_a_context_has_as_many_tokens_as_the_order_and_the_zero_state_none(order: int) -> None:
    model = make_model(ngram_order=order)
    for name, weight in model.named_weights().items():
        if name != "ngrams.weight":
            torch.nn.init.zeros_(weight)
    long, short = (torch.tensor([[first], *([5 + i] for i in range(order))]) for first in (1, 3))
    with torch.no_grad():
        assert torch.equal(model(long)[0][-1], model(short)[0][-1]), "the token before the last ones does not count"
        assert not torch.equal(model(long)[0][-2], model(short)[0][-2]), "the last of them does"
        assert not torch.equal(model(long)[0][-2], model(long[1:])[0][-2]), "nor is it the same as none"
        fresh, state = model(long[:2])
        assert torch.equal(model(long[:2], model.zero_state(1))[0], fresh)
        assert not torch.equal(model(long[2:], state)[0][0], model(long[2:])[0][0])


@pytest.mark.parametrize("core", CORES)
def test_evaluation_carries_the_tokens(core: str) -> None:
    model, vocabulary = make_model(core), cw.Vocabulary("abcdefghijkl")
    text = "abcegikabdfhjkbcdfgikac" * 40
    found = cw.evaluate(model, vocabulary, text)
    ids = torch.from_numpy(vocabulary.encode(text).astype(np.int64))[:, None]
    with torch.no_grad():
        logits, _ = model(ids[:-1])
    wanted = F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten()) * (len(text) - 1)
    assert found.nats_per_char * found.chars == pytest.approx(float(wanted), rel=1e-5)


def test_dynamic_evaluation_learns_n_grams_too() -> None:
    model, vocabulary = make_model(), cw.Vocabulary("abcdefghijkl")
    text = "abcegikabdfhjkbcdfgikac" * 120
    fixed = evaluate_dynamically(model, vocabulary, text, rate=0.0)
    assert evaluate_dynamically(model, vocabulary, text, rate=0.003).nats_per_char < fixed.nats_per_char - 0.1


# Training.


def data(ids: int = 2000) -> Any:
    steps = np.random.default_rng(0).integers(1, 3, ids)
    sequence = np.cumsum(steps) % (V - 1) + 1
    return make_dataset(sequence, cw.SequenceConfig(batch=4, seq_length=10), 1)


def settings(**options: Any) -> cw.TrainingConfig:
    return cw.TrainingConfig(**({"learning_rate": 0.01, "warmup": 0, "state_reset": 0.0} | options))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "cautious-adamw"])
@pytest.mark.parametrize("collecting", [False, True])
def test_the_array_descends_by_its_own_rate(core: str, optimizer: str, collecting: bool) -> None:
    """In proportion to the schedule, unclipped, and only where it has a gradient."""
    model, ids = make_model(core), some_ids(11, 4)
    array = model.weight("ngrams.weight")
    loss, _ = model.loss(ids[:-1], ids[1:])
    (gradient,) = torch.autograd.grad(loss, [array])
    config = settings(optimizer=optimizer, steps=1, ngram_rate=0.5, ngram_decay=0.001, clip_norm=1e-3)
    made = cw.make_optimizer(model, config, 40)
    held = {id(weight) for group in made.param_groups for weight in group["params"]}
    assert id(array) not in held
    assert len(held) == len(list(model.parameters())) - 1
    set_learning_rate(made, 1.0)
    set_learning_rate(made, 0.25)
    before = array.detach().clone()
    with model.collecting_ngram_gradients(collecting), clipped_gradients(model, made, 1e-3):
        loss, _ = model.loss(ids[:-1], ids[1:])
        made.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert (array.grad is None) == collecting
        made.step()
        assert not model.ngram_gradients
    moved = array.detach() - before
    torch.testing.assert_close(moved, -0.5 * 40 * 0.25 * gradient, rtol=1e-4, atol=1e-6)
    assert not moved[gradient == 0].any()
    assert array.grad is None
    assert model.ngram_gradients is None


@pytest.mark.parametrize("core", CORES)
def test_losses_add_up_before_a_step(core: str) -> None:
    """The gradient counts as often as a loss does, and is that of all losses since the last step."""
    model, ids = make_model(core), some_ids(31, 4)
    array = model.weight("ngrams.weight")
    parts = (ids[:12], ids[11:])
    total = sum(factor * model.loss(part[:-1], part[1:])[0] for factor, part in zip((1, 0.5), parts, strict=True))
    assert isinstance(total, torch.Tensor)
    (gradient,) = torch.autograd.grad(total, [array])
    made = cw.make_optimizer(model, settings(steps=1, ngram_rate=0.5), 40)
    before = array.detach().clone()
    with model.collecting_ngram_gradients():
        for factor, part in zip((1, 0.5), parts, strict=True):
            (factor * model.loss(part[:-1], part[1:])[0]).backward()  # type: ignore[no-untyped-call]
        made.step()
    torch.testing.assert_close(array.detach() - before, -0.5 * 40 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("core", CORES)
def test_an_optimizer_of_ones_own_gets_the_gradient_of_the_array(core: str) -> None:
    moved = []
    for frozen in (False, True):
        model = make_model(core)
        array = model.weight("ngrams.weight").requires_grad_(not frozen)
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
        before = array.detach().clone()
        list(cw.fit(model, data(), settings(steps=3), optimizer=optimizer))
        moved.append(float((array.detach() - before).norm()))
    assert moved[0] > 0
    assert moved[1] == 0


@pytest.mark.parametrize("core", CORES)
def test_a_frozen_array_stays(core: str) -> None:
    model = make_model(core)
    array = model.weight("ngrams.weight").requires_grad_(False)
    before = array.clone()
    list(cw.fit(model, data(), settings(steps=3, ngram_rate=0.5)))
    assert torch.equal(array, before)


@pytest.mark.parametrize("collecting", [False, True])
def test_a_loss_may_be_used_twice(collecting: bool) -> None:
    model, ids = make_model(), some_ids(11, 4)
    array, began, moved = model.weight("ngrams.weight"), model.arrays(), []
    for times in (1, 2):
        model.load_arrays(began)
        made, before = cw.make_optimizer(model, settings(steps=1, ngram_rate=0.5), 40), array.detach().clone()
        with model.collecting_ngram_gradients(collecting):
            loss = 0.5 * model.loss(ids[:-1], ids[1:])[0]
            for _ in range(times):
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            made.step()
        made.zero_grad()
        moved.append(array.detach() - before)
    assert float(moved[0].norm()) > 0
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-4, atol=1e-6)


def test_a_step_without_gradients_changes_nothing() -> None:
    model = make_model()
    before = model.arrays()
    cw.make_optimizer(model, settings(steps=1, ngram_decay=0.01), 40).step()
    for name, array in model.arrays().items():
        assert_array_equal(array, before[name])


def test_the_array_decays_every_16_steps() -> None:
    model = make_model()
    array = model.weight("ngrams.weight")
    made, before = cw.make_optimizer(model, settings(steps=40, ngram_rate=0.5, ngram_decay=0.001), 40), array.clone()
    for step in range(1, 33):
        model.weight("head.bias").grad = torch.zeros(V)
        made.step()
        torch.testing.assert_close(array, before * 0.98 ** (step // 16 * 16))


@pytest.mark.parametrize("core", CORES)
def test_n_grams_learn(core: str) -> None:
    """What a network of two units cannot learn in forty steps."""
    losses = []
    for bits in (0, 12):
        config = cw.ModelConfig(units=2, embedding_size=2, ngram_bits=bits)
        model = cw.LanguageModel(config, V, seed=1, compute=Compute.choose("cpu", core=core, precision="f32"))
        trained = cw.fit(model, data(), settings(steps=100, ngram_rate=0.3))
        losses.append([event.loss for event in trained if event.name == "step"][-1])
    assert losses[1] < losses[0] - 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_with_any_number_of_threads(dtype: torch.dtype) -> None:
    """Also where the parts of two threads meet inside a row, and rows are longer than a vector.

    The descent alone: PyTorch's products in the rest of a step may differ between one thread and two.
    """
    found = []
    config = cw.ModelConfig(units=16, embedding_size=8, ngram_bits=8, ngram_order=8)
    ids = some_ids(300, 4) % 66
    offsets = votes.offsets_of(votes.contexts_of(ids, 8), 8).flatten(1)
    gradient = votes.RowGradient(offsets, ramp(ids.numel(), 66, scale=0.5, dtype=torch.float32).to(dtype))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        compute = Compute.choose("cpu", core=CORES[-1], precision="f32" if dtype == torch.float32 else "bf16")
        model = cw.LanguageModel(config, 66, compute=compute)
        optimizer = make_optimizer(model, settings(ngram_rate=0.3, ngram_decay=0.001), 1)
        for _ in range(20):
            with model.collecting_ngram_gradients():
                assert model.ngram_gradients is not None
                model.ngram_gradients.append(gradient)
                optimizer.step()
        found.append(model.arrays()["ngrams.weight"])
    torch.set_num_threads(1)
    assert np.abs(found[0]).max() > 0.01
    for other in found[1:]:
        assert_array_equal(found[0], other)


def test_options_without_n_grams_are_those_of_before() -> None:
    assert "ngrams.weight" not in cw.ModelConfig().weight_shapes(V)
    shapes = [cw.ModelConfig(ngram_bits=bits).weight_shapes(V)["ngrams.weight"] for bits in (1, 12)]
    assert shapes == [(2 + V,), (4096 + V,)]
    assert "ngram_order" not in cw.Recipe().to_json()["model"]
    assert cw.ModelConfig.from_json({"ngram_bits": 12}, "model") == cw.ModelConfig(ngram_bits=12, ngram_order=4)
    model = make_model(ngram_bits=0)
    assert [tuple(part.shape) for part in model.zero_state(2)] == [(1, 2, 16)]


def test_a_state_of_pieces_equals_that_of_the_whole() -> None:
    model, ids = make_model(layers=2, cell="lstm"), some_ids(12, 3)
    with torch.no_grad():
        whole, state = model(ids)
        carried = None
        pieces = []
        for begin, end in pairwise([0, 1, 2, 7, 12]):
            logits, carried = model(ids[begin:end], carried)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole)
    assert carried is not None
    for part, other in zip(state, carried, strict=True):
        torch.testing.assert_close(part, other)


@pytest.mark.parametrize("core", CORES)
def test_gradients_are_forgotten_together(core: str) -> None:
    """`zero_grad` forgets that of the array too, which is in no parameter group."""
    steps = []
    for discarded in (False, True):
        model, ids = make_model(core), some_ids(11, 4)
        made = cw.make_optimizer(model, settings(steps=1), 40)
        with model.collecting_ngram_gradients(core == "native"):
            if discarded:
                model.loss(ids[1:], ids[:-1])[0].backward()  # type: ignore[no-untyped-call]
                made.zero_grad()
            model.loss(ids[:-1], ids[1:])[0].backward()  # type: ignore[no-untyped-call]
            made.step()
        steps.append(model.weight("ngrams.weight").detach().clone())
    assert torch.equal(*steps)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_the_optimizer_moves_the_array_of_the_copied_model(core: str, copied: Any) -> None:
    model = make_model(core)
    made = cw.make_optimizer(model, settings(steps=5), 40)
    begun = model.arrays()["ngrams.weight"]
    other, others = copied((model, made))
    for one, optimizer in ((other, others), (model, made)):
        for _ in cw.fit(one, data(), settings(steps=5), optimizer=optimizer):
            pass
    assert_allclose(other.arrays()["ngrams.weight"], model.arrays()["ngrams.weight"], atol=1e-6)
    assert not np.array_equal(other.arrays()["ngrams.weight"], begun)
