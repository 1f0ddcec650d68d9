"""The engine, which steps with numpy, against the model that trained the weights."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from charwright.config import STATES, ModelConfig
from charwright.generation.engine import Engine
from charwright.model.language_model import LanguageModel

SIZE = 23  # tokens
KINDS = list(product(["gru", "lstm", "rnn"], [1, 2], [False, True]))


def model_config(cell: str, layers: int, tied: bool, units: int = 24) -> ModelConfig:
    return ModelConfig(cell=cell, layers=layers, units=units, embedding=units if tied else 10, tied=tied)


def ramp_weights(config: ModelConfig, size: int = SIZE) -> dict[str, np.ndarray]:
    """A nonlinear ramp, different in every weight, so that no two gates or units can be swapped unseen."""
    arrays = {}
    for index, (name, shape) in enumerate(config.weight_shapes(size).items()):
        count = int(np.prod(shape))
        scale = 1.5 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        arrays[name] = (np.sin(np.arange(count) * 1.7 + index) * scale).astype(np.float32).reshape(shape)
    return arrays


def random_ids(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(5)).integers(0, SIZE, shape)


@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS)
def test_logits_and_state_are_the_models(cell: str, layers: int, tied: bool) -> None:
    config = model_config(cell, layers, tied)
    weights = ramp_weights(config)
    engine, model = Engine(config, weights), LanguageModel.from_arrays(config, weights)
    ids = random_ids(60, 3)  # (T, B)
    with torch.no_grad():
        expected, last = model(torch.from_numpy(ids))
    state = engine.zero_state(3)
    logits = np.stack([engine.step(row, state) for row in ids])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5, rtol=1e-5)
    assert state.shape == (STATES[cell], layers, 3, config.units)
    for found, part in zip(state, last, strict=True):
        np.testing.assert_allclose(found, part.numpy(), atol=1e-5, rtol=1e-5)


def likeliest_other(logits: np.ndarray, last: int) -> int:
    """Greedy, but never the same twice running: weights like these would soon write one character for ever."""
    return int(np.argsort(-logits)[:2][np.argsort(-logits)[:2] != last][0])


def greedy_by_engine(engine: Engine, length: int) -> list[int]:
    state, written = engine.zero_state(1), [1]
    for _ in range(length):
        logits = engine.step(np.array(written[-1:]), state)
        written.append(likeliest_other(logits[0], written[-1]))
    return written


@torch.no_grad()
def greedy_by_model(model: LanguageModel, length: int) -> list[int]:
    state, written = None, [1]
    for _ in range(length):
        logits, state = model(torch.tensor([written[-1:]]), state)
        written.append(likeliest_other(logits[0, 0].numpy(), written[-1]))
    return written


@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS)
def test_greedy_text_is_the_models(cell: str, layers: int, tied: bool) -> None:
    config = model_config(cell, layers, tied)
    weights = ramp_weights(config)
    by_engine = greedy_by_engine(Engine(config, weights), 300)
    assert by_engine == greedy_by_model(LanguageModel.from_arrays(config, weights), 300)
    assert len(set(by_engine)) >= 2


@pytest.mark.parametrize("units", [5, 24, 64])
@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS[::2])
def test_a_streams_numbers_do_not_depend_on_its_neighbours(cell: str, layers: int, tied: bool, units: int) -> None:
    """Alone, in any row and among 20 others: the same bits."""
    config = model_config(cell, layers, tied, units)
    engine = Engine(config, ramp_weights(config))
    ids, steps = random_ids(21), 12

    def numbers(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        state = engine.zero_state(len(rows))
        for step in range(steps):
            logits = engine.step((ids[rows] + step) % SIZE, state)
        return logits, state

    together, state = numbers(list(range(21)))
    for row in range(21):
        alone, alone_state = numbers([row])
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_array_equal(alone_state[:, :, 0], state[:, :, row])
    turned, _ = numbers(list(reversed(range(21))))
    np.testing.assert_array_equal(turned[::-1], together)
    few, _ = numbers([20, 3, 7])
    np.testing.assert_array_equal(few, together[[20, 3, 7]])


def test_streams_do_not_mix() -> None:
    config = model_config("gru", 1, False)
    engine = Engine(config, ramp_weights(config))
    logits = engine.step(np.array([1, 2, 1]), engine.zero_state(3))
    np.testing.assert_array_equal(logits[0], logits[2])
    assert not np.array_equal(logits[0], logits[1])


def test_the_weights_are_left_alone() -> None:
    config = model_config("lstm", 2, False)
    weights = ramp_weights(config)
    before = {name: array.copy() for name, array in weights.items()}
    greedy_by_engine(Engine(config, weights), 5)
    for name, array in before.items():
        np.testing.assert_array_equal(weights[name], array)


def test_saturated_gates_do_not_overflow() -> None:
    config = model_config("lstm", 1, False)
    weights = {name: array * np.float32(1e4) for name, array in ramp_weights(config).items()}
    engine = Engine(config, weights)
    state = engine.zero_state(2)
    for _ in range(3):
        assert np.isfinite(engine.step(np.array([1, 2]), state)).all()
