"""What is read out of a network: states and gates against the cells, surprise against the evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.config import GATES, ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.explanation.charts import measurable, uncovered
from charwright.explanation.inside import Network
from charwright.explanation.memory import memory_of
from charwright.explanation.overview import embedding_map, gates_of, temperatures_of
from charwright.explanation.results import Memory
from charwright.explanation.surprise import last_steps, surprise_of
from charwright.generation.engine import Engine
from charwright.model.cells import CELL_FUNCTIONS, Weights
from charwright.model.votes import contexts_of
from ramps import ramp_arrays, some_ids
from writers import LETTERS, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = {
    "gru": ModelConfig(units=12, embedding_size=8),
    "gru 2 tied": ModelConfig(layers=2, units=12, embedding_size=12, tied=True),
    "igru 2": ModelConfig(cell="igru", layers=2, units=12, embedding_size=8),
    "lstm 2": ModelConfig(cell="lstm", layers=2, units=10, embedding_size=8),
    "rnn 2": ModelConfig(cell="rnn", layers=2, units=12, embedding_size=8),
    "multiplicative gru": ModelConfig(units=12, embedding_size=8, multiplicative=True),
    "multiplicative gru 2": ModelConfig(layers=2, units=12, embedding_size=8, multiplicative=True),
    "multiplicative igru": ModelConfig(cell="igru", units=12, embedding_size=8, multiplicative=True),
    "multiplicative lstm": ModelConfig(cell="lstm", units=10, embedding_size=8, multiplicative=True),
    "multiplicative lstm 2": ModelConfig(cell="lstm", layers=2, units=10, embedding_size=8, multiplicative=True),
    "multiplicative rnn": ModelConfig(cell="rnn", units=12, embedding_size=8, multiplicative=True),
}
NGRAMS = {
    "n-grams": ModelConfig(units=12, embedding_size=8, ngram_bits=12),
    "n-grams of lstm 2": ModelConfig(cell="lstm", layers=2, units=10, embedding_size=8, ngram_bits=3, ngram_order=8),
}
OF_GRU = {"reset": 0, "update": 1}
PLACES = {"gru": OF_GRU, "igru": OF_GRU, "lstm": {"input": 0, "forget": 1, "output": 3}, "rnn": {}}
"""The place of each gate among those of a cell; the others are candidates."""
TEXT = "abc dE!\n中é:aB\nabcdeABCDE ..." * 9


def gates_by_hand(cell: str, x: torch.Tensor, h: torch.Tensor, w: Weights) -> dict[str, torch.Tensor]:
    bias = w.bias_hh if w.bias_hh is not None else 0
    scaled = h if w.weight_mx is None else h + torch.tanh(x @ w.weight_mx.T) * h
    pre = x @ w.weight_ih.T + w.bias_ih
    read = scaled @ w.weight_hh.T + bias
    pre[:, pre.shape[1] - read.shape[1] :] += read  # r of an input-reset GRU reads the input alone.
    parts = torch.sigmoid(pre).chunk(GATES[cell], dim=1)
    return {name: parts[at] for name, at in PLACES[cell].items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_gates_are_those_of_the_cells(name: str) -> None:
    config = CONFIGS[name]
    arrays = ramp_arrays(config, 20)
    network = Network(config, arrays)
    ids = some_ids(15, 3, 20)
    layers = network.read(ids)
    weights = {key: torch.from_numpy(array) for key, array in arrays.items()}
    x = weights["embedding.weight"][ids]
    for index, layer in enumerate(layers):
        names = ("weight_ih", "weight_hh", "bias_ih", *(("bias_hh",) if config.cell in ("gru", "igru") else ()))
        scale = weights.get(f"recurrent.{index}.weight_mx")
        assert (scale is not None) == (config.multiplicative and index == 0)
        w = Weights(*(weights[f"recurrent.{index}.{part}"] for part in names))._replace(weight_mx=scale)
        state = tuple(torch.zeros(3, config.units) for _ in range(2 if config.cell == "lstm" else 1))
        outputs = []
        for step in range(15):
            for gate, expected in gates_by_hand(config.cell, x[step], state[0], w).items():
                assert torch.allclose(layer.gates[gate][step], expected, atol=1e-5)
            state = CELL_FUNCTIONS[config.cell](x[step], state, w)
            assert torch.allclose(layer.hidden[step], state[0], atol=1e-5)
            if config.cell == "lstm":
                assert layer.cell is not None
                assert torch.allclose(layer.cell[step], state[1], atol=1e-5)
                assert torch.allclose(layer.activations[step], torch.tanh(state[1]), atol=1e-5)
            outputs.append(state[0])
        x = torch.stack(outputs)
    assert set(layers[0].gates) == set(PLACES[config.cell])
    # In pieces, with the state carried.
    states = [
        tuple(part[-1] for part in (layer.hidden, layer.cell) if part is not None) for layer in network.read(ids[:9])
    ]
    for whole, rest in zip(layers, network.read(ids[9:], states), strict=True):
        assert torch.allclose(whole.hidden[9:], rest.hidden, atol=1e-5)


def test_the_reset_gate_of_an_input_reset_gru_is_a_function_of_the_character() -> None:
    config = ModelConfig(cell="igru", units=12, embedding_size=8, multiplicative=True)
    ids = some_ids(60, 1, 20)
    [layer] = Network(config, ramp_arrays(config, 20)).read(ids)
    for gate, differs in (("reset", False), ("update", True)):
        values = layer.gates[gate][:, 0]
        rows = [values[ids[:, 0] == token] for token in ids.unique()]
        spread = max(float((each - each[0]).abs().max()) for each in rows)
        assert (spread > 1e-3) == differs, gate


@pytest.mark.parametrize("name", [*CONFIGS, *NGRAMS])
def test_probabilities_are_those_of_the_engine(name: str) -> None:
    config = (CONFIGS | NGRAMS)[name]
    weights = weights_of(config, len(LETTERS))
    network, engine = Network(config, weights), Engine(config, weights, "f32")
    ids = some_ids(20, 3, len(LETTERS))
    state = engine.zero_state(3)
    expected = torch.from_numpy(np.stack([engine.step(row.numpy(), state) for row in ids]))
    layers, contexts = network.read(ids), contexts_of(ids, config.ngram_order)
    found = network.log_probabilities(layers[-1].hidden.flatten(0, 1), contexts.flatten(0, 1))
    assert torch.allclose(found, torch.log_softmax(expected, dim=-1).flatten(0, 1).float(), atol=1e-4)
    # In pieces, with the contexts carried.
    assert torch.equal(torch.cat([contexts[:2], contexts_of(ids[2:], config.ngram_order, contexts[1])]), contexts)
    assert contexts[2, 0].tolist() == [*(1 + ids[:3, 0].flip(0)).tolist(), *[0] * (config.ngram_order - 3)]


def surprise(
    config: ModelConfig, vocabulary: cw.Vocabulary, text: str, weights: dict[str, np.ndarray]
) -> tuple[cw.Explanation, Network]:
    network = Network(config, weights)
    ids = torch.from_numpy(vocabulary.encode(text).astype(np.int64))
    return surprise_of(text, vocabulary, network, network.read(ids[:, None]), ids), network


@pytest.mark.parametrize("name", [*CONFIGS, *NGRAMS])
def test_surprise_is_what_evaluation_measures(name: str) -> None:
    text, config = TEXT + "x🙂y", (CONFIGS | NGRAMS)[name]  # outside the vocabulary
    found, _ = surprise(config, LETTERS, text, weights_of(config, len(LETTERS)))
    assert math.isnan(found.bits[0])
    model = cw.LanguageModel.from_arrays(config, weights_of(config, len(LETTERS)))
    assert found.bits_per_char == pytest.approx(cw.evaluate(model, LETTERS, text).bits_per_char, abs=1e-5)
    [nats] = Engine(config, weights_of(config, len(LETTERS)), "f32").scores([LETTERS.encode(TEXT)])
    # A plain recurrent network enlarges differences of rounding from character to character.
    assert found.bits[1 : len(TEXT)] == pytest.approx(-nats / math.log(2), rel=1e-4, abs=1e-4)
    assert len(found.bits) == len(found.choices) == len(text)
    assert found.choices[0] == ()
    for at, choices in enumerate(found.choices[1:], 1):
        assert len(choices) == 5
        shares = [share for _, share in choices]
        assert shares == sorted(shares, reverse=True)
        for token, share in choices:
            assert token in LETTERS.characters
            if token == text[at]:
                assert -math.log2(share) == pytest.approx(found.bits[at], abs=1e-4)


@pytest.mark.parametrize("config", [CONFIGS["gru"], *NGRAMS.values()], ids=["gru", *NGRAMS])
def test_surprise_of_bytes_is_by_character(config: ModelConfig) -> None:
    vocabulary = ByteVocabulary()
    text = "aé中🙂\nb" * 20
    weights = weights_of(config, 257)
    weights["head.bias"][0x81:] += np.float32(3)  # Characters of several bytes are among the likeliest.
    found, network = surprise(config, vocabulary, text, weights)
    ids = vocabulary.encode(text)
    [nats] = Engine(config, weights, "f32").scores([ids])
    evaluated = cw.evaluate(cw.LanguageModel.from_arrays(config, weights), vocabulary, text)
    assert np.nansum(found.bits) == pytest.approx(evaluated.bits_per_char * evaluated.chars, rel=1e-5)
    assert len(found.bits) == len(text)
    assert last_steps(text, vocabulary)[:6].tolist() == [0, 2, 5, 9, 10, 11]
    assert np.nansum(found.bits) == pytest.approx(-nats.sum() / math.log(2), rel=1e-5)
    for at in (1, 17, 50):
        choices = found.choices[at]
        assert 0 < len(choices) <= 5
        assert all(len(token) == 1 for token, _ in choices)
        assert any(token > "\x7f" for token, _ in choices)
        for token, share in choices:
            ids = torch.from_numpy(vocabulary.encode(text[:at] + token).astype(np.int64))
            read = len(vocabulary.encode(text[:at]))
            steps = network.log_probabilities(
                network.read(ids[:, None])[-1].hidden[:, 0], contexts_of(ids[:, None], config.ngram_order)[:, 0]
            )
            nats = sum(float(steps[step - 1, ids[step]]) for step in range(read, len(ids)))
            assert share == pytest.approx(math.exp(nats), rel=1e-3)


@pytest.mark.parametrize("name", ["lstm 2", *NGRAMS])
def test_memory_is_the_effect_of_another_character(name: str) -> None:
    config = (CONFIGS | NGRAMS)[name]
    network = Network(config, weights_of(config, len(LETTERS)))
    ids = torch.from_numpy(LETTERS.encode(TEXT).astype(np.int64))
    layers = network.read(ids[:, None])
    found = memory_of(network, layers, ids, unit="character")
    assert found.lags == tuple(range(1, len(ids) // 4 + 1))
    places = np.unique(np.linspace(1, len(ids) - len(found.lags), 256).round().astype(int))
    assert found.positions == len(places)
    from charwright.explanation.memory import _others

    usual = network.log_probabilities(layers[-1].hidden[:, 0], contexts_of(ids[:, None], config.ngram_order)[:, 0])
    others = _others(ids, torch.from_numpy(places), 0)
    assert bool((others != ids[torch.from_numpy(places)]).all())
    sums = np.zeros(9)
    for place, other in zip(places.tolist(), others.tolist(), strict=True):
        changed = ids.clone()
        changed[place] = other
        hidden = network.read(changed[:, None])[-1].hidden[:, 0]
        after = network.log_probabilities(hidden, contexts_of(changed[:, None], config.ngram_order)[:, 0])
        divergence = (usual.exp() * (usual - after)).sum(dim=1) / math.log(2)
        sums += divergence[place : place + 9].numpy()
    assert found.bits[:9] == pytest.approx(sums / len(places), rel=1e-3, abs=1e-6)


def test_a_network_without_recurrence_remembers_one_character() -> None:
    config = ModelConfig(cell="rnn", units=12, embedding_size=8)
    weights = weights_of(config, len(LETTERS))
    weights["recurrent.0.weight_hh"][:] = 0
    network = Network(config, weights)
    ids = torch.from_numpy(LETTERS.encode(TEXT).astype(np.int64))
    found = memory_of(network, network.read(ids[:, None]), ids, unit="character")
    assert found.bits[0] > 0.1
    assert found.bits[1:].max() < 1e-5
    assert (found.half, found.reach) == (2, 1)


@pytest.mark.parametrize("order", [2, 4, 8])
def test_ngrams_without_recurrence_remember_as_many_characters_as_their_order(order: int) -> None:
    config = ModelConfig(cell="rnn", units=12, embedding_size=8, ngram_bits=16, ngram_order=order)
    weights = weights_of(config, len(LETTERS))
    weights["recurrent.0.weight_hh"][:] = 0
    network = Network(config, weights)
    ids = torch.from_numpy(LETTERS.encode(TEXT).astype(np.int64))
    found = memory_of(network, network.read(ids[:, None]), ids, unit="character")
    assert found.bits[:order].min() > 0.1
    assert found.bits[order:].max() < 1e-5


def test_embedding_map_is_the_projection_with_the_most_variance() -> None:
    config = CONFIGS["gru"]
    network = Network(config, weights_of(config, len(LETTERS)))
    ids = torch.from_numpy(LETTERS.encode(TEXT + "🙂").astype(np.int64))
    found = embedding_map(network, LETTERS, ids)
    assert sorted(found.tokens) == sorted(set(TEXT))
    rows = network.embedding[[LETTERS.characters.index(token) + 1 for token in found.tokens]].double().numpy()
    covariance = np.cov(rows.T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    assert found.explained == pytest.approx(tuple(values[:2] / values.sum()))
    assert np.cov(found.points.T) == pytest.approx(np.diag(values[:2]), abs=1e-9)
    assert (found.points.max(axis=0) >= -found.points.min(axis=0)).all()
    cosines = (rows @ rows[0]) / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[0])
    assert found.neighbours[0][0] == found.tokens[int(np.argsort(-cosines)[1])]


@pytest.mark.parametrize("name", [*CONFIGS, *NGRAMS])
def test_gates_and_temperatures(name: str) -> None:
    config = (CONFIGS | NGRAMS)[name]
    network = Network(config, weights_of(config, len(LETTERS)))
    ids = torch.from_numpy(LETTERS.encode(TEXT).astype(np.int64))
    layers = network.read(ids[:, None])
    gates = gates_of(layers, config.cell)
    assert [(gate.layer, gate.name) for gate in gates] == [
        (layer, gate) for layer in range(1, config.layers + 1) for gate in PLACES[config.cell]
    ]
    by_input = [gate.meaning.endswith("as the input alone decides") for gate in gates if gate.name == "reset"]
    assert by_input == [config.cell == "igru"] * len(by_input)
    for gate in gates:
        assert 0 < gate.mean < 1
        assert 0 <= gate.closed + gate.open <= 1
    found = temperatures_of(network, layers, LETTERS, TEXT, ids)
    assert found.before == TEXT[: found.position][-60:]
    assert found.shares.sum(axis=1) == pytest.approx(1)
    contexts = contexts_of(ids[:, None], config.ngram_order)[found.position - 1]
    logits = network.log_probabilities(layers[-1].hidden[found.position - 1], contexts)[0, 1:].double()
    for temperature, row in zip(found.temperatures, found.shares, strict=True):
        expected = torch.softmax(logits / temperature, dim=0)
        assert row[0] == pytest.approx(float(expected.max()))
    assert list(found.choices) == sorted(found.choices)
    assert found.shares[0, 0] > found.shares[-1, 0]


def test_tokens_that_another_would_cover_are_dots() -> None:
    places = np.array([[0.0, 0.0], [3.0, 3.0], [3.0, 9.0], [30.0, 0.0], [4.0, 4.0], [33.0, 4.0]])
    assert uncovered(places, (5.0, 5.0)) == [True, False, True, True, False, False]


def test_effects_below_rounding_are_not_drawn() -> None:
    bits = np.array([2.0, 0.5, 0.00001, 0.2, 0.00003, 0.00001])
    memory = Memory((1, 2, 3, 4, 5, 6), bits, np.full(6, 0.01), 5, "character")
    assert [k for k, *_ in measurable(memory)] == [1, 2, 3, 4]
    nothing = Memory((1, 2), np.array([0.0, 0.0]), np.zeros(2), 5, "character")
    assert [k for k, *_ in measurable(nothing)] == [1]
